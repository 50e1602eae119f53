"""Training curves of finished SAEs for TensorBoard and Weights & Biases: one run per SAE, x axis the step.

Both are optional packages and write below one folder. The surprising choices: runs are named and numbered by recipe,
so exporting again replaces a run instead of adding to it; TensorBoard files are made from records alone, with wall
times out of the artifact, so equal exports are equal files without a host name in them; and W&B stays offline
unless told otherwise, with everything off that it records of its own accord (git state, code, host, user,
environment, console).
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from calendar import timegm
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import strptime
from typing import Any, Literal, NamedTuple

from saeinterp.artifacts import MANIFEST, Artifact, write_atomic
from saeinterp.errors import ArtifactError, ConfigError, MissingDependencyError
from saeinterp.sae.finished import FinishedSae, read_finished

log = logging.getLogger(__name__)

Target = Literal["tensorboard", "wandb"]
PROJECT = "saeinterp"
EVENTS = "events.out.tfevents.saeinterp"  # TensorBoard reads any file with `tfevents` in its name

TAGS = {
    "fvu/heldout": "fvu_heldout",
    "fvu/train": "fvu_train",
    "l0": "l0",
    "latents/dead": "dead",
    "latents/revived": "revived",
    "aux_loss": "aux_loss",
    "lr": "lr",
    "rows_seen": "rows_seen",
    "rows_per_second": "rows_per_second",
    "seconds": "seconds",
}
"""Curve by column of `curves.parquet` or `timing.parquet`."""
FINAL_TAGS = {
    "final/fvu_heldout": "fvu_heldout",
    "final/l0_heldout": "l0_heldout",
    "final/dead": "dead",
    "final/dead_fraction": "dead_fraction",
    "final/revived": "revived",
}
"""Values of the finished SAE, at its last step, by key of `training.json`."""


class Exported(NamedTuple):
    """One run that was written."""

    run: str
    """Its name: hookpoint and recipe, as in `layers.9-1a2b3c4d`."""
    path: Path
    """TensorBoard's event file, or W&B's local run folder."""
    url: str | None
    """W&B's page of an online run."""


class _Point(NamedTuple):
    step: int
    wall_time: float  # seconds since the epoch
    values: dict[str, float]


def export_curves(
    saes: Sequence[Artifact | str | Path],
    *,
    to: Target,
    folder: str | Path,
    project: str | None = None,
    name: str | None = None,
    offline: bool = True,
) -> tuple[Exported, ...]:
    """Write the curves of finished SAEs, one run each; what an earlier export wrote for the same SAE is replaced.

    Args:
        saes: Artifacts, or their folders.
        to: `tensorboard` writes `<folder>/[<name>/]<run>/events.out.tfevents.saeinterp`, `wandb`
            `<folder>/wandb/offline-run-<time>-<recipe>/` (`run-<time>-<recipe>/` when online).
        folder: Is made where it is missing.
        project: W&B's project; default `saeinterp`.
        name: Of this set of runs: a folder level in TensorBoard, the group in W&B.
        offline: W&B: write files only, for `wandb sync` to upload. False uploads now, with the key that wandb finds in
            its environment variable or in ~/.netrc; it is never read or written here.

    Returns:
        What was written, in the order of `saes`, each SAE once.

    Raises:
        MissingDependencyError: The package behind `to` is not installed.
        ConfigError: No SAE, a name that is no folder name, a W&B option for TensorBoard, or a folder in an artifact.
        DataError: One of `saes` is not a finished SAE.
        ArtifactError: A file of an SAE is damaged, the folder cannot be written, or W&B refuses the run.
    """
    folder = Path(folder).expanduser().absolute()
    if not saes:
        raise ConfigError("nothing to export", field="saes", expected="at least one finished SAE")
    if to not in ("tensorboard", "wandb"):
        raise ConfigError("unknown target", field="to", got=to, expected="tensorboard or wandb")
    if to == "tensorboard" and (project is not None or not offline):
        raise ConfigError("project and offline=False are for W&B only", field="to", got=to, expected="wandb")
    if name is not None and (not name.strip(". ") or {"/", "\\", "\0"} & set(name)):
        raise ConfigError("not a name for a folder", field="name", got=name, expected="one word, such as sweep-1")
    # Read all before writing any: a wrong path should not leave half an export.
    finished = {(sae := read_finished(item)).artifact.hash: sae for item in saes}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if to == "tensorboard":
            return tuple(_to_tensorboard(sae, folder / name if name else folder) for sae in finished.values())
        return tuple(
            _to_wandb(sae, folder, project=project or PROJECT, name=name, offline=offline) for sae in finished.values()
        )
    except OSError as error:
        raise ArtifactError(
            f"cannot write the curves: {error.strerror}",
            field="folder",
            got=str(folder),
            expected="a folder this user may write to, on a disk with space left",
        ) from error


