"""The process that writes W&B runs: `python -m saeinterp.sae.wandb_writer --job job.json`.

A process of its own, because W&B completes a run's file only when its service ends with the process, and so that
neither its settings nor its service touch a run of the caller's. What W&B records of its own accord is off: git
state, code, host, program, environment, packages, system metrics, console. The surprising choice: a run's id is the
SAE's recipe, so uploading again replaces it on the server too.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from saeinterp.artifacts import read_json
from saeinterp.child import die_with_parent, emit


class WandbRun(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    config: dict[str, Any]
    points: list[tuple[int, dict[str, float]]]
    """Step and values by tag."""


class WandbJob(BaseModel):
    """What the process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    """Runs go below its subfolder `wandb`."""
    project: str
    group: str | None
    offline: bool
    runs: list[WandbRun]


def main(arguments: list[str] | None = None) -> None:
    """Entry of the process: emits FINISHED with `id`, `path` and `url` for each run, or FAILED with `problem`."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m saeinterp.sae.wandb_writer", description="Write W&B runs.")
    parser.add_argument("--job", type=Path, required=True, help="JSON written by saeinterp.sae.export")
    job = WandbJob.model_validate(read_json(parser.parse_args(arguments).job))
    try:
        import wandb
    except ImportError as error:
        emit("FAILED", problem=f"wandb cannot be imported: {error}")
        return
    for run in job.runs:
        try:
            path, url = write_run(run, job)
        except wandb.errors.Error as error:
            emit("FAILED", id=run.id, problem=str(error))
            return
        emit("FINISHED", id=run.id, path=str(path), url=url)


def write_run(run: WandbRun, job: WandbJob) -> tuple[Path, str | None]:
    """Write one run in place of earlier ones with its id; returns its local folder and, online, its page."""
    import wandb

    for earlier in (job.folder / "wandb").glob(f"*run-*-{run.id}"):
        shutil.rmtree(earlier)
    settings = wandb.Settings(
        mode="offline" if job.offline else "online",
        root_dir=str(job.folder),
        run_group=job.group,
        silent=True,
        symlink=False,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="-",
        program="-",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_service_wait=120,  # seconds; the default of 30 is short on a busy machine
    )
    with wandb.init(project=job.project, id=run.id, name=run.name, config=run.config, settings=settings) as opened:
        for step, values in run.points:
            opened.log(values, step=step)
        return Path(opened.dir).parent, None if job.offline else opened.url


if __name__ == "__main__":
    main()
