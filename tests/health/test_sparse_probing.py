"""Sparse probing: a planted label is found, planted nothing is not, and unusable tables are refused."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from planted import CLASSES, WORDS_PER_CLASS
from planted_health import Prepared, sae_artifact
from scipy import optimize, sparse

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import SparseProbingConfig
from saeinterp.errors import ConfigError, DataError
from saeinterp.health import probe_labels, probe_labels_recipe, read_probes
from saeinterp.health.probing.k_sparse import choose, fit_dense, fit_k_sparse, permuted, quality
from saeinterp.health.probing.labelled import read_labelled, split_rows
from saeinterp.sae import TopKSae

LAYERS = ("layers.0", "layers.1")
KIND = {"metal": 0, "fruit": 1}


def planted_texts(count: int, *, seed: int = 0, kinds: tuple[str, ...] = ("metal", "fruit")) -> list[dict[str, Any]]:
    """Fillers with three words of one class; its name is the label."""
    source = random.Random(seed)
    rows = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        words = [f"w{source.randrange(80)}" for _ in range(12)]
        for place in source.sample(range(2, 12), 3):
            words[place] = f"{kind}{source.randrange(WORDS_PER_CLASS)}"
        rows.append({"text": " ".join(words), "label": kind})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def class_sae(prepared: Prepared) -> TopKSae:
    """Latent i fires on words of class i: its encoder is that class's mean embedding."""
    embedding, tokenizer = prepared.subject.model.get_input_embeddings().weight, prepared.subject.tokenizer
    rows = []
    for name in CLASSES:
        ids = [tokenizer.convert_tokens_to_ids(f"{name}{index}") for index in range(WORDS_PER_CLASS)]
        rows.append(torch.nn.functional.normalize(embedding[ids].mean(0), dim=0))
    weights = torch.stack(rows).detach()
    return TopKSae(weights, torch.full((len(CLASSES),), -2.0), weights.clone(), torch.zeros(weights.shape[1]), k=1)


@pytest.fixture(scope="session")
def saes(planted: Prepared, shared_store: ArtifactStore) -> list[Artifact]:
    coder = class_sae(planted)
    return [sae_artifact(shared_store, coder, planted.activations, hookpoint=name) for name in LAYERS]


@pytest.fixture
def probe(planted: Prepared, saes: list[Artifact], store: ArtifactStore) -> Callable[..., Artifact]:
    def run(file: str, *, into: ArtifactStore = store, **options: Any) -> Artifact:
        config = SparseProbingConfig(file=file, **{"ks": (1, 2), **options})
        return probe_labels(
            planted.artifact, planted.activations, saes, hookpoints=LAYERS, config=config, store=into, device="cpu"
        )

    return run


def only(frame: pl.DataFrame, **values: Any) -> dict[str, Any]:
    """The one row with these values."""
    rows = frame.filter(*(pl.col(name) == value for name, value in values.items())).to_dicts()
    assert len(rows) == 1, rows
    return rows[0]


def test_one_latent_knows_a_planted_label_and_its_name_is_right(probe: Callable[..., Artifact], tmp_path: Path) -> None:
    results, frame = read_probes(probe(write(tmp_path / "kinds.jsonl", planted_texts(120))))
    for layer in LAYERS:
        for label in KIND:
            row = only(frame, hookpoint=layer, label=label, features="sae", k=1)
            assert row["latents"][0] in KIND.values()
            assert (row["accuracy"], row["f1"], row["auroc"]) == (1.0, 1.0, 1.0)
            assert (row["weights"][0] > 0) == (row["latents"] == [KIND[label]])
            assert (row["null_accuracy"], row["test_rows"], row["test_positives"]) == (0.5, 36, 18)
            assert row["null_f1"] == pytest.approx(2 / 3)
            # What permuted labels reach by choosing among eight latents is far from it.
            assert row["permuted_auroc_max"] < 1
            assert row["p_auroc"] == pytest.approx(1 / 21)
            # Wilson: 36 of 36 right.
            assert (row["accuracy_low"], row["accuracy_high"]) == (pytest.approx(0.9036, abs=1e-3), 1.0)
            assert row["f1_low"] is None
            assert row["interval_reason"]
    assert set(frame["features"]) == {"sae", "random-sae", "activations"}
    assert len(frame) == len(LAYERS) * len(KIND) * (2 * 2 + 1)
    assert results["classes"] == {name: {"train": 42, "test": 18} for name in ("fruit", "metal")}
    mean = next(row for row in results["layers"] if row["features"] == "sae" and row["k"] == 1)
    assert (mean["auroc"], mean["classes"]) == (1.0, 2)


