"""The training process: `python -m saeinterp.sae.training --job job.json`, under accelerate launch or torchrun.

It trains the SAEs of one job and writes each SAE's files into its `out`; what it tells its supervisor goes to
standard output as `PROGRESS {json}` lines. The surprising choice: torch is imported only after the process has tied
its life to its parent's.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from safetensors import SafetensorError

from saeinterp.artifacts import read_json, write_json
from saeinterp.child import die_with_parent, emit
from saeinterp.errors import ArtifactError, ConfigError, DataError, SaeinterpError, TrainingError
from saeinterp.sae.job import Job, Member

if TYPE_CHECKING:
    import torch

    from saeinterp.sae.run import Run
    from saeinterp.sae.sources import Source
    from saeinterp.sae.trainer import Group, Trainer

log = logging.getLogger(__name__)

FAULT = "SAEINTERP_FAULT"
"""Environment variable for rehearsals: `layers.1@5` makes that hookpoint fail before step 5 (0-based)."""
_PROGRESS_SECONDS = 0.5
_TERMINATED = 128 + signal.SIGTERM


class _Stop:
    """Set by SIGTERM; read between steps, so that a checkpoint is written first."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def main(arguments: list[str] | None = None) -> None:
    """Entry of the training process."""
    die_with_parent()
    emit("STARTED", pid=os.getpid())
    parser = argparse.ArgumentParser(prog="python -m saeinterp.sae.training", description="Train the SAEs of one job.")
    parser.add_argument("--job", type=Path, required=True, help="JSON written by saeinterp.sae.launch")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    try:
        failed = run(Job.model_validate(read_json(options.job)))
    except SaeinterpError as error:
        _fail(error)
    except (OSError, SafetensorError) as error:
        from saeinterp.sae.checkpoints import disk_full

        if not disk_full(error):
            raise
        _fail(ArtifactError("the disk is full", field="SAEINTERP_ROOT", next_step="free space, then run again"))
    sys.exit(1 if failed else 0)


def _fail(error: SaeinterpError) -> NoReturn:
    """Hand the error of the whole job to the supervisor and end."""
    _report(None, error)
    sys.exit(1)


def _report(hookpoint: str | None, error: SaeinterpError) -> None:
    emit(
        "FAILED",
        hookpoint=hookpoint,
        error=type(error).__name__,
        problem=error.problem,
        field=error.field,
        got=error.got,
        expected=error.expected,
        next_step=error.next_step,
    )


def run(job: Job) -> bool:
    """Train to the end, or until SIGTERM (then exit with status 143 after a checkpoint); whether an SAE failed.

    Raises:
        TrainingError: The launcher started another number of processes than configured.
        DataError: The held-out rows are too few.
    """
    import torch
    from accelerate import Accelerator

    from saeinterp.sae.trainer import Group

    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rank, size = accelerator.process_index, accelerator.num_processes
    if size != job.processes:
        raise TrainingError(
            "the launcher started another number of processes than configured",
            field="launch.processes",
            got=size,
            expected=str(job.processes),
            next_step="set launch.processes to the world size of launch.command, or fix the command",
        )
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    if accelerator.device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        # It would also write NaN to every new buffer, which costs a pass over memory each.
        torch.utils.deterministic.fill_uninitialized_memory = False
    members, group = list(job.members), Group()
    if size > 1 and job.spread == "saes":
        members = members[rank::size]
    elif size > 1:
        group = Group(rank, size, torch.distributed.all_reduce)
    try:
        training = _Training(job, members, group=group, device=accelerator.device, stop=stop)
        training.run()
        if size > 1:
            torch.distributed.barrier()
    finally:
        if size > 1:
            torch.distributed.destroy_process_group()
    return training.failed


