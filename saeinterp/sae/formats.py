"""SAELens folders in and out, and conversion between them and sparsify's.

Follows sae-lens 6.54: `cfg.json` with `architecture` `topk` or `abstopk`, and `sae_weights.safetensors` whose `W_enc`
is `[d, M]`. What a `TopKSae` cannot mean is refused rather than approximated. The surprising choice: two of SAELens'
options are folded into the weights on the way in, in float64, and such an SAE is float32 from then on even where it
was stored in bfloat16: rounding a folded bias that coarsely would change which latents are active.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeinterp.artifacts import MANIFEST, write_json
from saeinterp.errors import ConfigError, DataError
from saeinterp.sae import topk
from saeinterp.sae.kernels import Activation
from saeinterp.sae.topk import CONFIG, TopKSae

SAE_LENS_WEIGHTS = "sae_weights.safetensors"
SAE_LENS_VERSION = "6.54.12"  # of the layout; SAELens reads a folder without one as a layout before 6.0
Format = Literal["sparsify", "sae-lens"]

_ARCHITECTURES: dict[str, Activation] = {"topk": "topk", "abstopk": "abs_topk"}
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")
_IN_SAE_LENS = "open it in SAELens, fold or undo this there, and save it again; or train the SAE here"


class Options(NamedTuple):
    """What `cfg.json` says of an SAE that can be represented."""

    d_in: int
    num_latents: int
    k: int
    activation: Activation
    dtype: torch.dtype
    centres: bool
    """`apply_b_dec_to_input`: whether `b_dec` is subtracted before encoding."""
    rescales: bool
    """`rescale_acts_by_decoder_norm`: whether activations are in units of their decoder row's norm."""


def detect(folder: str | Path) -> Format:
    """Which kind of SAE folder this is, by the name of its weights file.

    Raises:
        DataError: It holds neither file, or both.
    """
    folder = Path(folder)
    found: dict[Format, bool] = {
        "sparsify": (folder / topk.WEIGHTS).is_file(),
        "sae-lens": (folder / SAE_LENS_WEIGHTS).is_file(),
    }
    if all(found.values()):
        raise DataError(
            f"{topk.WEIGHTS} and {SAE_LENS_WEIGHTS} lie in one folder, but {CONFIG} can describe only one of them",
            field=str(folder),
            next_step="move one of them to a folder of its own",
        )
    if not any(found.values()):
        is_there = folder.is_dir()
        missing = "" if (folder / CONFIG).is_file() else f" and no {CONFIG}"
        raise DataError(
            f"not an SAE that can be loaded: no {topk.WEIGHTS}, no {SAE_LENS_WEIGHTS}{missing}",
            field=str(folder),
            got=sorted(path.name for path in folder.iterdir())[:20] if is_there else "no such folder",
            expected=f"{CONFIG} with {topk.WEIGHTS} (saeinterp, sparsify) or with {SAE_LENS_WEIGHTS} (SAELens)",
            next_step="check the path, or train the SAE again",
        )
    return "sparsify" if found["sparsify"] else "sae-lens"


