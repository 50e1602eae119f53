"""Build a corpus: documents, split by a hash of their text, tokenised and cut into contexts.

A document's split depends on its text and the seed alone, so it stays put when sources are added or capped.
The surprising choice: within a split documents come in the order of that hash, not in reading order, so a
token limit takes a fair sample of every source; documents beyond the limit are never tokenised.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.config import SPLITS, CorpusConfig, Split, recipe_of
from saeinterp.errors import ConfigError, DataError
from saeinterp.progress import Progress, silent
from saeinterp.subject.contexts import (
    CONTEXTS_SCHEMA,
    MIN_TOKENS,
    Context,
    Cutter,
    bos_prefix,
    encode,
    special_ids,
)
from saeinterp.subject.models import load_tokenizer, subject_info
from saeinterp.subject.sources import read_source, source_characters, source_recipe, source_title

VERSION = 1
DOCUMENTS_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
_FLUSH_ROWS = 4_096


def build_corpus_recipe(subject: Ref, *, config: CorpusConfig) -> Recipe:
    """The recipe of a corpus tokenised for a subject.

    Raises:
        DataError: A local file is missing, empty or of an unknown kind.
        ConfigError: There is no source, or no such built-in corpus.
    """
    if not config.sources:
        raise ConfigError("names no source", field="corpus.sources", got=[], expected="at least one source")
    values = recipe_of(config)
    values["sources"] = [source_recipe(source, seed=config.seed) for source in config.sources]
    name = "+".join(source_title(source).removeprefix("builtin:").rsplit("/", 1)[-1] for source in config.sources[:3])
    slug = "".join(char if char.isalnum() or char in "._+-" else "-" for char in name)
    return Recipe(kind="corpus", name=slug[:60], version=VERSION, config=values, inputs=(subject,))


def build_corpus(
    subject: Artifact, *, config: CorpusConfig, store: ArtifactStore, progress: Progress | None = None
) -> Artifact:
    """Read, split and tokenise the sources with the subject's tokenizer.

    Payload: `documents.parquet` (those that have a context; `text` is what the character spans refer to, with
    chat template the rendered message; `sha256` is of the text as read), `contexts.parquet` (ordered by split,
    then context), `corpus.json` (special ids, counts per split and source, fingerprint).

    A context starts with the tokens the tokenizer puts before any text (BOS), if it does so. The last piece of
    a document is kept from 8 tokens on.

    Raises:
        DataError: A source is missing, malformed or unreachable; too little text; a split without a context.
        ConfigError: The context is longer than the subject allows; no chat template or end token where needed.
    """
    recipe = build_corpus_recipe(subject, config=config)
    report = progress or silent

    def write(space: Workspace) -> None:
        tokenizer = load_tokenizer(subject)
        _check_tokenizer(tokenizer, subject_info(subject), config)
        found = _read_documents(config, report)
        builder = _Builder(tokenizer, config)
        with (
            pq.ParquetWriter(space.out / "documents.parquet", DOCUMENTS_SCHEMA, compression="zstd") as documents,
            pq.ParquetWriter(space.out / "contexts.parquet", CONTEXTS_SCHEMA, compression="zstd") as contexts,
        ):
            for split in SPLITS:
                chosen = sorted((document for document in found.documents if document.split == split), key=_by_hash)
                builder.write(split, chosen, documents, contexts, report)
        _check_enough(builder, found, config)
        summary = {
            "special_ids": special_ids(tokenizer),
            "context_length": config.context_length,
            "tokens": builder.tokens,
            "contexts": builder.contexts,
            "documents": builder.documents,
            "too_short": builder.too_short,
            "fingerprint": builder.digest.hexdigest(),
            "sources": found.sources,
        }
        write_json(space.out / "corpus.json", summary)
        space.counts = {
            "documents": sum(builder.documents.values()),
            "contexts": sum(builder.contexts.values()),
            "tokens": sum(builder.tokens.values()),
        }

    return store.build(recipe, write)


def estimate_tokens(config: CorpusConfig, *, splits: Sequence[Split] = SPLITS) -> int | None:
    """About how many tokens the given splits will have (four characters a token), without reading or tokenising.

    Where a source's size is unknown beforehand (hub datasets, folders, limited files), token limits count as
    reached; None where a split has no limit either.
    """
    sizes = [source_characters(source, seed=config.seed) for source in config.sources]
    total = None if None in sizes else sum(size for size in sizes if size is not None) / 4
    tokens = 0
    for split in splits:
        fraction, cap = getattr(config.fractions, split), getattr(config.max_tokens, split)
        if fraction == 0:
            continue
        expected = cap if total is None else int(total * fraction)
        if expected is None:
            return None
        tokens += expected if cap is None else min(expected, cap)
    return tokens


class _Document(NamedTuple):
    order: str  # hash with the seed: split and order follow from it
    split: str
    source: str
    sha256: str
    text: str


class _Found(NamedTuple):
    documents: list[_Document]
    sources: list[dict[str, Any]]


def _by_hash(document: _Document) -> str:
    return document.order


def _read_documents(config: CorpusConfig, report: Progress) -> _Found:
    """Every distinct document of every source, assigned to its split."""
    bounds, edge = [], 0.0
    for split in SPLITS:
        edge += getattr(config.fractions, split)
        bounds.append((split, edge))
    last = [split for split in SPLITS if getattr(config.fractions, split) > 0][-1]
    seen: set[str] = set()
    found: list[_Document] = []
    sources = []
    for source in config.sources:
        counts: Counter[str] = Counter(documents=0, duplicates=0, empty=0)
        title = source_title(source)
        for text in read_source(source, seed=config.seed):
            if text is None or not text.strip():
                counts["empty"] += 1
                continue
            try:
                sha256 = hashlib.sha256(text.encode()).hexdigest()
            except UnicodeEncodeError as error:  # jsonl can smuggle half a surrogate pair in
                raise DataError(
                    f"document {sum(counts.values())} holds half a surrogate pair (U+{ord(text[error.start]):04X})",
                    field="corpus.sources.name",
                    got=source.name,
                    expected="text that UTF-8 can write",
                    next_step="mend that document",
                ) from error
            if sha256 in seen:
                counts["duplicates"] += 1
                continue
            seen.add(sha256)
            counts["documents"] += 1
            order = hashlib.sha256(f"{config.seed}:{sha256}".encode()).hexdigest()
            place = int(order[:13], 16) / 16**13
            split = next((name for name, edge in bounds if place < edge), last)
            found.append(_Document(order, split, title, sha256, text))
            if len(found) % 1000 == 0:  # how many there will be is not known
                report(len(found), len(found), "documents read")
        sources.append({"name": title, **counts})
        if not counts["documents"] and not counts["duplicates"]:
            raise DataError(
                "holds no text",
                field="corpus.sources.name",
                got=source.name,
                expected="at least one document that is not blank",
                next_step="check text_column and split",
            )
    return _Found(found, sources)


class _Builder:
    """Tokenises documents split by split and writes both tables; keeps only counts and one buffer."""

    def __init__(self, tokenizer: Any, config: CorpusConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._prefix = [] if config.chat_template else bos_prefix(tokenizer)
        self._next_doc = 0
        self._next_context = 0
        self.tokens: dict[str, int] = {}
        self.contexts: dict[str, int] = {}
        self.documents: dict[str, int] = {}
        self.too_short: dict[str, int] = {}
        self.digest = hashlib.sha256()

    def write(
        self,
        split: Split,
        chosen: list[_Document],
        documents: pq.ParquetWriter,
        contexts: pq.ParquetWriter,
        report: Progress,
    ) -> None:
        """Write the contexts of one split and the documents they come from."""
        limit = getattr(self._config.max_tokens, split)
        tokens = count = too_short = 0
        used: dict[int, _Document] = {}
        rows: list[Context] = []
        for context, members in self._contexts(split, chosen, report):
            if context is None:
                too_short += 1
                continue
            if limit is not None and tokens + len(context.token_ids) > limit:
                break
            tokens += len(context.token_ids)
            count += 1
            used.update(members)
            rows.append(context)
            self.digest.update(context.token_ids.astype("<i4").tobytes())
            self.digest.update(context.doc_ids.astype("<i4").tobytes())
            if len(rows) == _FLUSH_ROWS:
                contexts.write_table(_context_table(rows))
                rows = []
        contexts.write_table(_context_table(rows))
        documents.write_table(_document_table(used))
        self._next_doc = max(used, default=self._next_doc - 1) + 1
        self._next_context += count
        self.tokens[split], self.contexts[split] = tokens, count
        self.documents[split], self.too_short[split] = len(used), too_short

    def _contexts(
        self, split: Split, chosen: list[_Document], report: Progress
    ) -> Iterator[tuple[Context | None, dict[int, _Document]]]:
        """Contexts with the documents they hold; `(None, {})` for a document too short to give one."""
        packing = self._config.packing
        separator = self._tokenizer.eos_token_id if packing else None
        cutter = Cutter(length=self._config.context_length, prefix=self._prefix, separator=separator)
        open_documents: dict[int, _Document] = {}
        doc_id, context_id = self._next_doc, self._next_context
        for done, document in enumerate(chosen):
            encoded = encode(self._tokenizer, self._render(document.text))
            if len(encoded.token_ids) < (1 if packing else MIN_TOKENS):
                yield None, {}
                continue
            open_documents[doc_id] = document._replace(text=encoded.text)
            for run in cutter.add(doc_id, encoded):
                yield Context(context_id, split, *run), _members(open_documents, run.doc_ids)
                context_id += 1
            if not packing:
                open_documents.clear()
            else:
                open_documents = {
                    key: value for key, value in open_documents.items() if key in cutter.pending_documents
                }
            doc_id += 1
            if done % 200 == 199:
                report(done + 1, len(chosen), f"documents of {split}")
        for run in cutter.finish():
            yield Context(context_id, split, *run), _members(open_documents, run.doc_ids)
            context_id += 1

    def _render(self, text: str) -> str:
        if not self._config.chat_template:
            return text
        rendered = self._tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        return str(rendered)


def _members(documents: dict[int, _Document], doc_ids: np.ndarray) -> dict[int, _Document]:
    return {int(index): documents[int(index)] for index in np.unique(doc_ids)}


def _context_table(rows: list[Context]) -> pa.Table:
    columns: list[Any] = [
        pa.array([row.context_id for row in rows], pa.int32()),
        pa.array([row.split for row in rows], pa.string()),
    ]
    for name in ("token_ids", "doc_ids", "char_starts", "char_ends"):
        arrays = [getattr(row, name) for row in rows]
        offsets = np.zeros(len(rows) + 1, np.int32)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        values = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        kind = CONTEXTS_SCHEMA.field(name).type
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.int32)), type=kind))
    return pa.table(columns, schema=CONTEXTS_SCHEMA)


def _document_table(used: dict[int, _Document]) -> pa.Table:
    rows = sorted(used.items())
    columns: list[list[Any]] = [
        [doc_id for doc_id, _ in rows],
        [document.split for _, document in rows],
        [document.source for _, document in rows],
        [document.sha256 for _, document in rows],
        [document.text for _, document in rows],
    ]
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, DOCUMENTS_SCHEMA, strict=True)],
        schema=DOCUMENTS_SCHEMA,
    )


def _check_tokenizer(tokenizer: Any, info: dict[str, Any], config: CorpusConfig) -> None:
    longest = info["max_positions"]
    if longest is not None and config.context_length > longest:
        raise ConfigError(
            f"{info['title']} takes at most {longest} tokens",
            field="corpus.context_length",
            got=config.context_length,
            expected=f"8 to {longest}",
            next_step=f"set context_length to {min(longest, 128)}",
        )
    if config.chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"the tokenizer of {info['title']} has no chat template",
            field="corpus.chat_template",
            got=True,
            next_step="set chat_template: false, or use the model's instruct version",
        )
    if config.packing and tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {info['title']} has no end token to separate packed documents",
            field="corpus.packing",
            got=True,
            next_step="set packing: false",
        )


def _check_enough(builder: _Builder, found: _Found, config: CorpusConfig) -> None:
    total = sum(builder.tokens.values())
    count = len(found.documents)
    limits = any(getattr(config.max_tokens, split) is not None for split in SPLITS)
    if total < config.context_length and not limits:
        raise DataError(
            f"the corpus is too short: {count} documents give {total} usable tokens, less than one context",
            field="corpus.sources",
            got=[source["name"] for source in found.sources],
            expected=f"at least {config.context_length} tokens",
            next_step="add text, or lower corpus.context_length",
        )
    for split in SPLITS:
        if getattr(config.fractions, split) > 0 and not builder.contexts[split]:
            cap = getattr(config.max_tokens, split)
            raise DataError(
                f"split '{split}' is empty: none of {count} documents gave it a context",
                field=f"corpus.max_tokens.{split}" if cap is not None else "corpus.fractions",
                got=cap if cap is not None else getattr(config.fractions, split),
                expected="at least one context in every split whose fraction is above 0",
                next_step="add documents, raise that fraction or limit, or change corpus.seed",
            )