def test_of_eight_classes_whole_activations_know_as_much_and_random_latents_less(
    probe: Callable[..., Artifact], tmp_path: Path
) -> None:
    file = write(tmp_path / "kinds.jsonl", planted_texts(160, kinds=CLASSES))
    results, frame = read_probes(probe(file, ks=(1,)))
    auroc = {row["features"]: row["auroc"] for row in results["layers"] if row["hookpoint"] == "layers.1"}
    assert auroc["sae"] == auroc["activations"] == 1.0
    assert auroc["random-sae"] < 0.95
    dense = frame.filter(pl.col("features") == "activations")
    assert dense["latents"].is_null().all()
    assert dense["p_auroc"].is_null().all()
    # One of eight: the majority is right on seven of eight test rows.
    assert frame["null_accuracy"].to_list() == [0.875] * len(frame)


def test_planted_nothing_is_within_its_null(probe: Callable[..., Artifact], tmp_path: Path) -> None:
    """Labels dealt at random: no AUROC stands out by more than chance allows."""
    rows = planted_texts(200)
    labels = [row["label"] for row in rows]
    random.Random(4).shuffle(labels)
    mixed = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    _, frame = read_probes(probe(write(tmp_path / "mixed.jsonl", mixed), permutations=39))
    sae = frame.filter(pl.col("features") == "sae")
    assert sae["auroc"].is_between(0.3, 0.7).all()
    assert sae["permuted_auroc"].is_between(0.4, 0.6).all()
    assert sae["p_auroc"].min() > 1 / 40


def test_the_maximum_finds_a_class_named_once_in_a_long_text(probe: Callable[..., Artifact], tmp_path: Path) -> None:
    rows = [
        {**row, "text": f"{row['text']} " + " ".join(f"w{(index + i) % 80}" for i in range(60))}
        for index, row in enumerate(planted_texts(80))
    ]
    file = write(tmp_path / "long.jsonl", rows)
    _, frame = read_probes(probe(file, pooling="max"))
    assert frame.filter(pl.col("features") == "sae")["auroc"].min() == 1.0


def test_the_same_table_gives_the_same_bytes_wherever_it_lies(
    probe: Callable[..., Artifact], tmp_path: Path, store: ArtifactStore
) -> None:
    (tmp_path / "elsewhere").mkdir()
    rows = planted_texts(60)
    one = probe(write(tmp_path / "kinds.jsonl", rows))
    two = probe(write(tmp_path / "elsewhere" / "kinds.jsonl", rows), into=ArtifactStore(tmp_path / "other"))
    assert one.hash == two.hash
    assert one.manifest()["files"] == two.manifest()["files"]
    changed = write(tmp_path / "elsewhere" / "kinds.jsonl", planted_texts(60, seed=1))
    assert probe(changed).hash != one.hash


