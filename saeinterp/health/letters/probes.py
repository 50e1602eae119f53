"""The step that trains first-letter probes on a subject's activations: the ground truth absorption is measured against.

One pass over the prompts serves every hookpoint that lacks its artifact, and ends at the deepest. The surprising
choice: probes are trained one hookpoint after another all the same, because a batched product's bits depend on what
shares it, and an artifact must not depend on which others were missing; the 26 letters are one problem.

Payload of a hookpoint: `probes.json`, and where there are usable words `words.parquet` (word, token_id, letter,
split), `probes.safetensors` (weight `[26, d]`, bias `[26]`) and `residuals.safetensors` (`train` `[n, d]`; `test` and
`fresh` `[m, d]`, two prompts each of the test words), in the order of `words.parquet` and in the storage type.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore, Build, Recipe, Ref, read_json, write_json
from saeinterp.config import AbsorptionConfig, Placement
from saeinterp.errors import BudgetError
from saeinterp.health.letters.logistic import LinearProbe, Schedule, f1_scores, fit_dense
from saeinterp.health.letters.words import (
    LETTERS,
    Words,
    choose_words,
    make_prompts,
    tokenise_prompts,
    why_unusable,
)
from saeinterp.progress import Progress, silent
from saeinterp.subject import Context, Subject, load_subject, load_tokenizer, subject_info
from saeinterp.subject.forwarding import forward_window, storage_dtype

log = logging.getLogger(__name__)

VERSION = 1
KIND = "letter-probes"
_SETTINGS = (
    "words",
    "context_examples",
    "test_fraction",
    "batch_prompts",
    "epochs",
    "lr",
    "lr_end",
    "probe_batch",
    "probe_weight_decay",
    "seed",
)
_BATCHES_PER_CHUNK = 4


class LetterProbes(NamedTuple):
    """The content of a `letter-probes` artifact that has words."""

    hookpoint: str
    words: pl.DataFrame
    """`word`, `token_id`, `letter` (`A` to `Z`), `split` (`train`, then `test`)."""
    probe: LinearProbe
    f1: list[float | None]
    """F1 of each letter's probe on the test words; None where no test word has the letter and none was said to."""
    train: Tensor
    """`[n, d]` activations of the training words."""
    test: Tensor
    """`[m, d]` of the test words."""
    fresh: Tensor
    """`[m, d]` of the test words in prompts of their own."""

    def labels(self, split: str) -> np.ndarray:
        """The letters of one split's words, 0 to 25, int64."""
        letters = self.words.filter(pl.col("split") == split)["letter"].to_list()
        return np.array([LETTERS.index(letter) for letter in letters], np.int64)


def letter_probes_recipe(subject: Ref, *, hookpoint: str, config: AbsorptionConfig) -> Recipe:
    """The recipe of one hookpoint's probes; only the settings they depend on enter it."""
    values = config.model_dump(mode="json")
    settings = {"hookpoint": hookpoint, **{name: values[name] for name in _SETTINGS}}
    return Recipe(kind=KIND, name=f"{subject.name}-{hookpoint}", version=VERSION, config=settings, inputs=(subject,))


def letter_probes(
    subject: Artifact,
    *,
    hookpoints: Sequence[str],
    config: AbsorptionConfig,
    store: ArtifactStore,
    device: str | Placement = "auto",
    progress: Progress | None = None,
) -> dict[str, Artifact]:
    """Train the first-letter probes of several hookpoints; those that are there already cost nothing.

    A subject whose tokenizer has no usable words gets artifacts that say so. After a kill the pass goes on behind its
    last whole chunk of prompts, to the same bytes.

    Raises:
        ConfigError: A hookpoint does not exist or gives no rows.
        DataError: NaN or infinite activations.
        BudgetError: A batch of prompts does not fit into memory.
    """
    recipes = {name: letter_probes_recipe(subject, hookpoint=name, config=config) for name in hookpoints}
    with contextlib.ExitStack() as stack:
        builds = {name: stack.enter_context(store.open(recipe)) for name, recipe in recipes.items()}
        missing = {name: build for name, build in builds.items() if build.artifact is None}
        if missing:
            _make(subject, missing, config=config, device=device, report=progress or silent)
        return {name: build.finished() for name, build in builds.items()}


def read_letter_probes(artifact: Artifact) -> LetterProbes | str:
    """The probes, or the reason why there are none."""
    values = read_json(artifact.file("probes.json"))
    if values["reason"] is not None:
        return str(values["reason"])
    weights = load_file(artifact.file("probes.safetensors"))
    rows = load_file(artifact.file("residuals.safetensors"))
    return LetterProbes(
        hookpoint=values["hookpoint"],
        words=pl.read_parquet(artifact.file("words.parquet")),
        probe=LinearProbe(weights["weight"], weights["bias"]),
        f1=[values["f1"][letter] for letter in LETTERS],
        train=rows["train"],
        test=rows["test"],
        fresh=rows["fresh"],
    )