class _Training:
    """The SAEs of this process, on their way."""

    def __init__(
        self,
        job: Job,
        members: Sequence[Member],
        *,
        group: Group,
        device: torch.device,
        stop: _Stop,
    ) -> None:
        import torch

        from saeinterp.sae.checkpoints import load_checkpoint
        from saeinterp.sae.run import Shape
        from saeinterp.sae.trainer import Trainer
        from saeinterp.subject import resolve_dtype

        self.group = group
        self.stop = stop
        self.failed = False
        self.members = {member.hookpoint: member for member in members}
        self._faults = {name: step for name in self.members if (step := _fault(name)) is not None}
        sources = _sources(job, members, group, device)
        shapes: dict[Shape, list[Run]] = {}
        self._rows_done = self._rows_total = 0
        for member in members:
            try:
                run = _open(job, member, sources(member), processes=group.size)
                checkpoint = load_checkpoint(member.checkpoints)
                if checkpoint is not None:
                    run.restore(checkpoint)
                    log.info("%s goes on from the checkpoint of step %d of %d", run.name, run.step, run.steps)
            except SaeinterpError as error:
                self._failure(member.hookpoint, error)
                continue
            self._rows_total += run.steps * run.config.batch_rows
            shapes.setdefault(run.shape, []).append(run)
        # In step with each other, so that SAEs of all shapes share what a stream holds.
        self.trainers = [
            Trainer(
                runs,
                compute=getattr(torch, resolve_dtype(shape.precision, device.type)),
                device=device,
                group=group,
            )
            for shape, runs in shapes.items()
        ]

    def run(self) -> None:
        """Step every SAE until it ends; write each as soon as it has."""
        saved = told = time.monotonic()
        self._tell()
        seconds = min((member.training.checkpoint_seconds for member in self.members.values()), default=0.0)
        self._finish()
        while any(trainer.runs for trainer in self.trainers):
            self._rehearse()
            for trainer in self.trainers:
                if trainer.runs:
                    for name, error in trainer.step().items():
                        self._failure(name, error)
            now = time.monotonic()
            if all(trainer.looked for trainer in self.trainers):
                self._finish()
                if self.stop.asked:
                    self._save()
                    log.info("stopped; the next run goes on from the checkpoints")
                    sys.exit(_TERMINATED)
                if now - saved >= seconds:
                    self._save()
                    saved = time.monotonic()
            if now - told >= _PROGRESS_SECONDS:
                self._tell()
                told = now

    def _finish(self) -> None:
        """Write the SAEs that did their last step."""
        for trainer in self.trainers:
            for run in trainer.take_finished():
                self._rows_done += run.rows_seen
                if self.group.rank == 0:
                    try:
                        _write(run, trainer, self.members[run.name], processes=self.group.size)
                    except SaeinterpError as error:
                        self._failure(run.name, error)
                        continue
                    self._tell()
                    emit("FINISHED", hookpoint=run.name)

    def _save(self) -> None:
        from saeinterp.sae.checkpoints import save_checkpoint

        if self.group.rank != 0:
            return
        for trainer in self.trainers:
            for run in list(trainer.runs):
                tensors, scalars = run.snapshot()
                folder = self.members[run.name].checkpoints
                save_checkpoint(folder, step=run.step, tensors=tensors, scalars=scalars)

    def _rehearse(self) -> None:
        for trainer in self.trainers:
            for run in list(trainer.runs):
                if self._faults.get(run.name) == run.step:
                    trainer.drop(run)
                    self._failure(
                        run.name,
                        TrainingError(
                            f"rehearsed failure before step {run.step}",
                            field=run.name,
                            next_step=f"run again without {FAULT}; finished layers are not trained again",
                        ),
                    )

    def _failure(self, hookpoint: str, error: SaeinterpError) -> None:
        self.failed = True
        _report(hookpoint, error)

    def _tell(self) -> None:
        if self.group.rank != 0:
            return
        running = [run for trainer in self.trainers for run in trainer.runs]
        rates = [run.timing[-1].rows_per_second for run in running if run.timing]
        emit(
            "PROGRESS",
            rows=self._rows_done + sum(run.rows_seen for run in running),
            total=self._rows_total,
            fvu_heldout={run.name: run.curves[-1].fvu_heldout for run in running if run.curves},
            rows_per_second=round(sum(rates)),
        )


def _sources(job: Job, members: Sequence[Member], group: Group, device: torch.device) -> Callable[[Member], Source]:
    """Makes the source of a member's training rows."""
    from saeinterp.sae.rows import CacheSource, Rows
    from saeinterp.subject import ActivationCache

    if job.text is not None:
        from saeinterp.sae.stream import open_stream

        stream = open_stream(job.text, job.activations, [member.hookpoint for member in members], group, device)
        return lambda member: stream.source(member.hookpoint, seed=member.training.seed)
    # What fits is shared out over the SAEs of this process.
    memory = job.memory_gb * 1e9 / max(len(members), 1)

    def source(member: Member) -> Source:
        rows = Rows(ActivationCache.open(job.activations, member.hookpoint), "train", memory_bytes=memory)
        return CacheSource(rows, seed=member.training.seed)

    return source


def _open(job: Job, member: Member, source: Source, *, processes: int) -> Run:
    """An SAE at its start.

    Raises:
        DataError: Fewer than two held-out rows, or what `Run` refuses.
    """
    from saeinterp.sae.rows import Rows
    from saeinterp.sae.run import Run
    from saeinterp.subject import ActivationCache

    heldout = Rows(ActivationCache.open(job.activations, member.hookpoint), "health", memory_bytes=0)
    if len(heldout) < 2:
        raise DataError(
            f"too few usable rows for held-out FVU (masked: {heldout.masked})",
            field=f"{member.hookpoint}, split health",
            got=len(heldout),
            expected="at least 2",
            next_step="give the health split more text",
        )
    return Run(source, heldout.spread(member.training.eval_rows), member.training, processes=processes)


def _write(run: Run, trainer: Trainer, member: Member, *, processes: int) -> None:
    """The files of the artifact."""
    from saeinterp.sae.curves import write_curves

    run.snapshot()  # refuses weights that are not finite
    run.sae().save(member.out)
    write_curves(member.out / "curves.parquet", run.curves)
    write_curves(member.out / "timing.parquet", run.timing)
    write_json(member.out / "training.json", _summary(run, trainer, processes=processes))


def _summary(run: Run, trainer: Trainer, *, processes: int) -> dict[str, Any]:
    """`training.json`: what was trained on what, and how it ended."""
    config = run.config
    heldout = run.evaluate()
    silent = run.silent()
    dead = silent & ~heldout.fired
    return {
        "hookpoint": run.name,
        "d_in": run.shape.d_in,
        "num_latents": config.num_latents,
        "k": config.k,
        "activation": config.activation,
        "optimizer": config.optimizer,
        "lr": run.peak_lr,
        "steps": run.step,
        "rows_seen": run.rows_seen,
        "rows": run.source.rows,
        "rows_masked": run.source.masked,
        "rows_heldout": len(run.heldout),
        "scale": run.scale,
        "compute": str(trainer.method.compute).removeprefix("torch."),
        "gradients": "dense" if trainer.method.dense else "sparse",
        "kernels": trainer.method.backend,
        "processes": processes,
        "fvu_heldout": heldout.fvu,
        "l0_heldout": heldout.l0,
        # Dead: silent over the last `dead_after_rows` rows of training and over all held-out rows.
        "dead": int(dead.sum()),
        "dead_fraction": float(dead.float().mean()),
        "silent_in_training": int(silent.sum()),
        "silent_heldout": int((~heldout.fired).sum()),
        "revived": sum(row.revived for row in run.curves),
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