def test_a_killed_pass_goes_on_behind_its_last_chunk(
    probe: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeinterp.health.probing import pooled

    monkeypatch.setattr(pooled, "_CHUNK", 20)
    file = write(tmp_path / "kinds.jsonl", planted_texts(60))
    whole = probe(file, into=ArtifactStore(tmp_path / "whole"))
    forward, calls = pooled.forward_window, []

    def dying(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **options)

    monkeypatch.setattr(pooled, "forward_window", dying)
    with pytest.raises(KeyboardInterrupt):
        probe(file)
    again = probe(file)
    assert len(calls) == 4  # two chunks were there
    assert again.manifest()["files"] == whole.manifest()["files"]


def test_texts_of_one_group_lie_on_one_side(probe: Callable[..., Artifact], tmp_path: Path) -> None:
    rows = [{**row, "author": f"a{index // 4}"} for index, row in enumerate(planted_texts(160))]
    config = SparseProbingConfig(file=write(tmp_path / "kinds.jsonl", rows), group_column="author")
    table = read_labelled(config)
    test = split_rows(table, config)
    authors = np.array(table.groups)
    assert not set(authors[test]) & set(authors[~test])
    assert 0.2 < test.mean() < 0.4
    assert read_probes(probe(config.file, group_column="author"))[0]["groups"] == 40


def test_a_text_that_occurs_twice_lies_on_one_side(tmp_path: Path) -> None:
    rows = planted_texts(40)
    config = SparseProbingConfig(file=write(tmp_path / "twice.jsonl", rows + rows))
    table = read_labelled(config)
    test = split_rows(table, config)
    assert (test[:40] == test[40:]).all()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_csv_and_parquet_read_like_jsonl(tmp_path: Path, suffix: str) -> None:
    rows = [{**row, "label": int(row["label"] == "metal")} for row in planted_texts(30)]
    path = tmp_path / f"kinds.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pl.DataFrame(rows).write_parquet(path)
    expected = read_labelled(SparseProbingConfig(file=write(tmp_path / "kinds.jsonl", rows)))
    assert read_labelled(SparseProbingConfig(file=str(path))) == expected
    assert expected.classes == ["0", "1"]


GOOD = planted_texts(40)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (GOOD, {"label_column": "lable"}, r"probing\.label_column: .*no column 'lable'.*did you mean .*: label"),
        (GOOD, {"text_column": "body"}, r"probing\.text_column: the table has no column 'body'.*one of: text, label"),
        (GOOD, {"group_column": "author"}, r"probing\.group_column: the table has no column 'author'"),
        ([{**row, "label": "same"} for row in GOOD], {}, r"1 class in column 'label'.*at least two"),
        (GOOD[:8], {}, r"class 'fruit' has 3 training rows.*at least 5"),
        ([*GOOD, {"text": "w1 w2", "label": None}], {}, r"row 41 has no usable value in column 'label'"),
        ([*GOOD, {"text": "w1 w2", "label": float("nan")}], {}, r"row 41|cannot be read"),
        ([*GOOD, {"text": None, "label": "metal"}], {}, r"row 41 has no text"),
        ([*GOOD, {"text": "  ", "label": "metal"}], {}, r"row 41 has no text"),
        ([{"text": row["text"], "label": index + 0.5} for index, row in enumerate(GOOD)], {}, r"row 1 has no usable"),
        ([{"text": f"w{i}", "label": f"c{i}"} for i in range(70)], {}, r"70 classes in 70 rows"),
    ],
)  # fmt: skip
def test_unusable_tables_are_refused_with_the_reason(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    config = SparseProbingConfig(file=write(tmp_path / "bad.jsonl", rows), **options)
    with pytest.raises(DataError, match=message):
        split_rows(read_labelled(config), config)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    cases = {"absent.jsonl": None, "table.xlsx": "x", "empty.csv": "", "broken.parquet": "no", "broken.jsonl": "{"}
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=r"probing\.file"):
            read_labelled(SparseProbingConfig(file=str(tmp_path / name)))


def test_more_latents_than_there_are_and_wrong_layers_are_refused(
    probe: Callable[..., Artifact], planted: Prepared, saes: list[Artifact], tmp_path: Path
) -> None:
    file = write(tmp_path / "kinds.jsonl", planted_texts(40))
    with pytest.raises(ConfigError, match=r"probing\.ks.*at most 8"):
        probe(file, ks=(1, 9))
    with pytest.raises(ConfigError, match="one hookpoint per SAE"):
        probe_labels_recipe(
            planted.artifact, planted.activations, saes, hookpoints=["layers.0"], config=SparseProbingConfig(file=file)
        )
    with pytest.raises(ValueError, match="ks must be different whole numbers"):
        SparseProbingConfig(file=file, ks=(2, 2))


