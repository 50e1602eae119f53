"""The SAE as a file and as a function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saeinterp.errors import DataError
from saeinterp.sae import TopKSae


def random_sae(*, num_latents: int = 24, d_in: int = 8, k: int = 3, activation: str = "topk") -> TopKSae:
    source = torch.Generator().manual_seed(1)
    W = torch.randn(num_latents, d_in, generator=source)
    bias = torch.randn(num_latents, generator=source)
    W_dec = W / W.norm(dim=1, keepdim=True)
    return TopKSae(W, bias, W_dec, torch.randn(d_in, generator=source), k=k, activation=activation)  # type: ignore[arg-type]


def test_encoding_and_decoding_follow_the_definition() -> None:
    sae, x = random_sae(), torch.randn(50, 8)
    pre = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu()
    values, indices = pre.topk(3, dim=1)
    expected = torch.zeros(50, 24).scatter(1, indices, values)
    code = sae.encode(x)
    assert code.values.shape == code.indices.shape == (50, 3)
    torch.testing.assert_close(torch.zeros(50, 24).scatter(1, code.indices, code.values), expected)
    torch.testing.assert_close(sae.decode(code), expected @ sae.W_dec + sae.b_dec)


def test_long_inputs_are_encoded_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = random_sae(), torch.randn(50, 8)
    whole = sae.encode(x)
    monkeypatch.setattr("saeinterp.sae.topk._ENCODE_ELEMENTS", 24 * 7)
    pieces = sae.encode(x)
    torch.testing.assert_close(pieces.values, whole.values)
    assert torch.equal(pieces.indices, whole.indices)


def test_inputs_of_another_width_are_refused() -> None:
    with pytest.raises(DataError, match=r"got \(5, 9\).*\[N, 8\]"):
        random_sae().encode(torch.zeros(5, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["topk", "abs_topk"])
def test_saving_loading_and_saving_gives_the_same_bytes(tmp_path: Path, dtype: torch.dtype, activation: str) -> None:
    sae = random_sae(activation=activation).to(dtype=dtype)
    sae.save(tmp_path / "a")
    loaded = TopKSae.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert loaded.W_enc.dtype == dtype
    assert (loaded.k, loaded.activation, loaded.d_in, loaded.num_latents) == (3, activation, 8, 24)
    for name in ("cfg.json", "sae.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_folder_has_sparsifys_layout(tmp_path: Path) -> None:
    random_sae().save(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text()) == {
        "activation": "topk",
        "d_in": 8,
        "expansion_factor": 3,
        "k": 3,
        "multi_topk": False,
        "normalize_decoder": True,
        "num_latents": 24,
        "skip_connection": False,
        "transcode": False,
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "sae.safetensors").items()}
    assert shapes == {"encoder.weight": (24, 8), "encoder.bias": (24,), "W_dec": (24, 8), "b_dec": (8,)}


def test_a_sparsify_folder_that_names_only_the_expansion_factor_loads(tmp_path: Path) -> None:
    random_sae().save(tmp_path)
    edit_config(tmp_path, num_latents=0, activation=None)
    assert TopKSae.load(tmp_path).num_latents == 24


def edit_config(folder: Path, **changes: object) -> None:
    config = {**json.loads((folder / "cfg.json").read_text()), **changes}
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / "sae.safetensors"), **changes}
    save_file({key: value for key, value in tensors.items() if value is not None}, folder / "sae.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 25}, r"k exceeds num_latents \(got 25\).*at most 24"),
        ({"k": 0}, r"k \(got 0\).*above 0"),
        ({"k": "3"}, r"k \(got '3'\)"),
        ({"d_in": None}, r"d_in"),
        ({"num_latents": 23}, r"encoder.weight has the wrong shape \(got \(24, 8\)\).*\(23, 8\)"),
        ({"activation": "groupmax"}, r"unknown activation \(got 'groupmax'\).*topk or abs_topk"),
        ({"transcode": True}, r"transcode is set"),
        ({"skip_connection": True}, r"skip_connection is set"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    random_sae().save(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as error:
        TopKSae.load(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": None}, "lacks W_dec"),
        ({"encoder.bias": torch.zeros(23)}, r"encoder.bias has the wrong shape \(got \(23,\)\).*\(24,\)"),
        ({"b_dec": torch.zeros(8, dtype=torch.float64)}, "not of one float type"),
        ({key: torch.zeros(shape, dtype=torch.int32) for key, shape in (("b_dec", 8),)}, "not of one float type"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    random_sae().save(tmp_path)
    edit_tensors(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        TopKSae.load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no cfg\.json"):
        TopKSae.load(tmp_path / "nowhere")
    random_sae().save(tmp_path)
    (tmp_path / "sae.safetensors").write_bytes(b"not tensors")
    with pytest.raises(DataError, match=r"sae\.safetensors is unreadable"):
        TopKSae.load(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        TopKSae.load(tmp_path)
    (tmp_path / "sae.safetensors").unlink()
    with pytest.raises(DataError, match=r"no sae\.safetensors, no sae_weights\.safetensors"):
        TopKSae.load(tmp_path)
