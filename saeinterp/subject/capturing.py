"""A process that collects activations: `python -m saeinterp.subject.capturing --job job.json`.

It loads the subject, writes the shards it was dealt and tells its supervisor how far it is; see
`capture_processes.py`. The surprising choice: it keeps no state besides whole shards, so SIGTERM simply ends it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

import torch

from saeinterp.artifacts import read_json
from saeinterp.child import die_with_parent, emit, emit_error
from saeinterp.errors import ArtifactError, SaeinterpError
from saeinterp.subject.capture_processes import CaptureJob, write_layout
from saeinterp.subject.contexts import read_contexts
from saeinterp.subject.models import load_subject
from saeinterp.subject.shards import Layout, check_budget, write_shards

_PROGRESS_SECONDS = 0.5


def main(arguments: list[str] | None = None) -> None:
    """Entry of the process."""
    die_with_parent()
    emit("STARTED", pid=os.getpid())
    parser = argparse.ArgumentParser(
        prog="python -m saeinterp.subject.capturing", description="Write some shards of an activation cache."
    )
    parser.add_argument("--job", type=Path, required=True, help="JSON written by saeinterp.subject.capture_processes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    try:
        run(CaptureJob.model_validate(read_json(options.job)))
    except SaeinterpError as error:
        emit_error(error)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (28, 122):  # ENOSPC, EDQUOT
            raise
        emit_error(
            ArtifactError(
                "the disk is full",
                field="SAEINTERP_ROOT",
                next_step="free space or set SAEINTERP_ROOT to a larger disk, then run again",
            )
        )
        sys.exit(1)


def run(job: CaptureJob) -> None:
    """Write the shards of one job.

    Raises:
        SaeinterpError: As `collect_activations`.
    """
    torch.set_num_threads(job.threads)
    contexts = read_contexts(job.corpus, splits=job.splits)
    subject = load_subject(job.subject, device=job.placement)
    layout = Layout.of(subject, job.config)
    # Hookpoints inside a block may be wider than the residual stream.
    check_budget(contexts.tokens, layout.widths, budget_gb=job.config.disk_budget_gb, work=job.work)
    write_layout(job.work, layout)
    last = -_PROGRESS_SECONDS
    total = sum(shard.rows for shard in job.shards)

    def report(rows: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS or rows == total:
            last = now
            emit("PROGRESS", rows=rows, total=total)

    write_shards(subject, contexts, job.shards, config=job.config, layout=layout, work=job.work, report=report)


if __name__ == "__main__":
    main()