def test_latents_are_chosen_by_the_difference_of_means() -> None:
    x = np.array([[0, 5, 1, 2], [0, 5, 3, 2], [9, 5, 0, 0], [0, 5, 0, 0]], np.float32)
    truth = np.array([True, True, False, False])
    # Differences of means: 4.5, 0, 2, 2; the tie goes to the lower index.
    assert choose(x, truth, 3).tolist() == [0, 2, 3]
    assert choose(sparse.csr_matrix(x), truth, 3).tolist() == [0, 2, 3]


def test_a_probe_is_the_optimum_of_its_objective() -> None:
    """Against scipy's minimiser on the objective written out: balanced loss, 1/2 |w|^2, free intercept, unit spread."""
    rng = np.random.default_rng(0)
    x = rng.gamma(1.0, size=(90, 6)).astype(np.float32)
    truth = x[:, 2] - 0.5 * x[:, 4] + 0.5 * rng.standard_normal(90) > 0.8
    test = np.arange(90) % 3 == 0
    fit = fit_k_sparse(x, truth, test, (2, 6))[2]
    train = x[~test][:, fit.features].astype(np.float64)
    z = (train - train.mean(0)) / train.std(0)
    y = np.where(truth[~test], 1.0, -1.0)
    weight = np.where(y > 0, len(y) / (2 * (y > 0).sum()), len(y) / (2 * (y < 0).sum()))

    def objective(beta: np.ndarray) -> float:
        margin = y * (z @ beta[:-1] + beta[-1])
        return float((weight * np.logaddexp(0, -margin)).sum() + 0.5 * (beta[:-1] ** 2).sum())

    best = optimize.minimize(objective, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert fit.weights == pytest.approx(best.x[:-1], abs=1e-5)
    held = (x[test][:, fit.features].astype(np.float64) - train.mean(0)) / train.std(0)
    assert fit.scores == pytest.approx(held @ best.x[:-1] + best.x[-1], abs=1e-4)


def test_the_dense_probe_is_the_same_regression_in_fewer_dimensions() -> None:
    """Solved in the span of the training rows: with more rows than features it must be the k-sparse one with all."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, 5)).astype(np.float32)
    truth = x @ np.array([1.0, -1, 0.5, 0, 0]) + rng.standard_normal(80) > 0
    test = np.arange(80) % 4 == 0
    assert fit_dense(x, truth, test) == pytest.approx(fit_k_sparse(x, truth, test, (5,))[5].scores, abs=1e-6)
    wide = np.concatenate([x, x @ rng.standard_normal((5, 200)).astype(np.float32)], axis=1)
    assert np.isfinite(fit_dense(wide, truth, test)).all()


def test_quality_by_hand() -> None:
    scores, truth = np.array([2.0, 1.0, -1.0, 3.0]), np.array([True, False, True, True])
    # Says yes to 0, 1, 3: two right of three; F1 = 2·2 / (2·2 + 1 + 1); 2 of 3 pairs (true, false) in order.
    found = quality(scores, truth)
    assert found.accuracy == pytest.approx(0.5)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.auroc == pytest.approx(2 / 3)


def test_permuting_keeps_counts_and_groups_on_either_side() -> None:
    truth = np.repeat([True, False, True, False, False, True], 5)
    groups = np.repeat(np.arange(6), 5)
    test = groups >= 4
    seen = set()
    for seed in range(20):
        dealt = permuted(truth, test, groups, np.random.default_rng(seed))
        assert all(dealt[side].sum() == truth[side].sum() for side in (test, ~test))
        assert all(len(set(dealt[groups == group])) == 1 for group in range(6))
        seen.add(tuple(dealt))
    assert len(seen) > 3
