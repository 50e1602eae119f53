"""Problems: a question and its worked reasoning per sample, as tokens, with the tokens of the reasoning marked.

A sample is a whole problem here, not a context cut from a document: latents and concepts are counted over problems. The
surprising choice: the split called `health` holds the samples that latents and tokens are associated on. It is also
what the trainer holds out for its curves, and the SAEs never train on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import Placement, ProblemsConfig, Split, recipe_of
from saeinterp.errors import ConfigError, DamagedArtifactError, DataError
from saeinterp.progress import Progress, silent
from saeinterp.subject.contexts import bos_prefix, encode, special_ids
from saeinterp.subject.generation import generate
from saeinterp.subject.models import Subject, load_subject, load_tokenizer, subject_info
from saeinterp.subject.problem_sources import Problem, find_problems, single_source
from saeinterp.subject.sources import source_recipe, source_title

VERSION = 1
PROBLEM_SPLITS: tuple[Split, ...] = ("train", "health")
PROBLEMS_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("question", pa.large_string(), nullable=False),
        pa.field("reasoning", pa.large_string(), nullable=False),
        pa.field("generated", pa.large_string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("token_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("cot_start", pa.int32(), nullable=False),
        pa.field("cot_stop", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class Problems:
    """Problems, in the order of `samples`.

    Attributes:
        samples: `[n]` int32, ascending; unique over both splits.
        ids: What the source calls them.
        splits: `train` or `health` of each.
        questions: Empty for texts without a question.
        reasonings: As read, annotations included, also where the model writes its own.
        generated: What the model wrote, or None.
        tags: Tags of the user's own, or None.
        token_ids: int32 `[T]` each: what the model reads, question and reasoning.
        cot: The tokens of the reasoning among them.
    """

    samples: np.ndarray
    ids: list[str]
    splits: list[str]
    questions: list[str]
    reasonings: list[str]
    generated: list[str | None]
    tags: list[list[str] | None]
    token_ids: list[np.ndarray]
    cot: list[range]

    def __len__(self) -> int:
        return len(self.ids)


def build_problems_recipe(subject: Ref, *, config: ProblemsConfig) -> Recipe:
    """The recipe of problems tokenised for a subject.

    Raises:
        DataError: A local file is missing, empty or of an unknown kind.
        ConfigError: No such built-in corpus.
    """
    values = recipe_of(config)
    with single_source():
        values["source"] = source_recipe(config.source, seed=config.seed)
    values["source"].pop("columns", None)  # of the text column, which is not read
    if not config.generate:
        del values["max_new_tokens"]
    name = source_title(config.source).removeprefix("builtin:").rsplit("/", 1)[-1]
    slug = "".join(char if char.isalnum() or char in "._+-" else "-" for char in name)
    return Recipe(kind="problems", name=slug[:60], version=VERSION, config=values, inputs=(subject,))


def build_problems(
    subject: Artifact,
    *,
    config: ProblemsConfig,
    store: ArtifactStore,
    device: str | Placement = "auto",
    progress: Progress | None = None,
) -> Artifact:
    """Read problems, share them out, and tokenise them with the subject's tokenizer.

    Question and reasoning are joined by a line end, after the tokens that the tokenizer puts before any text (BOS). A
    problem longer than `max_tokens` is left out *after* the problems are shared out, so that another tokenizer moves
    none to another split.

    Payload: `problems.parquet` (see `PROBLEMS_SCHEMA`; ordered by sample: first `train`, then `health`) and
    `problems.json` (counts per split, what is left out and why, special ids, a fingerprint of the texts).

    Args:
        device: Where the subject runs with `generate`; else only its tokenizer is loaded.

    Raises:
        DataError: The source cannot be read, a problem lacks a question, reasoning or an id of its own, or there are
            too few.
        ConfigError: Columns of a source that has none; problems longer than the subject allows.
    """
    recipe = build_problems_recipe(subject, config=config)
    report = progress or silent

    def write(space: Workspace) -> None:
        tokenizer = load_tokenizer(subject)
        _check_length(subject_info(subject), config)
        found = find_problems(config)
        listed = [(split, problem) for split in PROBLEM_SPLITS for problem in found.splits[split]]
        problems = [problem for _, problem in listed]
        if config.generate:
            loaded = load_subject(subject, device=device)
            read = _write_reasoning(loaded, problems, config, space.work, report)
        else:
            read = _tokenise(tokenizer, problems, config, report)
        fits = [len(item.token_ids) <= config.max_tokens for item in read]
        kept = [(*pair, item) for pair, item, fit in zip(listed, read, fits, strict=True) if fit]
        counts = {split: sum(other == split for other, _, _ in kept) for split in PROBLEM_SPLITS}
        for split in PROBLEM_SPLITS:
            if not counts[split]:
                raise DataError(
                    f"every problem of split '{split}' has more than {config.max_tokens} tokens",
                    field="corpus.max_tokens",
                    got=config.max_tokens,
                    expected=f"at least {min(len(item.token_ids) for item in read)}",
                    next_step="raise corpus.max_tokens",
                )
        pq.write_table(_table(kept), space.out / "problems.parquet", compression="zstd")
        digest = hashlib.sha256()
        for split, problem, _ in kept:
            digest.update("\0".join((split, problem.id, problem.question, problem.reasoning, "")).encode())
        tokens = {
            split: sum(len(item.token_ids) for other, _, item in kept if other == split) for split in PROBLEM_SPLITS
        }
        summary = {
            "source": source_title(config.source),
            "problems": counts,
            "tokens": tokens,
            "left_out": {
                "duplicates": found.duplicates,
                "too_long": {split: len(found.splits[split]) - counts[split] for split in PROBLEM_SPLITS},
            },
            "unfinished": sum(item.unfinished for _, _, item in kept) if config.generate else None,
            "special_ids": special_ids(tokenizer),
            "fingerprint": digest.hexdigest(),
        }
        write_json(space.out / "problems.json", summary)
        space.counts = {"problems": len(kept), "samples": counts["health"], "tokens": sum(tokens.values())}

    return store.build(recipe, write)


def read_problems(artifact: Artifact, *, split: Split | None = None) -> Problems:
    """The problems of one split, or of both.

    Raises:
        DamagedArtifactError: The table cannot be read.
    """
    try:
        filters = None if split is None else [("split", "=", split)]
        columns = pq.read_table(artifact.file("problems.parquet"), filters=filters).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise DamagedArtifactError(
            f"unreadable table of problems ({str(error).splitlines()[0]})",
            got=artifact.location,
            next_step="remove that artifact's folder and run again; it will be rebuilt",
        ) from error
    return Problems(
        samples=np.array(columns["sample"], np.int32),
        ids=columns["id"],
        splits=columns["split"],
        questions=columns["question"],
        reasonings=columns["reasoning"],
        generated=columns["generated"],
        tags=columns["tags"],
        token_ids=[np.array(ids, np.int32) for ids in columns["token_ids"]],
        cot=[range(*span) for span in zip(columns["cot_start"], columns["cot_stop"], strict=True)],
    )


class _Read(NamedTuple):
    """A problem as the model reads it."""

    token_ids: np.ndarray
    cot: range
    generated: str | None = None
    unfinished: bool = False


def _tokenise(tokenizer: Any, problems: Sequence[Problem], config: ProblemsConfig, report: Progress) -> list[_Read]:
    prefix = bos_prefix(tokenizer)
    result = []
    for done, problem in enumerate(problems):
        head = _head(problem, config)
        encoded = encode(tokenizer, head + problem.text(config.annotations))
        ids = np.concatenate([np.array(prefix, np.int32), encoded.token_ids])
        # A token that holds characters of both belongs to the reasoning.
        start = len(prefix) + int((encoded.ends <= len(head)).sum())
        result.append(_Read(ids, range(start, len(ids))))
        if done % 200 == 0:
            report(done, len(problems), "problems")
    report(len(problems), len(problems), "problems")
    return result


def _write_reasoning(
    subject: Subject, problems: Sequence[Problem], config: ProblemsConfig, work: Path, report: Progress
) -> list[_Read]:
    """Let the subject write the reasoning after each question."""
    tokenizer = subject.tokenizer
    prefix = np.array(bos_prefix(tokenizer), np.int32)
    heads = [encode(tokenizer, _head(problem, config)).token_ids for problem in problems]
    prompts = [np.concatenate([prefix, head]) for head in heads]
    written = generate(
        subject,
        prompts,
        max_new_tokens=config.max_new_tokens,
        work=work,
        report=lambda done: report(done, len(prompts), "problems"),
    )
    return [
        _Read(
            np.concatenate([prompt, ids]),
            range(len(prompt), len(prompt) + len(ids)),
            tokenizer.decode(ids.tolist(), skip_special_tokens=True),
            len(ids) == config.max_new_tokens,
        )
        for prompt, ids in zip(prompts, written, strict=True)
    ]


def _head(problem: Problem, config: ProblemsConfig) -> str:
    """What comes before the reasoning."""
    return "" if config.question_column is None else f"{problem.question}\n"


def _table(kept: Sequence[tuple[Split, Problem, _Read]]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "sample": list(range(len(kept))),
        "id": [problem.id for _, problem, _ in kept],
        "split": [split for split, _, _ in kept],
        "question": [problem.question for _, problem, _ in kept],
        "reasoning": [problem.reasoning for _, problem, _ in kept],
        "generated": [item.generated for _, _, item in kept],
        "tags": [problem.tags for _, problem, _ in kept],
        "token_ids": [item.token_ids for _, _, item in kept],
        "cot_start": [item.cot.start for _, _, item in kept],
        "cot_stop": [item.cot.stop for _, _, item in kept],
    }
    return pa.table(columns, schema=PROBLEMS_SCHEMA)


def _check_length(info: dict[str, Any], config: ProblemsConfig) -> None:
    longest = info["max_positions"]
    if longest is not None and config.max_tokens > longest:
        raise ConfigError(
            f"{info['title']} takes at most {longest} tokens",
            field="corpus.max_tokens",
            got=config.max_tokens,
            expected=f"8 to {longest}",
            next_step=f"set corpus.max_tokens to {longest}; longer problems are left out and counted",
        )
