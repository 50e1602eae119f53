"""The training process: `python -m saeinterp.sae.training --job job.json`, under accelerate launch or torchrun.

It reads one hookpoint's activations, trains, and writes the SAE folder's files into the job's `out`; what it tells
its supervisor goes to standard output as `PROGRESS {json}` lines. The surprising choice: torch is imported only
after the process has tied its life to its parent's.

Bits depend on the number of threads and on the CPU (its kernels, and whether it multiplies bfloat16): the same job
on the same machine gives the same bytes, killed and resumed or not.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from saeinterp.artifacts import Artifact, read_json, write_json
from saeinterp.config import TrainingConfig
from saeinterp.errors import ArtifactError, ConfigError, SaeinterpError, TrainingError
from saeinterp.sae.child import die_with_parent, emit

if TYPE_CHECKING:
    from saeinterp.sae.rows import Rows
    from saeinterp.sae.trainer import Trainer

log = logging.getLogger(__name__)

FAULT = "SAEINTERP_FAULT"
"""Environment variable for rehearsals: `layers.1@5` makes that hookpoint fail before step 5 (0-based)."""
_PROGRESS_SECONDS = 0.5
_TERMINATED = 128 + signal.SIGTERM


class Job(BaseModel):
    """What one training process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    activations: Artifact
    hookpoint: str
    training: TrainingConfig
    threads: int
    memory_gb: float
    out: Path
    checkpoints: Path


