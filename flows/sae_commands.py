"""`saeinterp sae`: look at trained SAEs and hand them to other tools. No flow runs and Prefect is not loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

from flows.locating import locate
from flows.terminal import Root, guard, out, size_text
from saeinterp.artifacts import MANIFEST, ArtifactStore
from saeinterp.errors import ConfigError
from saeinterp.sae.export import PROJECT, Target, export_curves
from saeinterp.sae.finished import FinishedSae, adopted_from, read_finished

app = typer.Typer(
    name="sae",
    help="Look at trained SAEs and hand them and their curves to other tools.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_DIR = "Folder of a trained SAE, or its id below the artifact folder, such as sae/layers.9-1a2b3c4d."


@app.command("show")
def show(sae: Annotated[str, typer.Argument(help=_DIR, metavar="DIR")], root: Root = None) -> None:
    """Show one SAE on one screen: shape, FVU, L0, dead latents, steps, speed, hardware, files."""

    def work() -> None:
        folder = _sae(sae, ArtifactStore(root))
        lines = _finished(read_finished(folder)) if (folder / MANIFEST).exists() else _foreign(folder)
        for name, text in lines:
            out.print(f"{name:<10} {text}" if name else text, markup=False)

    guard(work)


@app.command("export-curves")
def export(
    saes: Annotated[list[str], typer.Argument(help=_DIR, metavar="DIR...")],
    to: Annotated[Target, typer.Option("--to", help="Where the curves are to be read.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder to write to; made where it is missing.", metavar="FOLDER")
    ],
    project: Annotated[
        str | None, typer.Option("--project", help=f"W&B project; default is {PROJECT}.", metavar="NAME")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of these runs: TensorBoard's folder, W&B's group.", metavar="NAME"),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Upload to W&B now; otherwise only files are written.")
    ] = False,
    root: Root = None,
) -> None:
    """Write training curves as one run per SAE; exporting again replaces them.

    W&B finds its key by itself, in WANDB_API_KEY or where `wandb login` put it.
    """

    def work() -> None:
        store = ArtifactStore(root)
        folders = [_sae(item, store) for item in saes]
        written = export_curves(folders, to=to, folder=folder, project=project, name=name, offline=not online)
        for run in written:
            out.print(run.url or str(run.path), markup=False)
        if to == "tensorboard":
            out.print(f"look at them: tensorboard --logdir {quote(str(folder))}", markup=False)
        elif not online:
            out.print(f"upload them: wandb sync {' '.join(quote(str(run.path)) for run in written)}", markup=False)

    guard(work)


@app.command("convert")
def convert_folder(
    source: Annotated[str, typer.Argument(help=_DIR + " Folders of sparsify and SAELens too.", metavar="SRC")],
    target: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.", metavar="DST")],
    to: Annotated[
        Literal["sae-lens", "sparsify"],
        typer.Option("--to", help="Layout to write; sparsify's is saeinterp's own too."),
    ],
    hookpoint: Annotated[
        str | None,
        typer.Option("--hookpoint", help="For SAELens; default is the one SRC records.", metavar="NAME"),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For SAELens: the model, as it should load it.", metavar="NAME")
    ] = None,
    root: Root = None,
) -> None:
    """Write an SAE as SAELens or sparsify reads it; it encodes and decodes as before."""

    def work() -> None:
        folder = _sae(source, ArtifactStore(root))
        if to != "sae-lens" and (hookpoint or model):
            raise ConfigError("--hookpoint and --model are for SAELens only", field="--to", got=to, expected="sae-lens")
        from saeinterp.sae.formats import convert

        written = target.expanduser()
        sae = convert(folder, written, to, hookpoint=hookpoint, model_name=model)
        shape = _shape(vars(sae) | {"num_latents": sae.num_latents, "d_in": sae.d_in})
        out.print(f"{written.absolute()}: {shape}, as {to} reads it", markup=False)

    guard(work)


def _sae(text: str, store: ArtifactStore) -> Path:
    return locate(text, store, kinds=("sae",), what="SAE")


def _finished(sae: FinishedSae) -> Iterator[tuple[str, str]]:
    """The screen of an SAE of ours, as pairs of a label and a line."""
    from saeinterp.hardware import describe

    summary, made, path = sae.summary, sae.manifest["made"], sae.artifact.path
    files = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    if origin := adopted_from(summary):
        yield from _adopted(sae, origin, files)
        return
    seconds = sae.timing[-1]["seconds"]
    masked = sum(summary["rows_masked"].values())
    yield "", sae.artifact.id
    yield "path", str(path)
    yield "hookpoint", summary["hookpoint"]
    yield "shape", _shape(summary)
    yield (
        "FVU",
        f"{summary['fvu_heldout']:.4f} on {summary['rows_heldout']:,} held-out rows, "
        f"{sae.curves[-1]['fvu_train']:.4f} on the last training batches",
    )
    yield "L0", f"{summary['l0_heldout']:.2f} on held-out rows, {sae.curves[-1]['l0']:.2f} on the last training batches"
    yield (
        "dead",
        f"{summary['dead']:,} of {summary['num_latents']:,} latents ({summary['dead_fraction']:.1%}); "
        f"{summary['revived']:,} revived in training",
    )
    rows = f"{summary['rows_seen']:,} rows ({summary['rows']:,} different, {masked:,} masked)"
    yield "training", f"{summary['steps']:,} steps, {rows}, {summary['optimizer']}, peak lr {summary['lr']:.3g}"
    yield "speed", f"{summary['rows_seen'] / max(seconds, 1e-9):,.0f} rows/s over {seconds:,.1f} s"
    processes = summary["processes"]
    kernels = f", {summary['kernels']} kernels" if "kernels" in summary else ""
    yield (
        "precision",
        f"{summary['compute']} products, {summary['gradients']} gradients{kernels}, "
        f"{processes} process{'es' if processes > 1 else ''}",
    )
    yield "hardware", describe(made["hardware"]) if "hardware" in made else f"not recorded ({made['platform']})"
    versions = ", ".join(f"{name} {made['versions'].get(name)}" for name in ("saeinterp", "torch"))
    yield "made", f"{made['at']} on {made['host']} with {versions}"
    yield "files", _files(files)


def _adopted(sae: FinishedSae, origin: str, files: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The screen of an SAE that was taken over."""
    summary, made = sae.summary, sae.manifest["made"]
    yield "", sae.artifact.id
    yield "path", str(sae.artifact.location)
    yield "hookpoint", summary["hookpoint"]
    yield "shape", _shape(summary)
    yield "weights", summary["weights"]
    yield "training", f"unknown: trained elsewhere, taken over from a folder of {summary['adopted']['layout']}'s layout"
    yield "origin", origin
    yield "made", f"{made['at']} on {made['host']} with saeinterp {made['versions'].get('saeinterp')}"
    yield "files", _files(files)


def _foreign(folder: Path) -> Iterator[tuple[str, str]]:
    """The screen of a folder without a manifest: converted, or written by another tool."""
    from saeinterp.sae import TopKSae

    sae = TopKSae.load(folder)
    yield "path", str(folder.absolute())
    yield "shape", _shape(vars(sae) | {"num_latents": sae.num_latents, "d_in": sae.d_in})
    yield "weights", str(sae.W_enc.dtype).removeprefix("torch.")
    yield "training", f"unknown: no {MANIFEST}, so not an artifact of a training run here"


def _shape(values: dict[str, Any]) -> str:
    return f"{values['num_latents']:,} latents × {values['d_in']:,}, k = {values['k']}, {values['activation']}"


def _files(files: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size_text(size)}" for name, size in files.items())
