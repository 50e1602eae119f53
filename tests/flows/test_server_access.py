"""The file with a server's address and password."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.prefect_server import FILE, access, become_worker, read_access
from saeinterp.errors import ConfigError


def test_a_password_is_made_once_and_again_when_either_line_is_deleted(tmp_path: Path) -> None:
    first = access(tmp_path, host="127.0.0.1", port=4200)
    assert access(tmp_path, host="127.0.0.1", port=4200).password == first.password
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        before = access(tmp_path, host="127.0.0.1", port=4200).password
        file = tmp_path / FILE
        kept = [line for line in file.read_text().splitlines(keepends=True) if not line.startswith(f"{name}=")]
        file.write_text("".join(kept))
        after = access(tmp_path, host="127.0.0.1", port=4200)
        assert after.password != before
        assert set(read_access(file).values()) == {after.url, after.password}
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4200/api"),
        ("0.0.0.0", "http://127.0.0.1:4200/api"),
        ("::1", "http://[::1]:4200/api"),
    ],
)
def test_the_address_is_one_that_clients_can_use(tmp_path: Path, host: str, url: str) -> None:
    assert access(tmp_path, host=host, port=4200).url == url


def test_a_worker_without_a_server_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no server is configured") as error:
        become_worker(tmp_path, pool="gpu", configured=False)
    assert "saeinterp ops server" in str(error.value)