def save_sae_lens(
    sae: TopKSae, folder: str | Path, *, hookpoint: str | None = None, model_name: str | None = None
) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` for `sae_lens.SAE.load_from_disk`.

    Weights keep their type and their bits; `W_enc` is transposed to `[d, M]`. `abs_topk` becomes SAELens' `abstopk`,
    which versions before 6.54 may refuse to load.

    Args:
        sae: What to write.
        folder: Is made where it is missing.
        hookpoint: Where the SAE was trained, such as `layers.9`. A block also gets SAELens' name for its output,
            `blocks.9.hook_resid_post`; other modules have no exact counterpart there.
        model_name: The model, by the name SAELens should load it by.

    Raises:
        DataError: The folder holds an SAE of sparsify's layout, whose `cfg.json` would be lost, or the weights are of
            a type that SAELens has no name for.
    """
    folder = Path(folder)
    if (folder / topk.WEIGHTS).exists():
        raise DataError(
            f"{topk.WEIGHTS} lies there, and {CONFIG} can describe only one SAE",
            field=str(folder),
            expected="a folder of its own",
            next_step="choose another folder",
        )
    dtype = str(sae.W_enc.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise DataError("SAELens has no such type", field=str(folder), got=dtype, expected=", ".join(_DTYPES))
    metadata: dict[str, Any] = {"sae_lens_version": SAE_LENS_VERSION}
    if model_name is not None:
        metadata["model_name"] = model_name
    if hookpoint is not None:
        metadata["hookpoint"] = hookpoint
        if block := _BLOCK.fullmatch(hookpoint):
            metadata["hook_name"] = f"blocks.{block[1]}.hook_resid_post"
    names = {activation: architecture for architecture, activation in _ARCHITECTURES.items()}
    config = {
        "architecture": names[sae.activation],
        "d_in": sae.d_in,
        "d_sae": sae.num_latents,
        "k": sae.k,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    tensors = {"W_enc": sae.W_enc.T, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    folder.mkdir(parents=True, exist_ok=True)
    # cfg.json last: a folder without it is no SAE to anyone.
    (folder / CONFIG).unlink(missing_ok=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / SAE_LENS_WEIGHTS,
        metadata={"format": "pt"},
    )
    write_json(folder / CONFIG, config)


def load_sae_lens(folder: str | Path, *, device: str | torch.device = "cpu") -> TopKSae:
    """Read a folder written by SAELens 6 (`save_model`, `save_inference_model`, a checkpoint) or `save_sae_lens`.

    The result encodes and decodes as SAELens does. The type is that of `cfg.json`, which SAELens casts to, except
    that an SAE with `rescale_acts_by_decoder_norm` or without `apply_b_dec_to_input` is float32 or wider.

    Raises:
        DataError: A file is missing or unreadable, a tensor is missing, left over or has the wrong shape, or an
            option has no counterpart here; the message names it, its value and what would do.
    """
    folder = Path(folder)
    options = read_options(folder)
    tensors = _read_tensors(folder, options, device=device)
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    W_enc = W_enc.T
    if options.rescales or not options.centres:
        W_enc, b_enc, W_dec, b_dec = _folded(W_enc, b_enc, W_dec, b_dec, options)
    # Cloned: a view of the file may lie unaligned, and alignment can change the last bit of a product.
    W_enc, b_enc, W_dec, b_dec = (
        tensor.clone(memory_format=torch.contiguous_format) for tensor in (W_enc, b_enc, W_dec, b_dec)
    )
    return TopKSae(W_enc, b_enc, W_dec, b_dec, k=options.k, activation=options.activation)


def convert(
    source: str | Path,
    target: str | Path,
    to: Format,
    *,
    hookpoint: str | None = None,
    model_name: str | None = None,
) -> TopKSae:
    """Write the SAE of one folder, of either kind, to another folder as `to`; returns it as written.

    Args:
        source: A folder that `TopKSae.load` reads.
        target: Is made; must be new or empty.
        to: `sparsify` (which is also saeinterp's own) or `sae-lens`.
        hookpoint: For SAELens' metadata; default is what the source folder records or is called, if that is one.
        model_name: For SAELens' metadata.

    Raises:
        ConfigError: `to` is no format, or the target holds files already.
        DataError: The source cannot be read, or cannot be represented.
    """
    source, target = Path(source), Path(target)
    if to not in ("sparsify", "sae-lens"):
        raise ConfigError("unknown format", field="to", got=to, expected="sparsify or sae-lens")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            "the target holds files already",
            field="target",
            got=str(target),
            expected="a new or empty folder",
            next_step="choose another folder",
        )
    sae = TopKSae.load(source)
    if to == "sparsify":
        sae.save(target)
    else:
        save_sae_lens(sae, target, hookpoint=hookpoint or _recorded_hookpoint(source), model_name=model_name)
    return sae


def _recorded_hookpoint(folder: Path) -> str | None:
    """The hookpoint that a folder's own files or its name give, or None."""
    for name, keys in (("training.json", ("hookpoint",)), (CONFIG, ("metadata", "hookpoint"))):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise DataError(
                f"not JSON: {error}",
                field=str(folder / name),
                next_step="give the hookpoint, and this file is not read",
            ) from error
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            return value
    # sparsify calls the folder by the hookpoint; an artifact's folder is called `<hookpoint>-<recipe>`.
    name = folder.resolve().name
    if (folder / MANIFEST).exists():
        name = name.rpartition("-")[0]
    return name if _BLOCK.match(name) else None


def _folded(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, options: Options) -> tuple[Tensor, ...]:
    """The same SAE with `b_dec` subtracted before encoding and activations as the decoder takes them."""
    dtype = torch.promote_types(options.dtype, torch.float32)
    W_enc, b_enc, W_dec, b_dec = (tensor.double() for tensor in (W_enc, b_enc, W_dec, b_dec))
    if options.rescales:
        # A row of zeros writes nothing whatever its activation; SAELens decodes it to NaN.
        norm = torch.linalg.vector_norm(W_dec, dim=1)
        W_enc, b_enc = W_enc * norm[:, None], b_enc * norm
        W_dec = W_dec / norm.masked_fill(norm == 0, 1)[:, None]
    if not options.centres:
        # W x + b = W (x - b_dec) + (b + W b_dec)
        b_enc = b_enc + W_enc @ b_dec
    return tuple(tensor.to(dtype) for tensor in (W_enc, b_enc, W_dec, b_dec))


def _read_tensors(folder: Path, options: Options, *, device: str | torch.device) -> dict[str, Tensor]:
    """The four tensors, checked, in the type of `cfg.json`."""
    path = folder / SAE_LENS_WEIGHTS
    try:
        tensors = load_file(path, device=str(device))
    except FileNotFoundError as error:
        raise _refused(path, f"no {SAE_LENS_WEIGHTS}", next_step="check the path") from error
    except (SafetensorError, OSError) as error:
        raise _refused(path, f"unreadable: {error}", next_step="save or download it again") from error
    d, M = options.d_in, options.num_latents
    shapes = {"W_enc": (d, M), "b_enc": (M,), "W_dec": (M, d), "b_dec": (d,)}
    if tensors.keys() != shapes.keys():
        raise _refused(path, "other tensors than a TopK SAE's", got=sorted(tensors), expected=", ".join(shapes))
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise _refused(
                path,
                f"{name} has the wrong shape",
                got=tuple(tensors[name].shape),
                expected=f"{shape} by {CONFIG} (d_in {d}, d_sae {M})",
            )
        if not tensors[name].is_floating_point():
            raise _refused(path, f"{name} is not of a float type", got=str(tensors[name].dtype))
    return {name: tensor.to(options.dtype) for name, tensor in tensors.items()}


def read_options(folder: Path) -> Options:
    """A SAELens folder's `cfg.json`, with everything refused (`DataError`) that a `TopKSae` cannot mean."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _refused(path, f"no {CONFIG}", next_step="check the path") from error
    except ValueError as error:
        raise _refused(path, f"not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _refused(path, "holds no mapping", got=type(config).__name__)
    if "architecture" not in config or isinstance(config.get("activation_fn_str"), str):
        raise _refused(
            path,
            "a SAELens folder from before version 6, or none",
            got=sorted(config),
            expected=f"architecture ({' or '.join(_ARCHITECTURES)})",
            next_step="load it with SAELens 6 and save it again with save_model",
        )
    only: dict[str, tuple[Any, ...]] = {
        "architecture": tuple(_ARCHITECTURES),
        "normalize_activations": ("none",),
        "reshape_activations": ("none",),
        "use_error_term": (False, None),
        "finetuning_scaling_factor": (False, None),
        "apply_b_dec_to_input": (True, False),
        "rescale_acts_by_decoder_norm": (False, True),
        "dtype": (*_DTYPES, *(f"torch.{name}" for name in _DTYPES)),
    }
    # As SAELens: a missing option has its default, the first of the values above but for the type.
    given: dict[str, Any] = {name: config.get(name, values[0]) for name, values in only.items()}
    given["dtype"] = config.get("dtype", "float32")
    for name, values in only.items():
        if not any(given[name] is value or (isinstance(value, str) and given[name] == value) for value in values):
            raise _refused(
                path,
                f"{name} has no counterpart here",
                got=given[name],
                expected=" or ".join(json.dumps(value) for value in values),
            )
    d_in, num_latents, k = (_positive(path, config, name) for name in ("d_in", "d_sae", "k"))
    if k > num_latents:
        raise _refused(path, "k exceeds d_sae", got=k, expected=f"at most {num_latents}")
    return Options(
        d_in=d_in,
        num_latents=num_latents,
        k=k,
        activation=_ARCHITECTURES[given["architecture"]],
        dtype=_DTYPES[given["dtype"].removeprefix("torch.")],
        centres=given["apply_b_dec_to_input"],
        rescales=given["rescale_acts_by_decoder_norm"],
    )


def _positive(path: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refused(path, f"{name} is missing or wrong", got=value, expected="a whole number above 0")
    return value


def _refused(
    path: Path, problem: str, *, got: object = None, expected: str | None = None, next_step: str = _IN_SAE_LENS
) -> DataError:
    return DataError(
        f"not a SAELens SAE that can be loaded: {problem}",
        field=str(path),
        got=got,
        expected=expected,
        next_step=next_step,
    )
