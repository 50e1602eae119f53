"""Replies on disk: believed when whole, shared between processes, never torn."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from saeinterp.errors import ArtifactError
from saeinterp.explain import Reply, ResponseCache
from saeinterp.explain.llm import Usage

REPLY = Reply("Yes", choice_logprobs=(-0.1, -2.5))


def test_what_was_stored_is_read_back_by_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from saeinterp.explain import Reply, ResponseCache\n"
        "ResponseCache(Path(sys.argv[1])).put('theirs', [Reply('No'), Reply('\\ud800 ü')])\n"
    )
    cache = ResponseCache(tmp_path)
    cache.put("mine", [REPLY])
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert cache.get("theirs") is None
    cache.refresh()
    assert cache.get("theirs") == [Reply("No"), Reply("\ud800 ü")]
    assert ResponseCache.at(tmp_path).get("mine") == [REPLY]


def test_a_line_torn_by_a_kill_is_ignored_until_it_is_whole(tmp_path: Path) -> None:
    writer = ResponseCache(tmp_path)
    writer.put("a", [REPLY])
    writer.put("b", [REPLY])
    (shard,) = tmp_path.glob("*.jsonl")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    reader = ResponseCache(tmp_path)
    reader.refresh()
    assert (reader.get("a"), reader.get("b")) == ([REPLY], None)
    shard.write_bytes(whole)
    reader.refresh()
    assert reader.get("b") == [REPLY]


def test_a_damaged_line_is_skipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ResponseCache(tmp_path).put("a", [REPLY])
    (shard,) = tmp_path.glob("*.jsonl")
    shard.write_bytes(b'{"key": 3\n[]\n' + shard.read_bytes())
    cache = ResponseCache(tmp_path)
    cache.refresh()
    assert cache.get("a") == [REPLY]
    assert "asked for again" in caplog.text


def test_many_threads_may_write(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path)
    threads = [
        threading.Thread(target=lambda n=n: [cache.put(f"{n}-{i}", [Reply(f"{n}-{i}")]) for i in range(25)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = ResponseCache(tmp_path)
    fresh.refresh()
    assert all(fresh.get(f"{n}-{i}") == [Reply(f"{n}-{i}")] for n in range(8) for i in range(25))


def test_every_part_of_a_reply_is_kept(tmp_path: Path) -> None:
    full = Reply(
        "[0, ?]",
        choice_logprobs=(-0.1, -2.0),
        verdict_logprobs=((-0.5, -1.0), None),
        slot_logprobs=(tuple(-float(digit) for digit in range(10)),),
        cut=True,
        usage=Usage(10, 4, 2),
        status="refused",
        error="filtered",
    )
    ResponseCache(tmp_path).put("a", [full, Reply("")])
    assert ResponseCache.at(tmp_path).get("a") == [full, Reply("")]


def test_after_a_full_disk_half_a_line_does_not_run_into_the_next(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path)
    cache.put("a", [REPLY])
    hard, soft = resource.getrlimit(resource.RLIMIT_FSIZE)[::-1]
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        (shard,) = tmp_path.glob("*.jsonl")
        resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size + 20, hard))
        with pytest.raises(ArtifactError, match="cannot keep a reply: File too large"):
            cache.put("b", [REPLY])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    cache.put("c", [REPLY])
    fresh = ResponseCache(tmp_path)
    fresh.refresh()
    assert [fresh.get(key) for key in "abc"] == [[REPLY], None, [REPLY]]