class _Stop:
    """Set by SIGTERM; read between steps, so that a checkpoint is written first."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def main(arguments: list[str] | None = None) -> None:
    """Entry of the training process."""
    die_with_parent()
    emit("STARTED", pid=os.getpid())
    parser = argparse.ArgumentParser(prog="python -m saeinterp.sae.training", description="Train one SAE.")
    parser.add_argument("--job", type=Path, required=True, help="JSON written by saeinterp.sae.launch")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    try:
        run(Job.model_validate(read_json(options.job)))
    except SaeinterpError as error:
        _fail(error)
    except (OSError, SafetensorError) as error:
        from saeinterp.sae.checkpoints import disk_full

        if not disk_full(error):
            raise
        _fail(ArtifactError("the disk is full", field="SAEINTERP_ROOT", next_step="free space, then run again"))


def _fail(error: SaeinterpError) -> NoReturn:
    """Hand the error to the supervisor and end."""
    emit(
        "FAILED",
        error=type(error).__name__,
        problem=error.problem,
        field=error.field,
        got=error.got,
        expected=error.expected,
        next_step=error.next_step,
    )
    sys.exit(1)


def run(job: Job) -> None:
    """Train to the end, or until SIGTERM (then exit with status 143 after a checkpoint).

    Raises:
        DataError: The activations are unfit.
        TrainingError: Training diverged, or the checkpoint is another run's.
    """
    import torch
    from accelerate import Accelerator

    from saeinterp.sae.rows import Rows
    from saeinterp.sae.state import Group
    from saeinterp.sae.trainer import Trainer
    from saeinterp.subject import ActivationCache, resolve_dtype

    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    if accelerator.device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    cache = ActivationCache.open(job.activations, job.hookpoint)
    rows = Rows(cache, "train", memory_bytes=job.memory_gb * 1e9)
    heldout = Rows(cache, "health", memory_bytes=0)
    heldout.require(2, purpose="held-out FVU", next_step="give the health split more text")
    group = Group(accelerator.process_index, accelerator.num_processes, torch.distributed.all_reduce)
    if accelerator.num_processes == 1:
        group = Group()
    trainer = Trainer(
        rows,
        heldout.spread(job.training.eval_rows),
        config=job.training,
        hookpoint=job.hookpoint,
        compute=getattr(torch, resolve_dtype(job.training.precision, accelerator.device.type)),
        device=accelerator.device,
        group=group,
    )
    _train(trainer, job, stop)
    if group.rank == 0:
        _write(trainer, rows, job)
    if group.size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _train(trainer: Trainer, job: Job, stop: _Stop) -> None:
    from saeinterp.sae.checkpoints import load_checkpoint

    fault = _fault(job.hookpoint)
    checkpoint = load_checkpoint(job.checkpoints)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        log.info("going on from the checkpoint of step %d of %d", trainer.state.step, trainer.steps)
    saved = told = time.monotonic()
    _tell(trainer)
    while not trainer.finished:
        if trainer.state.step == fault:
            raise TrainingError(
                f"rehearsed failure before step {fault}",
                field=job.hookpoint,
                next_step=f"run again without {FAULT}; finished layers are not trained again",
            )
        trainer.step()
        now = time.monotonic()
        if stop.asked:
            _save(trainer, job)
            log.info("stopped at step %d of %d; the next run goes on from there", trainer.state.step, trainer.steps)
            sys.exit(_TERMINATED)
        if now - saved >= job.training.checkpoint_seconds and not trainer.finished:
            _save(trainer, job)
            saved = time.monotonic()
        if now - told >= _PROGRESS_SECONDS or trainer.finished:
            _tell(trainer)
            told = now


def _save(trainer: Trainer, job: Job) -> None:
    from saeinterp.sae.checkpoints import save_checkpoint

    if trainer.group.rank == 0:
        tensors, scalars = trainer.snapshot()
        save_checkpoint(job.checkpoints, step=trainer.state.step, tensors=tensors, scalars=scalars)


def _tell(trainer: Trainer) -> None:
    if trainer.group.rank == 0:
        state = trainer.state
        emit(
            "PROGRESS",
            step=state.step,
            steps=trainer.steps,
            rows=state.drawn,
            total=trainer.steps * trainer.config.batch_rows,
            fvu_heldout=state.curves[-1].fvu_heldout if state.curves else None,
            rows_per_second=round(state.timing[-1].rows_per_second) if state.timing else None,
        )


def _write(trainer: Trainer, rows: Rows, job: Job) -> None:
    """The files of the artifact."""
    from saeinterp.sae.curves import write_curves

    trainer.snapshot()  # refuses weights that are not finite
    trainer.sae().save(job.out)
    write_curves(job.out / "curves.parquet", trainer.state.curves)
    write_curves(job.out / "timing.parquet", trainer.state.timing)
    write_json(job.out / "training.json", _summary(trainer, rows, job))


def _summary(trainer: Trainer, rows: Rows, job: Job) -> dict[str, Any]:
    """`training.json`: what was trained on what, and how it ended."""
    config, state = trainer.config, trainer.state
    heldout = trainer.evaluate()
    silent = trainer.silent()
    dead = silent & ~heldout.fired
    return {
        "hookpoint": job.hookpoint,
        "d_in": trainer.d_in,
        "num_latents": config.num_latents,
        "k": config.k,
        "activation": config.activation,
        "optimizer": config.optimizer,
        "lr": trainer.peak_lr,
        "steps": state.step,
        "rows_seen": state.drawn,
        "rows": len(rows),
        "rows_masked": rows.masked,
        "rows_heldout": len(trainer.heldout),
        "scale": state.scale,
        "compute": str(trainer.method.compute).removeprefix("torch."),
        "gradients": "dense" if trainer.method.dense else "sparse",
        "processes": trainer.group.size,
        "fvu_heldout": heldout.fvu,
        "l0_heldout": heldout.l0,
        # Dead: silent over the last `dead_after_rows` rows of training and over all held-out rows.
        "dead": int(dead.sum()),
        "dead_fraction": float(dead.float().mean()),
        "silent_in_training": int(silent.sum()),
        "silent_heldout": int((~heldout.fired).sum()),
        "revived": sum(row.revived for row in state.curves),
    }


def _fault(hookpoint: str) -> int | None:
    """The step before which this hookpoint is to fail, by the environment."""
    text = os.environ.get(FAULT)
    if not text:
        return None
    name, _, step = text.rpartition("@")
    if not name or not step.isdigit():
        raise ConfigError("not a fault to rehearse", field=FAULT, got=text, expected="HOOKPOINT@STEP, as in layers.1@5")
    return int(step) if name == hookpoint else None


if __name__ == "__main__":
    main()
