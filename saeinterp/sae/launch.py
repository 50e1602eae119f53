"""The step that trains SAEs: builds a job, runs it in a process of its own, makes an artifact of each SAE it wrote.

One process runs under `accelerate launch`, several under torchrun (`accelerate launch --cpu --num_processes 2`
quietly runs one). The surprising choice: nothing heavy is imported here, so planning a run never loads torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saeinterp.artifacts import Artifact, ArtifactStore, Build, Recipe, Ref, read_json, write_json
from saeinterp.child import Event, run_child
from saeinterp.config import CaptureConfig, LaunchConfig, Placement, TrainingConfig, recipe_of
from saeinterp.errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    DamagedArtifactError,
    DataError,
    SaeinterpError,
    SubjectError,
    TrainingError,
)
from saeinterp.progress import Progress, silent
from saeinterp.sae.job import Job, Member, Text

log = logging.getLogger(__name__)

VERSION = 2
_MODULE = "saeinterp.sae.training"
_KINDS = (ArtifactError, BudgetError, ConfigError, DamagedArtifactError, DataError, SubjectError, TrainingError)
_ERRORS: dict[str, type[SaeinterpError]] = {kind.__name__: kind for kind in _KINDS}

Launcher = Callable[[Path, LaunchConfig], list[str]]
"""Turns the job file and the launch configuration into a command line."""


class TrainedLayers(NamedTuple):
    """What became of each hookpoint."""

    saes: dict[str, Artifact]
    """The finished SAEs by hookpoint."""
    failures: dict[str, SaeinterpError]
    """The error of each hookpoint that failed."""


def launch_command(job: Path, launch: LaunchConfig) -> list[str]:
    """`accelerate launch` for one process, torchrun on this machine for several, `launch.command` where there is one.

    Every option is given, and an own (empty) configuration file, so that a user's `accelerate config` for other
    work has no say here.
    """
    run = ["-m", _MODULE, "--job", str(job)]
    if launch.command:
        return [*launch.command, *run]
    if launch.processes > 1:
        # --standalone finds a free port by itself.
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        return [*torchrun, "--nproc_per_node", str(launch.processes), *run]
    config = job.with_name("accelerate.yaml")
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\n", encoding="utf-8")
    options = {
        "--config_file": str(config),
        "--num_processes": "1",
        "--num_machines": "1",
        "--mixed_precision": "no",
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": str(threads(launch)),
    }
    flat = [text for option in options.items() for text in option]
    return [sys.executable, "-m", "accelerate.commands.launch", *flat, *run]


def threads(launch: LaunchConfig) -> int:
    """CPU threads of one training process: as configured, else the cores shared out over layers and processes."""
    if launch.threads is not None:
        return launch.threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // (launch.parallel * launch.processes))


def train_sae_recipe(
    activations: Ref,
    *,
    hookpoint: str,
    config: TrainingConfig,
    launch: LaunchConfig | None = None,
    subject: Ref | None = None,
    corpus: Ref | None = None,
    capture: CaptureConfig | None = None,
) -> Recipe:
    """The recipe of one hookpoint's SAE; see `train_saes` for the arguments.

    Raises:
        ConfigError: Only some of `subject`, `corpus` and `capture` are given, or `config.saes` names this hookpoint.
    """
    if hookpoint in config.saes:
        raise ConfigError(
            "this layer's SAE exists and is not trained",
            field=f"training.saes, {hookpoint}",
            got=config.saes[hookpoint],
            next_step="take it over with adopt_sae, or leave it out of saes",
        )
    launch = launch or LaunchConfig()
    # Whole SAEs dealt out over processes are trained as by one.
    processes = launch.processes if launch.spread == "rows" else 1
    settings: dict[str, Any] = {
        "hookpoint": hookpoint,
        "training": recipe_of(config.at(hookpoint)),
        "launch": {"processes": processes, "threads": launch.threads},
    }
    if subject is None or corpus is None or capture is None:
        if not subject is corpus is capture is None:
            raise ConfigError("streaming needs subject, corpus and capture", field="train_saes")
        return Recipe("sae", hookpoint, VERSION, settings, (activations,))
    wanted = {"buffer_rows", "batch_contexts", "dtype"}
    settings["stream"] = {name: value for name, value in capture.model_dump(mode="json").items() if name in wanted}
    return Recipe("sae", hookpoint, VERSION, settings, (activations, subject, corpus))


def train_sae(activations: Artifact, *, hookpoint: str, **arguments: Any) -> Artifact:
    """Train the SAE of one hookpoint: `train_saes` of one, its error raised."""
    trained = train_saes(activations, hookpoints=(hookpoint,), **arguments)
    for error in trained.failures.values():
        raise error
    return trained.saes[hookpoint]


def train_saes(
    activations: Artifact,
    *,
    hookpoints: Sequence[str],
    config: TrainingConfig,
    launch: LaunchConfig | None = None,
    subject: Artifact | None = None,
    corpus: Artifact | None = None,
    capture: CaptureConfig | None = None,
    device: str | Placement = "auto",
    store: ArtifactStore,
    launcher: Launcher = launch_command,
    visible: str | None = None,
    progress: Progress | None = None,
) -> TrainedLayers:
    """Train the SAEs of several hookpoints in processes of their own; call again to train only what failed.

    `launch.together` of them share a process; those of one shape are trained there as one batched problem, each to the
    result it would have alone (on CPUs to the same bytes). After a kill each goes on from its last checkpoint, to the
    same bytes. Each artifact (kind `sae`) holds `cfg.json` and `sae.safetensors` (sparsify's layout, see `TopKSae`),
    `curves.parquet` (`CurveRow`), `training.json` and `timing.parquet`, and appears as soon as its SAE is done.

    Args:
        activations: Holds every hookpoint. Its split `health` gives the held-out FVU, its split `train` the rows,
            unless they are streamed.
        hookpoints: Names in the cache, such as `layers.5`.
        config: Of all SAEs; `overrides` says where one differs.
        subject: Given with `corpus` and `capture`: training rows come from the running model, through a mixing buffer.
        corpus: Whose split `train` is streamed.
        capture: How the model is run.
        device: Of the running model.
        launcher: Makes the command line; the default suits one machine.
        visible: The GPUs that the processes see (`CUDA_VISIBLE_DEVICES`); None leaves what they inherit.
        progress: Called with rows done, rows in all and `rows`.

    Returns:
        Finished SAEs, and errors: `TrainingError` when training diverged, died or took longer than
        `launch.timeout_minutes`; `DataError` for too few or unfit rows; `ConfigError` when the activations lack a
        hookpoint or split.
    """
    launch = launch or LaunchConfig()
    text = None
    if subject is not None and corpus is not None and capture is not None:
        text = Text(subject=subject, corpus=corpus, capture=capture, device=device)
    together = launch.together or (len(hookpoints) if text else 1)
    saes: dict[str, Artifact] = {}
    failures: dict[str, SaeinterpError] = {}
    for start in range(0, len(hookpoints), together):
        recipes = {
            name: train_sae_recipe(
                activations,
                hookpoint=name,
                config=config,
                launch=launch,
                subject=subject,
                corpus=corpus,
                capture=capture,
            )
            for name in hookpoints[start : start + together]
        }
        with contextlib.ExitStack() as stack:
            builds = {name: stack.enter_context(store.open(recipe)) for name, recipe in recipes.items()}
            missing = {name: build for name, build in builds.items() if build.artifact is None}
            if missing:
                job = _job(activations, text, missing, config=config, launch=launch)
                failures.update(
                    _run(job, missing, launch=launch, launcher=launcher, visible=visible, progress=progress or silent)
                )
            saes.update({name: build.artifact for name, build in builds.items() if build.artifact is not None})
    for name, error in failures.items():
        log.error("%s failed: %s", name, error)
    return TrainedLayers(saes, failures)


def _job(
    activations: Artifact,
    text: Text | None,
    builds: Mapping[str, Build],
    *,
    config: TrainingConfig,
    launch: LaunchConfig,
) -> Job:
    members = [
        Member(
            hookpoint=name,
            training=config.at(name),
            out=build.space.out,
            checkpoints=build.space.work / "checkpoints",
        )
        for name, build in builds.items()
    ]
    return Job(
        members=tuple(members),
        activations=activations,
        text=text,
        processes=launch.processes,
        spread=launch.spread,
        threads=threads(launch),
        memory_gb=launch.memory_gb,
    )


def _run(
    job: Job,
    builds: Mapping[str, Build],
    *,
    launch: LaunchConfig,
    launcher: Launcher,
    visible: str | None,
    progress: Progress,
) -> dict[str, SaeinterpError]:
    """Run one job, publish what it finishes; returns the error of each SAE that it did not finish."""
    names = ", ".join(builds)
    failures: dict[str, SaeinterpError] = {}
    path = next(iter(builds.values())).space.work / "job.json"
    write_json(path, job.model_dump(mode="json"))

    def on_event(event: Event, values: dict[str, Any]) -> None:
        if event == "PROGRESS":
            progress(values["rows"], values["total"], "rows")
        elif event == "FINISHED":
            _publish(builds[values["hookpoint"]])
        elif event == "FAILED":
            name = values.pop("hookpoint")
            kind = _ERRORS.get(values.pop("error"), TrainingError)
            error = kind(values.pop("problem"), **values)
            for hookpoint in [name] if name else builds:
                failures.setdefault(hookpoint, error)

    code, tail = run_child(
        launcher(path, launch),
        env=environment(os.environ, launch, visible),
        timeout=60 * launch.timeout_minutes,
        on_event=on_event,
        on_line=lambda line: log.info("%s: %s", names, line),
    )
    for name, build in builds.items():
        if build.artifact is not None or name in failures:
            continue
        if code == 0 and (build.space.out / "training.json").exists():
            # By a process whose output went elsewhere: on another machine, started by hand.
            _publish(build)
        else:
            failures[name] = _ended(name, code, tail, launch)
    return failures


def _publish(build: Build) -> None:
    summary = read_json(build.space.out / "training.json")
    build.space.counts = {name: summary[name] for name in ("rows", "rows_seen", "steps", "num_latents", "dead")}
    build.publish()


def _ended(hookpoint: str, code: int | None, tail: Sequence[str], launch: LaunchConfig) -> TrainingError:
    """The error of an SAE whose process ended before it did."""
    if code is None:
        return TrainingError(
            f"training took longer than {launch.timeout_minutes:g} minutes and was stopped",
            field=f"{hookpoint}, launch.timeout_minutes",
            next_step="raise it and run again: training goes on from the last checkpoint",
        )
    ended = f"by signal {-code}" if code < 0 else f"with exit status {code}"
    return TrainingError(
        f"the training process ended {ended}; its last lines:\n" + "\n".join(f"    {line}" for line in tail),
        field=hookpoint,
        next_step="run again: training goes on from the last checkpoint; if it was killed, check free memory",
    )


def environment(inherited: Mapping[str, str], launch: LaunchConfig, visible: str | None) -> dict[str, str]:
    """Variables of a training process: the inherited ones, and those that speed and bits depend on."""
    count = str(threads(launch))
    return {
        # Threads that wait sleep soon instead of spinning: 5% slower on an idle machine, three times faster on one
        # whose cores are shared.
        "GOMP_SPINCOUNT": "1000",
        # glibc gives large buffers back to the system and takes them again at every step, a page fault per 4 KiB.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        **inherited,
        **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        # The same number of threads in every product, whatever else runs: bits depend on it.
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