def _make(
    subject: Artifact,
    builds: Mapping[str, Build],
    *,
    config: AbsorptionConfig,
    device: str | Placement,
    report: Progress,
) -> None:
    """Fill and publish the given builds."""
    tokenizer = load_tokenizer(subject)
    words = choose_words(tokenizer, config=config)
    reason = why_unusable(words, config=config)
    contexts: list[Context] = []
    if reason is None:
        contexts = _contexts(tokenizer, words, config=config)
        longest, limit = max(len(context.token_ids) for context in contexts), subject_info(subject)["max_positions"]
        if limit is not None and longest > limit:
            reason = f"not applicable: prompts of {longest} tokens exceed the subject's {limit} positions"
    if reason is not None:
        for name, build in builds.items():
            log.warning("%s, %s: %s", subject.id, name, reason)
            write_json(build.space.out / "probes.json", {"hookpoint": name, "reason": reason})
            build.space.counts = {"words": len(words.texts)}
            build.publish()
        return
    loaded = load_subject(subject, device=device)
    _run_prompts(loaded, contexts, {name: build.space.work for name, build in builds.items()}, config, report)
    for name, build in builds.items():
        rows = _collected(build.space.work, count=len(contexts))
        _write(build, name, words, rows, config=config)
        build.publish()


def _contexts(tokenizer: Any, words: Words, *, config: AbsorptionConfig) -> list[Context]:
    """The prompts as contexts: training words, test words, test words once more."""
    prompts = list(make_prompts(words, config=config))
    contexts = []
    for index, ids in enumerate(tokenise_prompts(tokenizer, prompts, words)):
        blank = np.zeros(len(ids), np.int32)
        contexts.append(Context(index, "health", ids, np.full(len(ids), index, np.int32), blank, blank))
    return contexts


def _run_prompts(
    subject: Subject, contexts: Sequence[Context], work: Mapping[str, Path], config: AbsorptionConfig, report: Progress
) -> None:
    """Write each chunk's activations at the last token `[n, d]` to the work folder of each hookpoint that lacks it."""
    size = config.batch_prompts * _BATCHES_PER_CHUNK
    dtype = storage_dtype("auto", subject)
    for start in range(0, len(contexts), size):
        lacking = [name for name, folder in work.items() if not _chunk(folder, start).exists()]
        if lacking:
            try:
                window = forward_window(
                    subject, contexts[start : start + size], lacking, dtype=dtype, batch_contexts=config.batch_prompts
                )
                # Cloned, because a view would keep the whole prompt's activations in memory.
                last = [{name: rows[-1].clone() for name, rows in found.items()} for _, found in window]
            except BudgetError as error:
                raise BudgetError(
                    f"a batch of {config.batch_prompts} prompts does not fit on {subject.device}",
                    field="absorption.batch_prompts",
                    got=config.batch_prompts,
                    next_step=f"set absorption.batch_prompts to {max(1, config.batch_prompts // 2)}",
                ) from error
            for name in lacking:
                path = _chunk(work[name], start)
                save_file({"rows": torch.stack([found[name] for found in last])}, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
        report(min(start + size, len(contexts)), len(contexts), "prompts")


def _chunk(work: Path, start: int) -> Path:
    return work / f"prompts-{start:08d}.safetensors"


def _collected(work: Path, *, count: int) -> Tensor:
    """The activations of all prompts `[count, d]`, in order."""
    rows = torch.cat([load_file(path)["rows"] for path in sorted(work.glob("prompts-*.safetensors"))])
    if len(rows) != count:
        raise AssertionError(f"{len(rows)} rows of {count} prompts")
    return rows


def _write(build: Build, hookpoint: str, words: Words, rows: Tensor, *, config: AbsorptionConfig) -> None:
    """Train the probes and write the payload."""
    count, middle = len(words.texts), words.train
    train, test, fresh = rows.split([middle, count - middle, count - middle])
    letters = torch.from_numpy(words.letters)
    schedule = Schedule(config.epochs, config.probe_batch, config.lr, config.lr_end, config.seed)
    probe = fit_dense(
        train, letters[:middle], classes=len(LETTERS), schedule=schedule, weight_decay=config.probe_weight_decay
    )
    truth = np.arange(len(LETTERS))[:, None] == words.letters[middle:]
    f1 = f1_scores((probe.scores(test) > 0).numpy().T, truth)
    out = build.space.out
    save_file({"weight": probe.weight, "bias": probe.bias}, out / "probes.safetensors")
    tensors = {"train": train, "test": test, "fresh": fresh}
    save_file({name: values.contiguous() for name, values in tensors.items()}, out / "residuals.safetensors")
    table = {
        "word": words.texts,
        "token_id": words.token_ids,
        "letter": [LETTERS[letter] for letter in words.letters],
        "split": ["train"] * middle + ["test"] * (count - middle),
    }
    pl.DataFrame(table).write_parquet(out / "words.parquet")
    build.space.counts = {"words": count, "train": middle, "test": count - middle, "d_in": rows.shape[1]}
    write_json(
        out / "probes.json",
        {
            "hookpoint": hookpoint,
            "reason": None,
            **build.space.counts,
            "f1": {letter: float(value) if np.isfinite(value) else None for letter, value in zip(LETTERS, f1)},
        },
    )
