"""Training curves of finished SAEs for TensorBoard and Weights & Biases: one run per SAE, x axis the step.

Both are optional packages and write below one folder. The surprising choices: runs are named and numbered by recipe,
so exporting again replaces a run instead of adding to it; and TensorBoard files are made from records alone, with
wall times out of the artifact, so equal exports are equal files without a host name in them.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import sys
import tempfile
from calendar import timegm
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import strptime
from typing import Any, Literal, NamedTuple

from saeinterp.artifacts import MANIFEST, Artifact, write_atomic, write_json
from saeinterp.child import Event, run_child
from saeinterp.errors import ArtifactError, ConfigError, DataError, MissingDependencyError
from saeinterp.sae.finished import FinishedSae, read_finished
from saeinterp.sae.wandb_writer import WandbJob, WandbRun

log = logging.getLogger(__name__)

Target = Literal["tensorboard", "wandb"]
PROJECT = "saeinterp"
_WANDB_SECONDS = 600.0  # a run, upload included
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
    for sae in finished.values():
        if not sae.curves:
            raise DataError(
                "an SAE that was trained elsewhere has no curves",
                field=sae.artifact.id,
                next_step="leave it out, or look where it was trained",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if to == "tensorboard":
            return tuple(_to_tensorboard(sae, folder / name if name else folder) for sae in finished.values())
        saes_once = tuple(finished.values())
        return _to_wandb(saes_once, folder, project=project or PROJECT, name=name, offline=offline)
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


def _to_wandb(
    saes: Sequence[FinishedSae], folder: Path, *, project: str, name: str | None, offline: bool
) -> tuple[Exported, ...]:
    if importlib.util.find_spec("wandb") is None:
        raise _missing("wandb")
    names = {sae.artifact.hash: _run_name(sae) for sae in saes}
    runs = [
        WandbRun(
            id=sae.artifact.hash,
            name=_run_name(sae),
            config=hyperparameters(sae),
            points=[(point.step, point.values) for point in _points(sae)],
        )
        for sae in saes
    ]
    job = WandbJob(folder=folder, project=project, group=name, offline=offline, runs=runs)
    written: list[Exported] = []
    problems: list[str] = []

    def on_event(event: Event, values: dict[str, Any]) -> None:
        if event == "FINISHED":
            written.append(Exported(names[values["id"]], Path(values["path"]), values["url"]))
        elif event == "FAILED":
            problems.append(values["problem"])

    with tempfile.TemporaryDirectory(prefix="saeinterp-") as place:
        path = Path(place) / "job.json"
        write_json(path, job.model_dump(mode="json"))
        code, tail = run_child(
            [sys.executable, "-m", "saeinterp.sae.wandb_writer", "--job", str(path)],
            # W&B reports its own crashes to its makers, offline too, unless told not to.
            env={"WANDB_ERROR_REPORTING": "false", **os.environ},
            timeout=_WANDB_SECONDS * len(runs),
            on_event=on_event,
            on_line=lambda line: log.info("wandb: %s", line),
        )
    if problems or len(written) < len(runs):
        ended = "it took too long" if code is None else f"its process ended with {code}: " + " | ".join(tail[-3:])
        raise ArtifactError(
            f"W&B did not take the run: {problems[0] if problems else ended}",
            field=saes[len(written)].artifact.id,
            next_step="log in with `wandb login` and run again, or export offline and upload later with `wandb sync`"
            if not offline
            else "see the message, then run again",
        )
    return tuple(written)


def _missing(package: str, error: ImportError | None = None) -> MissingDependencyError:
    return MissingDependencyError(
        f"the package {package} cannot be imported: {error}" if error else f"the package {package} is not installed",
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
