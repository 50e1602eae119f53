"""Objects below one prefix of a bucket, through s3fs; every failure is one of our errors.

The surprising choice: S3's own calls instead of file-like ones. Only they can create an object unless it is there, and
send a large one in parts that survive the sender.
"""

from __future__ import annotations

import contextlib
import mimetypes
import re
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from saeinterp.artifacts.places import FIELD, endpoint
from saeinterp.errors import ArtifactError, MissingDependencyError, SaeinterpError

_CONNECT_SECONDS = 10
_READ_SECONDS = 120
PER_DELETE = 1000
"""The most objects that S3 deletes at once."""
_RANGE_BYTES = 16 * 2**20  # in memory for each file that is fetched, and what a broken connection costs
_TRIES = 6
_ABSENT = ("404", "NoSuchKey", "NoSuchUpload", "NotFound")
_SECRET = re.compile(r"[^\s/@]*:[^\s/@]*@")  # as in an address of a profile
_CREDENTIALS = "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for a server of your own"


class Entry(NamedTuple):
    """One object."""

    key: str
    """Below the prefix."""
    bytes: int
    etag: str
    """MD5 in hex digits where the object was sent in one piece and is not encrypted by a key of its own."""
    modified: datetime


class Bucket:
    """The objects below `s3://bucket/prefix`; keys are relative to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def key(self, key: str) -> str:
        """The key in the bucket."""
        return self._prefix + key

    def address(self, key: str) -> str:
        """`s3://...` of an object."""
        return f"{self.url}/{key}"

    def page(self, key: str) -> str:
        """An address for a browser whose user may read the bucket: in the console of AWS, or on the own server."""
        server = endpoint()
        if server is not None:
            return f"{server.rstrip('/')}/{self.name}/{quote(self.key(key))}"
        return f"https://console.aws.amazon.com/s3/object/{self.name}?prefix={quote(self.key(key), safe='')}"

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object, or None."""
        with self._told("reading", absent_ok=True):
            # At once, since asking for its size first cannot tell an absent object from other trouble.
            return bytes(self._files.cat_file(self._path(key), max_concurrency=1))
        return None

    def put(self, key: str, data: bytes, *, sha256: str | None = None) -> None:
        """Write an object in one piece."""
        self.call("put_object", key, Body=data, **described(key, sha256))

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless there is one; False where there is."""
        where = {"Bucket": self.name, "Key": self.key(key)}
        with self._told("writing"):
            for attempt in range(_TRIES):
                try:
                    self._files.call_s3("put_object", **where, Body=data, IfNoneMatch="*", **described(key, None))
                    return True
                except FileExistsError:
                    return False
                except (OSError, NotImplementedError) as error:
                    code = _code(error)
                    if code in ("PreconditionFailed", "412"):  # of servers that do not say which condition
                        return False
                    if code in ("ConditionalRequestConflict", "OperationAborted", "409") and attempt < _TRIES - 1:
                        time.sleep(0.1 * 2**attempt)  # another writer is at it: who asks again is told how it ended
                        continue
                    if "NotImplemented" not in f"{error!r} {error.__cause__!r}":
                        raise
                    break
            # A server without conditional writes: what two writers leave is still whole, the last one's.
            if self.get(key) is not None:
                return False
            self.put(key, data)
        return True

    def sha256(self, key: str, *, size: int) -> str | None:
        """The SHA-256 that an object of this size was written with; None where there is none of this size."""
        with self._told("reading", absent_ok=True):
            head = self._files.call_s3("head_object", Bucket=self.name, Key=self.key(key))
            return head.get("Metadata", {}).get("sha256") if head["ContentLength"] == size else None
        return None

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key begins so, by key."""
        token: dict[str, str] = {}
        while True:
            with self._told("listing"):
                reply = self._files.call_s3("list_objects_v2", Bucket=self.name, Prefix=self.key(prefix), **token)
            for item in reply.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                yield Entry(key, item["Size"], item["ETag"].strip('"'), item["LastModified"])
            if not reply.get("IsTruncated"):
                return
            token = {"ContinuationToken": reply["NextContinuationToken"]}

    def uploads(self, prefix: str = "") -> Iterator[tuple[str, str, datetime]]:
        """Uploads in parts that were not completed: key, id, when they began."""
        token: dict[str, str] = {}
        while True:
            with self._told("listing"):
                reply = self._files.call_s3(
                    "list_multipart_uploads", Bucket=self.name, Prefix=self.key(prefix), **token
                )
            for item in reply.get("Uploads", ()):
                if item["Key"].startswith(self.key(prefix)):
                    yield item["Key"].removeprefix(self._prefix), item["UploadId"], item["Initiated"]
            if not reply.get("IsTruncated"):
                return
            token = {"KeyMarker": reply["NextKeyMarker"], "UploadIdMarker": reply["NextUploadIdMarker"]}

    def download(self, key: str, path: Path, *, size: int, stop: threading.Event) -> bool:
        """Write the first `size` bytes of an object to a file, going on where it ends; False where there is none.

        Raises:
            OSError: Of the file alone.
            CancelledError: `stop` was set meanwhile.
        """
        have = path.stat().st_size if path.exists() else 0
        if size == 0 or have >= size:  # what is all here may still be what was damaged on its way
            have = 0
        with path.open("r+b" if have else "wb") as handle:
            handle.seek(have)
            while True:
                if stop.is_set():
                    raise CancelledError
                data = self._range(key, have, min(size, have + _RANGE_BYTES)) if size else self.get(key)
                if data is None:
                    return False
                handle.write(data)
                have += len(data)
                if not data or have >= size:
                    return True

    def _range(self, key: str, start: int, end: int) -> bytes | None:
        with self._told("reading", absent_ok=True):
            try:
                return bytes(self._files.cat_file(self._path(key), start=start, end=end))
            except OSError as error:
                if _code(error) in ("InvalidRange", "416"):  # it is shorter
                    return b""
                raise
        return None

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, there or not."""
        names = [self.key(key) for key in keys]
        for start in range(0, len(names), PER_DELETE):
            some = [{"Key": name} for name in names[start : start + PER_DELETE]]
            with self._told("deleting"):
                reply = self._files.call_s3("delete_objects", Bucket=self.name, Delete={"Objects": some, "Quiet": True})
                if failed := reply.get("Errors"):
                    raise PermissionError(failed[0].get("Message") or failed[0].get("Code"))

    def call(self, action: str, key: str, **values: Any) -> dict[str, Any]:
        """One of S3's own calls on an object.

        Raises:
            FileNotFoundError: Such as an upload in parts that is no more.
        """
        with self._told("writing"):
            reply: dict[str, Any] = self._files.call_s3(action, Bucket=self.name, Key=self.key(key), **values)
            return reply

    def _path(self, key: str) -> str:
        return f"{self.name}/{self.key(key)}"

    @cached_property
    def _files(self) -> Any:
        try:
            from s3fs import S3FileSystem
        except ImportError as error:
            raise MissingDependencyError(
                "s3fs is not installed", field=FIELD, got=self.url, next_step="pip install 'saeinterp[s3]'"
            ) from error
        endpoint()  # refuses an address with credentials before any error can repeat it
        with self._told("reaching"):
            return S3FileSystem(
                use_listings_cache=False,  # others write, too
                skip_instance_cache=True,
                config_kwargs={"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS},
            )

    @contextlib.contextmanager
    def _told(self, doing: str, *, absent_ok: bool = False) -> Iterator[None]:
        """Errors of the client as ours; a missing object passes as FileNotFoundError, or ends the body in silence."""
        try:
            yield
        except (SaeinterpError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in repr(error.__cause__) or "bucket does not exist" in str(error):
                raise ArtifactError(
                    f"no such bucket: {self.name}",
                    field=FIELD,
                    got=self.url,
                    expected="a bucket that exists; none is made for you",
                    next_step="check its name, its region and AWS_ENDPOINT_URL, or create it",
                ) from error
            if _code(error) not in _ABSENT:
                raise self._error(error, doing) from error
            if not absent_ok:
                raise
        except Exception as error:  # of several libraries, without a common base
            raise self._error(error, doing) from error

    def _error(self, error: Exception, doing: str) -> Exception:
        name, text = type(error).__name__, _SECRET.sub("", " ".join(str(error).split()))[:200]
        if isinstance(error, PermissionError):
            return ArtifactError(
                f"the bucket denies {doing}: {text or 'access denied'}",
                field=FIELD,
                got=self.url,
                expected="credentials that may list, read, write and delete below it",
                next_step="check the policy of the bucket and which credentials are in use; `saeinterp doctor` tries",
            )
        if "Credential" in name or "Profile" in name or "Token" in name:
            return ArtifactError(
                f"no usable credentials: {text}", field=FIELD, got=self.url, next_step=f"set {_CREDENTIALS}"
            )
        if "Connect" in name or "Timeout" in name or isinstance(error, ConnectionError | TimeoutError):
            return ArtifactError(
                f"the object storage does not answer ({name})",
                field=FIELD,
                got=endpoint() or self.url,
                next_step="check the network and AWS_ENDPOINT_URL, then run again: what was made is kept and goes up",
            )
        return ArtifactError(
            f"{doing} failed: {name}: {text}",
            field=FIELD,
            got=self.url,
            next_step="run again: what was made is kept and goes up",
        )


def _code(error: BaseException) -> str | None:
    """What S3 said, where an error is an answer of it at all."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return None if code is None else str(code)


def described(key: str, sha256: str | None) -> dict[str, Any]:
    """What is stored beside an object: its type, so that browsers show pages, and its SHA-256."""
    kind, _ = mimetypes.guess_type(key)
    values: dict[str, Any] = {"ContentType": kind or "application/octet-stream"}
    if sha256 is not None:
        values["Metadata"] = {"sha256": sha256}
    return values
