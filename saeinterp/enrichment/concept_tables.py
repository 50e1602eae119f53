"""The tokens that each sample holds, as a table that latents are associated with.

The surprising choice: a token is counted once per sample, however often it occurs: latents are associated with the
samples that hold it. How many steps a sample has is kept beside: latents that know nothing else go with tokens too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import recipe_of
from saeinterp.config.enrichment import ConceptsConfig
from saeinterp.enrichment.concepts import ANNOTATED, Token, count_annotations, text_grammar
from saeinterp.errors import DamagedArtifactError, DataError
from saeinterp.progress import Progress, silent
from saeinterp.subject import Problems, load_tokenizer, read_problems

VERSION = 1
KIND = "concepts"


class Concepts(NamedTuple):
    """Which samples hold which tokens.

    Attributes:
        samples: `[n]` int32, ascending.
        ids: Their ids.
        present: `[n, tokens]` bool.
        vocabulary: The text of each column, those that most samples hold first.
        categories: The category of each column.
        counts: `[n]` int32: annotations of a sample (grammars `canonical` and `seed`), else tokens, repeats included.
    """

    samples: npt.NDArray[np.int32]
    ids: list[str]
    present: sparse.csr_array
    vocabulary: list[str]
    categories: list[str]
    counts: npt.NDArray[np.int32]


def build_concepts_recipe(problems: Ref, subject: Ref, *, config: ConceptsConfig) -> Recipe:
    """The recipe of a table of concepts."""
    return Recipe(KIND, problems.name, VERSION, recipe_of(config), (problems, subject))


def build_concepts(
    problems: Artifact,
    subject: Artifact,
    *,
    config: ConceptsConfig,
    store: ArtifactStore,
    progress: Progress | None = None,
) -> Artifact:
    """Read the tokens of every sample (the problems of split `health`).

    Payload: `vocabulary.parquet` (`token`, `text`, `category`, `samples`: how many hold it; those that most hold first,
    then by text), `present.parquet` (`sample`, `token`, sorted), `samples.parquet` (`sample`, `id`, `count`) and
    `concepts.json`.

    Args:
        subject: For its tokenizer, with grammar `tokens`: those of the reasoning as the model reads it.

    Raises:
        DataError: No sample holds a token, or there are no tags.
    """
    report = progress or silent

    def write(space: Workspace) -> None:
        samples = read_problems(problems, split="health")
        rows: list[int] = []
        tokens: list[int] = []
        totals: list[int] = []
        numbers: dict[Token, int] = {}
        for row, found in enumerate(_tokens(samples, subject, config)):
            totals.append(len(found))
            rows += [row] * len(found)
            tokens += [numbers.setdefault(token, len(numbers)) for token in found]
            if row % 100 == 0:
                report(row, len(samples), "problems")
        if not numbers:
            raise _nothing(config, len(samples))
        pairs = np.unique(np.stack([rows, tokens]), axis=1)
        held = np.bincount(pairs[1], minlength=len(numbers))
        names = list(numbers)
        order = sorted(range(len(names)), key=lambda token: (-held[token], names[token]))[: config.max_vocabulary]
        place = np.full(len(names), -1)
        place[order] = np.arange(len(order))
        kept = pairs[:, place[pairs[1]] >= 0]
        vocabulary = pl.DataFrame(
            {
                "token": np.arange(len(order), dtype=np.int32),
                "text": [names[token].text for token in order],
                "category": [names[token].category for token in order],
                "samples": held[order].astype(np.int32),
            }
        )
        present = pl.DataFrame({"sample": samples.samples[kept[0]], "token": place[kept[1]].astype(np.int32)})
        present = present.sort("sample", "token")
        counts = _steps(samples, totals, config)
        listed = pl.DataFrame({"sample": samples.samples, "id": samples.ids, "count": counts})
        vocabulary.write_parquet(space.out / "vocabulary.parquet", compression="zstd")
        present.write_parquet(space.out / "present.parquet", compression="zstd")
        listed.write_parquet(space.out / "samples.parquet", compression="zstd")
        facts = {
            "grammar": config.grammar,
            "counted": "annotations" if config.grammar in ANNOTATED else "tokens",
            "samples": len(samples),
            "unique_tokens": len(names),
            "vocabulary": len(order),
            "categories": dict(vocabulary["category"].value_counts().sort("category").iter_rows()),
            "tokens_per_problem": sum(totals) / len(samples),
            "distinct_per_problem": pairs.shape[1] / len(samples),
            "without_tokens": sum(total == 0 for total in totals),
        }
        write_json(space.out / "concepts.json", facts)
        space.counts = {name: facts[name] for name in ("samples", "unique_tokens", "vocabulary", "without_tokens")}
        report(len(samples), len(samples), "problems")

    return store.build(build_concepts_recipe(problems, subject, config=config), write)


def read_concepts(artifact: Artifact) -> Concepts:
    """The table of concepts.

    Raises:
        DamagedArtifactError: Its files do not fit together.
    """
    vocabulary = pl.read_parquet(artifact.file("vocabulary.parquet"))
    samples = pl.read_parquet(artifact.file("samples.parquet"))
    present = pl.read_parquet(artifact.file("present.parquet"))
    numbers = samples["sample"].to_numpy()
    rows = np.searchsorted(numbers, present["sample"].to_numpy())
    columns = present["token"].to_numpy()
    if not np.isin(present["sample"].to_numpy(), numbers).all() or columns.max(initial=0) >= max(vocabulary.height, 1):
        raise DamagedArtifactError(
            f"{artifact.id}: present.parquet names samples or tokens that are not there",
            got=artifact.location,
            next_step=f"remove {artifact.place} and run again; it will be rebuilt",
        )
    matrix = sparse.csr_array(
        (np.ones(len(rows), np.bool_), (rows, columns)), shape=(samples.height, vocabulary.height)
    )
    return Concepts(
        numbers,
        samples["id"].to_list(),
        matrix,
        vocabulary["text"].to_list(),
        vocabulary["category"].to_list(),
        samples["count"].to_numpy(),
    )


def _tokens(problems: Problems, subject: Artifact, config: ConceptsConfig) -> Iterator[list[Token]]:
    """The tokens of each problem, repeats included."""
    if config.grammar == "column":
        if all(tags is None for tags in problems.tags):
            raise DataError(
                "the problems have no tags",
                field="concepts.grammar",
                got="column",
                next_step="name the column that holds them: corpus.tags_column",
            )
        for tags in problems.tags:
            yield [Token(tag, "tag") for tag in tags or () if tag]
    elif config.grammar == "tokens":
        spelling = _Spelling(load_tokenizer(subject))
        for ids, cot in zip(problems.token_ids, problems.cot, strict=True):
            yield [Token(spelling[token], "token") for token in ids[cot.start : cot.stop].tolist()]
    else:
        yield from map(text_grammar(config), problems.reasonings)


class _Spelling(dict[int, str]):
    """Token id -> a text of its own; a piece of a character shows as the tokenizer's vocabulary spells it."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._taken: dict[str, int] = {}

    def __missing__(self, token: int) -> str:
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        # Two ids must not become one token: some tokenizers decode `the` and ` the` alike.
        for text in (self._tokenizer.decode([token]), piece, f"{piece} ({token})"):
            if "\ufffd" not in text and self._taken.setdefault(text, token) == token:
                break
        self[token] = text
        return text


def _steps(problems: Problems, totals: Sequence[int], config: ConceptsConfig) -> npt.NDArray[np.int32]:
    """Of each problem its annotations, or its tokens."""
    annotated = config.grammar in ANNOTATED
    return np.array([count_annotations(text) for text in problems.reasonings] if annotated else totals, np.int32)


def _nothing(config: ConceptsConfig, samples: int) -> DataError:
    wanted = {
        "canonical": "reasoning with calculations such as <<48/2=24>>",
        "seed": "reasoning with calculations such as <<48/2=24>>",
        "regex": f"a match of {config.pattern!r}",
    }.get(config.grammar, "a token")
    return DataError(
        "no sample holds a token",
        field="concepts.grammar",
        got=f"{config.grammar}, {samples} samples",
        expected=f"{wanted} in one sample at least",
        next_step="choose another grammar (words, tokens, regex with a pattern of your own), or another source",
    )
