"""The step that takes over an SAE trained elsewhere: a folder of sparsify, SAELens or ours becomes an artifact.

The surprising choice: the recipe holds the SHA-256 of the files and never their place, so a folder that was moved or
copied is the same SAE; and it has no inputs, since nothing is known of the text that the SAE was trained on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Workspace, file_sha256, write_json
from saeinterp.errors import DataError
from saeinterp.sae.finished import ADOPTED, SUMMARY

VERSION = 1
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def adopt_sae_recipe(folder: str | Path, *, hookpoint: str, d_in: int | None = None) -> Recipe:
    """The recipe of an SAE that exists; see `adopt_sae`. Reads and hashes its files, so what is no SAE is refused."""
    folder = Path(folder).expanduser()
    with _named(hookpoint):
        described = _described(folder)
        if d_in is not None and described["d_in"] != d_in:
            raise DataError(
                "this SAE is of another width than the model under study",
                field=str(folder),
                got=f"d_in = {described['d_in']}",
                expected=f"d_in = {d_in}",
                next_step="name an SAE of this model and hookpoint",
            )
    return Recipe("sae", hookpoint, VERSION, {"hookpoint": hookpoint, ADOPTED: described})


def adopt_sae(folder: str | Path, *, hookpoint: str, d_in: int | None = None, store: ArtifactStore) -> Artifact:
    """Make an artifact of an SAE that sparsify, SAELens or saeinterp saved.

    The artifact (kind `sae`) holds `cfg.json` and `sae.safetensors` in sparsify's layout, weights as stored (see
    `formats.load_sae_lens` for what SAELens' options become), and a `training.json` that says where it comes from. It
    has no curves. Equal files at one hookpoint are one artifact, wherever they lie.

    Args:
        folder: Holds `cfg.json` with `sae.safetensors` or `sae_weights.safetensors`.
        hookpoint: Where it belongs, such as `layers.4`.
        d_in: Width of the hookpoint, where it is known.

    Raises:
        DataError: There is no such folder or no SAE in it, it is pickled, of a kind that is no TopK autoencoder, of
            another width, or has weights that are not finite.
    """
    folder = Path(folder).expanduser()
    recipe = adopt_sae_recipe(folder, hookpoint=hookpoint, d_in=d_in)

    def write(space: Workspace) -> None:
        from saeinterp.sae.topk import TopKSae

        with _named(hookpoint):
            sae = TopKSae.load(folder)
            _refuse_not_finite(sae, folder)
        sae.save(space.out)
        adopted = recipe.config[ADOPTED]
        shape = {name: adopted[name] for name in ("d_in", "num_latents", "k", "activation")}
        origin = {name: adopted[name] for name in ("layout", "files")}
        weights = str(sae.W_enc.dtype).removeprefix("torch.")
        write_json(space.out / SUMMARY, {"hookpoint": hookpoint, **shape, "weights": weights, ADOPTED: origin})
        space.counts = {"num_latents": sae.num_latents}

    return store.build(recipe, write)


def _described(folder: Path) -> dict[str, Any]:
    """Layout, shape and SHA-256 sums of an SAE's files; its weights are not loaded."""
    from saeinterp.sae.formats import SAE_LENS_WEIGHTS, detect, read_options
    from saeinterp.sae.topk import CONFIG, WEIGHTS, read_config

    _refuse_pickles(folder, expected=(WEIGHTS, SAE_LENS_WEIGHTS))
    layout = detect(folder)
    shape: dict[str, Any]
    if layout == "sae-lens":
        options = read_options(folder)
        shape = {name: getattr(options, name) for name in ("d_in", "num_latents", "k", "activation")}
    else:
        config = read_config(folder)
        shape = {name: config[name] for name in ("d_in", "num_latents", "k", "activation")}
    names = (CONFIG, SAE_LENS_WEIGHTS if layout == "sae-lens" else WEIGHTS)
    return {"layout": layout, "files": {name: file_sha256(folder / name) for name in names}, **shape}


def _refuse_pickles(folder: Path, *, expected: tuple[str, ...]) -> None:
    """Refuse a folder whose only weights are pickled, in words of their own: `detect` would call them missing."""
    if not folder.is_dir() or any((folder / name).is_file() for name in expected):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickled:
        raise DataError(
            "pickled weights are not read: they can run code",
            field=str(folder),
            got=", ".join(pickled),
            expected=" or ".join(expected),
            next_step="save the SAE as safetensors with the library that wrote it",
        )


def _refuse_not_finite(sae: Any, folder: Path) -> None:
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        if not bool(getattr(sae, name).isfinite().all()):
            raise DataError(
                f"{name} holds NaN or infinite values",
                field=str(folder),
                next_step="save the SAE again from a run that did not diverge",
            )


@contextlib.contextmanager
def _named(hookpoint: str) -> Iterator[None]:
    """Errors of a folder, with the field of the configuration that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(
            error.problem,
            field=f"training.saes, {hookpoint}: {error.field}",
            got=error.got,
            expected=error.expected,
            next_step=error.next_step,
        ) from error
