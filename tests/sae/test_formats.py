"""SAELens folders read and written, against SAELens' arithmetic written out in float64.

That the real packages agree is tested in tests/peers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeinterp.errors import ConfigError, DataError
from saeinterp.sae import TopKSae
from saeinterp.sae.formats import convert, detect, load_sae_lens, save_sae_lens

M, D, K = 24, 8, 3


def random_sae(activation: str = "topk", *, dtype: torch.dtype = torch.float32) -> TopKSae:
    source = torch.Generator().manual_seed(1)
    W_enc, W_dec = (torch.randn(M, D, generator=source) for _ in range(2))
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    b_enc, b_dec = torch.randn(M, generator=source), torch.randn(D, generator=source)
    return TopKSae(W_enc, b_enc, W_dec, b_dec, k=K, activation=activation).to(dtype=dtype)  # type: ignore[arg-type]


def sae_lens_tensors() -> dict[str, Tensor]:
    """Weights as SAELens stores them; decoder rows are not of unit norm."""
    source = torch.Generator().manual_seed(2)
    shapes = {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,)}
    tensors = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    tensors["W_dec"] *= torch.linspace(0.2, 3, M)[:, None]
    return tensors


def write_sae_lens(folder: Path, tensors: dict[str, Tensor] | None = None, **options: object) -> Path:
    """A folder as sae-lens 6.54 writes it."""
    config = {
        "d_in": D,
        "d_sae": M,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12"},
        "k": K,
        "rescale_acts_by_decoder_norm": False,
        "architecture": "topk",
        **options,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    save_file(tensors or sae_lens_tensors(), folder / "sae_weights.safetensors")
    return folder


def by_definition(x: Tensor, tensors: dict[str, Tensor], config: dict[str, object]) -> tuple[Tensor, Tensor]:
    """What SAELens computes: activations `[N, M]` and reconstructions `[N, d]`, in float64."""
    W_enc, b_enc, W_dec, b_dec = (tensors[name].double() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    x = x.double() - (b_dec if config["apply_b_dec_to_input"] else 0)
    pre = x @ W_enc + b_enc
    norm = W_dec.norm(dim=1) if config["rescale_acts_by_decoder_norm"] else torch.ones(M, dtype=torch.float64)
    pre = pre * norm
    by_size = config["architecture"] == "abstopk"
    indices = (pre.abs() if by_size else pre).topk(K, dim=1).indices
    values = pre.gather(1, indices) if by_size else pre.gather(1, indices).relu()
    z = torch.zeros(len(x), M, dtype=torch.float64).scatter(1, indices, values)
    return z, (z / norm) @ W_dec + b_dec


def dense(sae: TopKSae, x: Tensor) -> tuple[Tensor, Tensor]:
    code = sae.encode(x)
    z = torch.zeros(len(x), sae.num_latents, dtype=code.values.dtype).scatter(1, code.indices, code.values)
    return z.double(), sae.decode(code).double()


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("rescale_acts_by_decoder_norm", [True, False])
def test_every_combination_of_options_encodes_and_decodes_as_defined(
    tmp_path: Path, architecture: str, apply_b_dec_to_input: bool, rescale_acts_by_decoder_norm: bool
) -> None:
    config: dict[str, object] = {
        "architecture": architecture,
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "rescale_acts_by_decoder_norm": rescale_acts_by_decoder_norm,
    }
    folder = write_sae_lens(tmp_path, **config)
    x = 3 * torch.randn(500, D, generator=torch.Generator().manual_seed(3)) + 1
    expected_z, expected_x_hat = by_definition(x, sae_lens_tensors(), config)
    z, x_hat = dense(TopKSae.load(folder), x)
    assert torch.equal(z != 0, expected_z != 0)
    torch.testing.assert_close(z, expected_z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_hat, expected_x_hat, rtol=1e-5, atol=1e-5)


def test_options_that_are_left_out_have_sae_lens_defaults(tmp_path: Path) -> None:
    explicit = load_sae_lens(write_sae_lens(tmp_path / "a"))
    left_out = dict.fromkeys(
        ("apply_b_dec_to_input", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm"), ...
    )
    implicit = load_sae_lens(write_sae_lens(tmp_path / "b", **left_out))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(explicit, name), getattr(implicit, name))


def test_a_decoder_row_of_zeros_stays_without_effect(tmp_path: Path) -> None:
    tensors = sae_lens_tensors()
    tensors["W_dec"][5] = 0
    sae = load_sae_lens(write_sae_lens(tmp_path, tensors, rescale_acts_by_decoder_norm=True))
    z, x_hat = dense(sae, torch.randn(100, D))
    assert not z[:, 5].any()
    assert x_hat.isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_the_type_is_that_of_the_configuration(tmp_path: Path, dtype: str) -> None:
    sae = load_sae_lens(write_sae_lens(tmp_path, dtype=dtype))
    assert {str(tensor.dtype) for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)} == {f"torch.{dtype}"}
    assert torch.equal(sae.W_enc, sae_lens_tensors()["W_enc"].T.to(getattr(torch, dtype)))


@pytest.mark.parametrize("option", [{"apply_b_dec_to_input": False}, {"rescale_acts_by_decoder_norm": True}])
def test_a_narrow_type_becomes_float32_where_weights_are_folded(tmp_path: Path, option: dict[str, object]) -> None:
    rounded = {name: tensor.bfloat16() for name, tensor in sae_lens_tensors().items()}
    sae = load_sae_lens(write_sae_lens(tmp_path, rounded, dtype="torch.bfloat16", **option))
    assert sae.b_enc.dtype == torch.float32
    x = torch.randn(200, D)
    config = {"architecture": "topk", "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False, **option}
    expected_z, expected_x_hat = by_definition(x, rounded, config)
    z, x_hat = dense(sae, x)
    torch.testing.assert_close(z, expected_z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_hat, expected_x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["topk", "abs_topk"])
def test_writing_and_reading_keeps_every_bit(tmp_path: Path, activation: str, dtype: torch.dtype) -> None:
    sae = random_sae(activation, dtype=dtype)
    save_sae_lens(sae, tmp_path)
    assert detect(tmp_path) == "sae-lens"
    loaded = TopKSae.load(tmp_path)
    assert (loaded.k, loaded.activation) == (K, activation)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        tensor = getattr(loaded, name)
        assert tensor.is_contiguous()
        assert tensor.dtype == dtype
        assert torch.equal(tensor, getattr(sae, name))


def test_what_is_written_says_what_the_sae_does(tmp_path: Path) -> None:
    sae = random_sae()
    save_sae_lens(sae, tmp_path, hookpoint="layers.9", model_name="gpt2")
    config = json.loads((tmp_path / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "topk",
        "d_in": D,
        "d_sae": M,
        "k": K,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert metadata["sae_lens_version"].startswith("6.")
    assert metadata["model_name"] == "gpt2"
    assert metadata["hookpoint"] == "layers.9"
    assert metadata["hook_name"] == "blocks.9.hook_resid_post"
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert torch.equal(tensors["W_enc"], sae.W_enc.T)
    assert torch.equal(tensors["W_dec"], sae.W_dec)


@pytest.mark.parametrize(
    ("hookpoint", "hook_name"),
    [
        ("model.layers.3", "blocks.3.hook_resid_post"),
        ("transformer.h.11", "blocks.11.hook_resid_post"),
        ("layers.3.mlp", None),
        (None, None),
    ],
)
def test_only_blocks_get_a_hook_name(tmp_path: Path, hookpoint: str | None, hook_name: str | None) -> None:
    save_sae_lens(random_sae(), tmp_path, hookpoint=hookpoint)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (metadata.get("hookpoint"), metadata.get("hook_name")) == (hookpoint, hook_name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "jumprelu"}, r"architecture has no counterpart.*got 'jumprelu'.*\"topk\" or \"abstopk\""),
        ({"architecture": "batchtopk"}, r"architecture has no counterpart"),
        ({"normalize_activations": "layer_norm"}, r"normalize_activations .*got 'layer_norm'.*\"none\""),
        ({"normalize_activations": "expected_average_only_in"}, r"normalize_activations"),
        ({"reshape_activations": "hook_z"}, r"reshape_activations .*got 'hook_z'"),
        ({"use_error_term": True}, r"use_error_term .*got True"),
        ({"finetuning_scaling_factor": True}, r"finetuning_scaling_factor .*got True"),
        ({"apply_b_dec_to_input": "yes"}, r"apply_b_dec_to_input .*got 'yes'.*true or false"),
        ({"rescale_acts_by_decoder_norm": 1}, r"rescale_acts_by_decoder_norm .*got 1"),
        ({"dtype": "int8"}, r"dtype .*got 'int8'.*float32"),
        ({"k": 25}, r"k exceeds d_sae \(got 25\).*at most 24"),
        ({"k": ...}, r"k is missing or wrong.*above 0"),
        ({"k": 2.0}, r"k is missing or wrong \(got 2\.0\)"),
        ({"d_sae": 0}, r"d_sae is missing or wrong \(got 0\)"),
        ({"d_in": 9}, r"W_enc has the wrong shape \(got \(8, 24\)\).*\(9, 24\)"),
        ({"architecture": ...}, r"before version 6.*save it again"),
        ({"activation_fn_str": "topk", "architecture": "standard"}, r"before version 6"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    write_sae_lens(tmp_path, **options)
    with pytest.raises(DataError, match=message) as error:
        TopKSae.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "Next:" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": None}, r"other tensors.*got \['W_enc', 'b_dec', 'b_enc'\].*W_enc, b_enc, W_dec, b_dec"),
        ({"W_skip": torch.zeros(D, D)}, r"other tensors.*W_skip"),
        ({"scaling_factor": torch.ones(M)}, r"other tensors.*scaling_factor"),
        ({"W_enc": torch.zeros(M, D)}, r"W_enc has the wrong shape \(got \(24, 8\)\).*\(8, 24\)"),
        ({"b_enc": torch.zeros(M, dtype=torch.int32)}, r"b_enc is not of a float type.*int32"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    tensors = {**sae_lens_tensors(), **changes}
    write_sae_lens(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(DataError, match=message):
        TopKSae.load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no cfg\.json.*got 'no such folder'"):
        TopKSae.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no cfg\.json.*sae\.safetensors.*sae_weights\.safetensors"):
        TopKSae.load(tmp_path)
    write_sae_lens(tmp_path)
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(DataError, match=r"holds no mapping"):
        TopKSae.load(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        TopKSae.load(tmp_path)
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(DataError, match=r"no cfg\.json"):
        TopKSae.load(tmp_path)
    write_sae_lens(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"not tensors")
    with pytest.raises(DataError, match=r"sae_weights\.safetensors.*unreadable"):
        TopKSae.load(tmp_path)


def test_a_folder_describes_one_sae(tmp_path: Path) -> None:
    random_sae().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"cfg\.json can describe only one SAE"):
        save_sae_lens(random_sae(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_file(sae_lens_tensors(), tmp_path / "sae_weights.safetensors")
    with pytest.raises(DataError, match=r"sae\.safetensors and sae_weights\.safetensors lie in one folder"):
        TopKSae.load(tmp_path)


def test_a_type_without_a_name_in_sae_lens_is_refused(tmp_path: Path) -> None:
    sae = random_sae(dtype=torch.float8_e4m3fn)
    with pytest.raises(DataError, match=r"no such type.*float8_e4m3fn.*bfloat16"):
        save_sae_lens(sae, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("activation", ["topk", "abs_topk"])
def test_converting_there_and_back_gives_the_same_files(tmp_path: Path, activation: str) -> None:
    there, lens, back = tmp_path / "layers.9", tmp_path / "lens", tmp_path / "back"
    random_sae(activation).save(there)
    convert(there, lens, "sae-lens")
    assert json.loads((lens / "cfg.json").read_text())["metadata"]["hook_name"] == "blocks.9.hook_resid_post"
    returned = convert(lens, back, "sparsify")
    assert {path.name: path.read_bytes() for path in back.iterdir()} == {
        path.name: path.read_bytes() for path in there.iterdir()
    }
    assert torch.equal(returned.W_enc, random_sae(activation).W_enc)


def test_the_recorded_hookpoint_is_handed_on_and_can_be_given(tmp_path: Path) -> None:
    random_sae().save(tmp_path / "mine")
    (tmp_path / "mine" / "training.json").write_text(json.dumps({"hookpoint": "layers.4"}))
    convert(tmp_path / "mine", tmp_path / "a", "sae-lens")
    convert(tmp_path / "a", tmp_path / "b", "sae-lens")
    convert(tmp_path / "a", tmp_path / "c", "sae-lens", hookpoint="layers.5", model_name="other")
    read = {name: json.loads((tmp_path / name / "cfg.json").read_text())["metadata"] for name in "abc"}
    assert read["a"]["hookpoint"] == read["b"]["hookpoint"] == "layers.4"
    assert read["c"]["hookpoint"] == "layers.5"
    assert read["c"]["model_name"] == "other"


def test_a_broken_record_of_the_hookpoint_is_named_and_can_be_gone_round(tmp_path: Path) -> None:
    random_sae().save(tmp_path / "a")
    (tmp_path / "a" / "training.json").write_text("{")
    with pytest.raises(DataError, match=r"training\.json: not JSON.*give the hookpoint"):
        convert(tmp_path / "a", tmp_path / "b", "sae-lens")
    convert(tmp_path / "a", tmp_path / "b", "sae-lens", hookpoint="layers.1")
    assert detect(tmp_path / "b") == "sae-lens"


def test_converting_never_overwrites_and_names_a_wrong_format(tmp_path: Path) -> None:
    random_sae().save(tmp_path / "a")
    with pytest.raises(ConfigError, match="holds files already"):
        convert(tmp_path / "a", tmp_path / "a", "sae-lens")
    with pytest.raises(ConfigError, match=r"unknown format.*got 'npz'.*sparsify or sae-lens"):
        convert(tmp_path / "a", tmp_path / "b", "npz")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "b", "sparsify")
    assert not (tmp_path / "b").exists()
