"""The step that trains one SAE: builds a job, runs it in a process of its own, makes the artifact of what it wrote.

One process runs under `accelerate launch`, several under torchrun (`accelerate launch --cpu --num_processes 2`
quietly runs one). The surprising choice: nothing heavy is imported here, so planning a run never loads torch.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, read_json, write_json
from saeinterp.config import LaunchConfig, TrainingConfig, recipe_of
from saeinterp.errors import ArtifactError, ConfigError, DamagedArtifactError, DataError, TrainingError
from saeinterp.progress import Progress, silent
from saeinterp.sae.child import Event, run_child

log = logging.getLogger(__name__)

VERSION = 1
_MODULE = "saeinterp.sae.training"
_ERRORS = {kind.__name__: kind for kind in (ArtifactError, ConfigError, DamagedArtifactError, DataError, TrainingError)}

Launcher = Callable[[Path, LaunchConfig], list[str]]
"""Turns the job file and the launch configuration into a command line."""


def launch_command(job: Path, launch: LaunchConfig) -> list[str]:
    """`accelerate launch` for one process, torchrun on this machine for several.

    Every option is given, and an own (empty) configuration file, so that a user's `accelerate config` for other
    work has no say here.
    """
    run = ["-m", _MODULE, "--job", str(job)]
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
    activations: Ref, *, hookpoint: str, config: TrainingConfig, launch: LaunchConfig | None = None
) -> Recipe:
    """The recipe of one hookpoint's SAE."""
    settings = {
        "hookpoint": hookpoint,
        "training": recipe_of(config),
        "launch": recipe_of(launch or LaunchConfig()),
    }
    return Recipe("sae", hookpoint, VERSION, settings, (activations,))


def train_sae(
    activations: Artifact,
    *,
    hookpoint: str,
    config: TrainingConfig,
    launch: LaunchConfig | None = None,
    store: ArtifactStore,
    launcher: Launcher = launch_command,
    progress: Progress | None = None,
) -> Artifact:
    """Train one SAE in a process of its own; after a kill, go on from the last checkpoint, to the same bytes.

    The artifact (kind `sae`) holds `cfg.json` and `sae.safetensors` (sparsify's layout, see `TopKSae`),
    `curves.parquet` (`CurveRow`), `training.json` and `timing.parquet`. Training takes the usable rows of split
    `train`, held-out FVU those of split `health`.

    Args:
        activations: Holds `hookpoint` and both splits.
        launcher: Makes the command line; the default suits one machine.
        progress: Called with rows done, rows in all and `rows`.

    Raises:
        TrainingError: Training diverged, died, or took longer than `launch.timeout_minutes`; the last lines of its
            output are in the message.
        DataError: There are fewer usable rows than one batch, or they have no variance.
        ConfigError: The activations lack this hookpoint or split.
    """
    launch = launch or LaunchConfig()
    recipe = train_sae_recipe(activations, hookpoint=hookpoint, config=config, launch=launch)

    def write(space: Workspace) -> None:
        job = space.work / "job.json"
        write_json(
            job,
            {
                "activations": activations.model_dump(mode="json"),
                "hookpoint": hookpoint,
                "training": config.model_dump(mode="json"),
                "threads": threads(launch),
                "memory_gb": launch.memory_gb,
                "out": str(space.out),
                "checkpoints": str(space.work / "checkpoints"),
            },
        )
        _run(launcher(job, launch), hookpoint=hookpoint, launch=launch, progress=progress or silent)
        summary = read_json(space.out / "training.json")
        space.counts = {name: summary[name] for name in ("rows", "rows_seen", "steps", "num_latents", "dead")}

    return store.build(recipe, write)


def _run(command: list[str], *, hookpoint: str, launch: LaunchConfig, progress: Progress) -> None:
    """Run one training command; raises what it reported."""
    failures: list[dict[str, Any]] = []

    def on_event(event: Event, values: dict[str, Any]) -> None:
        if event == "PROGRESS":
            progress(values["rows"], values["total"], "rows")
        elif event == "FAILED":
            failures.append(values)

    code, tail = run_child(
        command,
        env=_environment(os.environ, launch),
        timeout=60 * launch.timeout_minutes,
        on_event=on_event,
        on_line=lambda line: log.info("%s: %s", hookpoint, line),
    )
    if failures:
        failure = failures[0]
        kind = _ERRORS.get(failure.pop("error"), TrainingError)
        raise kind(failure.pop("problem"), **failure)
    if code is None:
        raise TrainingError(
            f"training took longer than {launch.timeout_minutes:g} minutes and was stopped",
            field=f"{hookpoint}, launch.timeout_minutes",
            next_step="raise it and run again: training goes on from the last checkpoint",
        )
    if code != 0:
        ended = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        raise TrainingError(
            f"the training process ended {ended}; its last lines:\n" + "\n".join(f"    {line}" for line in tail),
            field=hookpoint,
            next_step="run again: training goes on from the last checkpoint; if it was killed, check free memory",
        )


def _environment(inherited: Mapping[str, str], launch: LaunchConfig) -> dict[str, str]:
    count = str(threads(launch))
    return {
        # Threads that wait sleep soon instead of spinning: 5% slower on an idle machine, three times faster on one
        # whose cores are shared.
        "GOMP_SPINCOUNT": "1000",
        **inherited,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        # The same number of threads in every product, whatever else runs: bits depend on it.
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
