"""A TopK SAE: encode, decode, and sparsify's folder layout in and out (SAELens' is in `formats`).

`encode` computes in the type of the stored weights. The surprising choice: weights are never altered on the way
in or out, so an SAE saved, loaded and saved again has the same bytes, whatever wrote it first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeinterp.artifacts import write_json
from saeinterp.errors import DataError
from saeinterp.sae.kernels import Activation, Method, TopKCode, choose_method, decode, encode_topk

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
_KEYS = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
_ENCODE_ELEMENTS = 2**25  # pre-activations held at once: 128 MB in float32


@dataclass(frozen=True, eq=False)
class TopKSae:
    """`x_hat = W_dec[active] . values + b_dec`, with the k active latents chosen from `W_enc (x - b_dec) + b_enc`.

    Attributes:
        W_enc: `[M, d]` encoder.
        b_enc: `[M]` its bias.
        W_dec: `[M, d]` decoder; ours have unit rows.
        b_dec: `[d]` subtracted from inputs, added to outputs.
        k: Latents active a row, at most.
        activation: `topk` (k largest of the ReLU) or `abs_topk` (k largest magnitudes, signs kept).
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int
    activation: Activation = "topk"

    @property
    def d_in(self) -> int:
        """Width of the hookpoint."""
        return int(self.W_enc.shape[1])

    @property
    def num_latents(self) -> int:
        """Dictionary size M."""
        return int(self.W_enc.shape[0])

    def encode(self, x: Tensor) -> TopKCode:
        """Active latents of rows `x` `[N, d]` (any float type): values and indices `[N, k]`, unordered.

        Slots that the ReLU emptied have value 0. Memory stays bounded for any N.

        Raises:
            DataError: `x` is not `[N, d]`.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise DataError("rows do not fit this SAE", field="x", got=tuple(x.shape), expected=f"[N, {self.d_in}]")
        dtype = self.W_enc.dtype
        pieces = []
        for piece in x.split(max(1, _ENCODE_ELEMENTS // self.num_latents)):
            centred = piece.to(dtype) - self.b_dec
            code = encode_topk(
                centred, self.W_enc, self.b_enc, k=self.k, activation=self.activation, method=self._method()
            )
            pieces.append(code)
        if len(pieces) == 1:
            return pieces[0]
        return TopKCode(torch.cat([p.values for p in pieces]), torch.cat([p.indices for p in pieces]))

    def decode(self, code: TopKCode) -> Tensor:
        """Reconstructions `[N, d]` in the type of the weights, `b_dec` included."""
        return decode(code, self.W_dec, method=self._method()).add_(self.b_dec)

    def positive(self, x: Tensor) -> Tensor | None:
        """Latents of rows `x` `[N, d]` that are above 0 before the k largest are chosen, int64 `[N]`.

        None for `abs_topk`, where 0 is no threshold.
        """
        if self.activation != "topk":
            return None
        counts = []
        for piece in x.split(max(1, _ENCODE_ELEMENTS // self.num_latents)):
            before = torch.addmm(self.b_enc, piece.to(self.W_enc.dtype) - self.b_dec, self.W_enc.T)
            counts.append((before > 0).sum(1))
        return torch.cat(counts)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> TopKSae:
        """The same SAE on another device or in another type."""
        moved = {name: getattr(self, name).to(device=device, dtype=dtype) for name in _KEYS}
        return TopKSae(**moved, k=self.k, activation=self.activation)

    def save(self, folder: str | Path) -> None:
        """Write `cfg.json` and `sae.safetensors` as sparsify 1.3 does.

        `abs_topk` is written as such: sparsify refuses it, where ReLU would silently drop the negative values.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / CONFIG,
            {
                "activation": self.activation,
                "d_in": self.d_in,
                "expansion_factor": max(1, self.num_latents // self.d_in),
                "k": self.k,
                "multi_topk": False,
                "normalize_decoder": True,
                "num_latents": self.num_latents,
                "skip_connection": False,
                "transcode": False,
            },
        )
        tensors = {key: getattr(self, name).detach().cpu().contiguous() for name, key in _KEYS.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> TopKSae:
        """Read a folder written by `save`, by sparsify or by SAELens; the stored type is kept.

        Raises:
            DataError: A file is missing or unreadable, a tensor is missing or has the wrong shape, `k` exceeds the
                dictionary, or it is a kind of coder that this is not (transcoder, skip connection, group max, or see
                `formats.load_sae_lens`).
        """
        from saeinterp.sae.formats import detect, load_sae_lens

        folder = Path(folder)
        if detect(folder) == "sae-lens":
            return load_sae_lens(folder, device=device)
        config = read_config(folder)
        try:
            tensors = load_file(folder / WEIGHTS, device=str(device))
        except (SafetensorError, OSError) as error:
            raise _bad(folder, f"{WEIGHTS} is unreadable: {error}") from error
        d_in, num_latents = config["d_in"], config["num_latents"]
        shapes = {"W_enc": (num_latents, d_in), "b_enc": (num_latents,), "W_dec": (num_latents, d_in), "b_dec": (d_in,)}
        missing = [key for key in _KEYS.values() if key not in tensors]
        if missing:
            raise _bad(folder, f"{WEIGHTS} lacks {', '.join(missing)}", got=sorted(tensors))
        for name, key in _KEYS.items():
            if tuple(tensors[key].shape) != shapes[name]:
                raise _bad(
                    folder,
                    f"{key} has the wrong shape",
                    got=tuple(tensors[key].shape),
                    expected=f"{shapes[name]} by {CONFIG} (num_latents {num_latents}, d_in {d_in})",
                )
        dtypes = {str(tensors[key].dtype) for key in _KEYS.values()}
        if len(dtypes) > 1 or not tensors[_KEYS["W_enc"]].is_floating_point():
            raise _bad(folder, "tensors are not of one float type", got=sorted(dtypes))
        # Cloned: a view of the file may lie unaligned, and alignment can change the last bit of a product.
        weights = {name: tensors[key].clone() for name, key in _KEYS.items()}
        return cls(**weights, k=config["k"], activation=config["activation"])

    def _method(self) -> Method:
        dtype = self.W_dec.dtype
        return choose_method(k=self.k, num_latents=self.num_latents, device=self.W_dec.device, compute=dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """A sparsify folder's `cfg.json`, completed, with everything refused (`DataError`) that is no `TopKSae`."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _bad(folder, f"no {CONFIG}", expected=f"a folder with {CONFIG} and {WEIGHTS}") from error
    except ValueError as error:
        raise _bad(folder, f"{CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _bad(folder, f"{CONFIG} holds no mapping", got=type(config).__name__)
    d_in = _positive(folder, config, "d_in")
    # sparsify: 0 latents means expansion_factor times the width.
    if not config.get("num_latents"):
        config["num_latents"] = d_in * _positive(folder, config, "expansion_factor")
    num_latents, k = _positive(folder, config, "num_latents"), _positive(folder, config, "k")
    if k > num_latents:
        raise _bad(folder, "k exceeds num_latents", got=k, expected=f"at most {num_latents}")
    config.setdefault("activation", "topk")
    if config["activation"] not in get_args(Activation):
        raise _bad(folder, "unknown activation", got=config["activation"], expected=" or ".join(get_args(Activation)))
    for flag in ("transcode", "skip_connection"):
        if config.get(flag):
            raise _bad(folder, f"{flag} is set: this is a transcoder, not an autoencoder")
    return config


def _positive(folder: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _bad(folder, f"{CONFIG}: {key}", got=value, expected="a whole number above 0")
    return value


def _bad(folder: Path, problem: str, *, got: object = None, expected: str | None = None) -> DataError:
    return DataError(
        f"not an SAE that can be loaded: {problem}",
        field=str(folder),
        got=got,
        expected=expected,
        next_step="check the path, or train the SAE again",
    )