def hyperparameters(sae: FinishedSae) -> dict[str, Any]:
    """What an SAE was trained with and on, as JSON values; no path, host or user name."""
    summary = sae.summary
    used = ("hookpoint", "d_in", "num_latents", "k", "activation", "optimizer", "lr", "steps", "rows", "rows_heldout")
    ran = ("compute", "gradients", "kernels", "processes")
    return {
        "artifact": sae.artifact.id,
        **{field: summary[field] for field in (*used, *ran) if field in summary},
        **{part: value for part, value in sae.manifest["config"].items() if isinstance(value, Mapping)},
        "hardware": sae.manifest["made"].get("hardware", {}),
        "versions": sae.manifest["made"].get("versions", {}),
    }


def _run_name(sae: FinishedSae) -> str:
    return sae.artifact.id.rpartition("/")[2]


def _points(sae: FinishedSae) -> Iterator[_Point]:
    made = sae.manifest["made"]
    ended = timegm(strptime(made["at"], "%Y-%m-%dT%H:%M:%SZ"))
    started = ended - sae.timing[-1]["seconds"]
    last = sae.curves[-1]["step"]
    for curve, timing in zip(sae.curves, sae.timing, strict=True):
        row = {**curve, **timing}
        values = {tag: float(row[column]) for tag, column in TAGS.items()}
        if curve["step"] == last:
            values |= {tag: float(sae.summary[key]) for tag, key in FINAL_TAGS.items() if key in sae.summary}
        yield _Point(int(curve["step"]), started + timing["seconds"], values)


def _to_tensorboard(sae: FinishedSae, folder: Path) -> Exported:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise _missing("tensorboard", error) from error

    target = folder / _run_name(sae)
    if (target / MANIFEST).exists():
        raise ConfigError(
            "the curves would lie inside an artifact",
            field="folder",
            got=str(folder),
            expected="a folder apart from the artifacts",
        )
    points = list(_points(sae))
    started = points[0].wall_time - sae.timing[0]["seconds"]
    flat = {key: value for key, value in _flat(hyperparameters(sae)) if value is not None}
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
    shown = hparams_pb(flat, trial_id=sae.artifact.hash, start_time_secs=started)
    writer.write(Event(wall_time=started, summary=shown).SerializeToString())
    for step, wall_time, values in points:
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        writer.write(Event(wall_time=wall_time, step=step, summary=Summary(value=scalars)).SerializeToString())
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / EVENTS, buffer.getvalue())
    return Exported(target.name, target / EVENTS, None)


def _to_wandb(sae: FinishedSae, folder: Path, *, project: str, name: str | None, offline: bool) -> Exported:
    # Crash reports of wandb itself would go out even when offline; read when it is imported.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", error) from error

    # A recipe's runs are found by its hash, W&B's run id: locally here, on the server by W&B itself.
    recipe, run_name = sae.artifact.hash, _run_name(sae)
    for earlier in (folder / "wandb").glob(f"*run-*-{recipe}"):
        shutil.rmtree(earlier)
    settings = wandb.Settings(
        mode="offline" if offline else "online",
        root_dir=str(folder),
        reinit="create_new",  # leaves a run of the caller's own alone
        run_group=name,
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
    )
    try:
        with wandb.init(
            project=project, id=recipe, name=run_name, config=hyperparameters(sae), settings=settings
        ) as run:
            for step, _, values in _points(sae):
                run.log(values, step=step)
            path, url = Path(run.dir).parent, None if offline else run.url
    except wandb.errors.Error as error:
        raise ArtifactError(
            f"W&B refuses the run: {error}",
            field=sae.artifact.id,
            next_step="log in with `wandb login`, or export offline and upload later with `wandb sync`",
        ) from error
    return Exported(run_name, path, url)


def _missing(package: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"the package {package} cannot be imported: {error}",
        field="to",
        got=package,
        next_step=f"pip install {package} (with saeinterp: pip install 'saeinterp[{package}]')",
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `training.k`; what is neither number nor text becomes JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, bool | int | float | str):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", json.dumps(value)
