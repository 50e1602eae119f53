"""Training rows from the running model: the cache's rows, mixed, and the same after a kill or in several processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from planted import FILLERS, planted_documents, vocabulary
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saeinterp.artifacts import Artifact, ArtifactStore
from saeinterp.config import CaptureConfig, CorpusConfig, CorpusSource, SubjectConfig, TrainingConfig
from saeinterp.errors import ConfigError, DataError, TrainingError
from saeinterp.sae.blocks import Gather, all_gather
from saeinterp.sae.job import Text
from saeinterp.sae.run import Run
from saeinterp.sae.sources import Source
from saeinterp.sae.stream import ActivationStream, StreamRows, open_stream
from saeinterp.sae.trainer import Group, Trainer
from saeinterp.subject import (
    ActivationCache,
    Subject,
    build_corpus,
    collect_activations,
    load_subject,
    prepare_subject,
    read_contexts,
)

HOOKPOINTS = ("layers.0", "layers.2")
CAPTURE = CaptureConfig(hookpoints=HOOKPOINTS, batch_contexts=4, buffer_rows=500)


class Parts(NamedTuple):
    """A subject, a corpus, and what the subject gives on it."""

    subject: Artifact
    corpus: Artifact
    activations: Artifact

    def cache(self, hookpoint: str = "layers.2") -> ActivationCache:
        return ActivationCache.open(self.activations, hookpoint)

    def usable(self, limit: float | None = None) -> Tensor:
        """The rows of the train split that may be trained on."""
        cache = self.cache()
        span = cache.split_rows("train")
        keep = cache.mask() & (cache.norms <= (cache.norm_limit if limit is None else limit))
        return cache.read(span.start, span.stop)[torch.from_numpy(keep[span.start : span.stop])]


def make_parts(folder: Path, documents: list[str], model: Path, *, weights: Any) -> Parts:
    store = ArtifactStore(folder / "runs")
    texts = folder / "documents.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    subject = prepare_subject(SubjectConfig(model=str(model), dtype="float32", weights=weights), store=store)
    config = CorpusConfig(sources=(CorpusSource(name=str(texts)),), context_length=32)
    corpus = build_corpus(subject, config=config, store=store)
    made = collect_activations(subject, corpus, config=CAPTURE, splits=("train", "health"), store=store, device="cpu")
    return Parts(subject, corpus, made)


@pytest.fixture(scope="module")
def worded(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Each document is one word, over and over: a row tells its document, and is the same in any batch."""
    documents = [" ".join([f"w{index}"] * (20 + index)) for index in range(FILLERS)]
    return make_parts(tmp_path_factory.mktemp("worded"), documents, planted_folder, weights="pretrained")


@pytest.fixture(scope="module")
def control(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Random weights, so that a row depends on its whole context, its layer and, in its last bits, its batch."""
    documents = [" ".join(text.split()[: 20 + index]) for index, text in enumerate(planted_documents(60))]
    return make_parts(tmp_path_factory.mktemp("control"), documents, planted_folder, weights="random")


def make_stream(
    parts: Parts, *, loaded: Subject | None = None, limit: float | None = None, **options: Any
) -> ActivationStream:
    cache = parts.cache()
    settings: dict[str, Any] = {"buffer_rows": CAPTURE.buffer_rows, "seed": 0, **options}
    return ActivationStream(
        loaded or load_subject(parts.subject, device="cpu"),
        read_contexts(parts.corpus, splits="train"),
        HOOKPOINTS,
        dict.fromkeys(HOOKPOINTS, cache.norm_limit if limit is None else limit),
        cache.special_ids,
        batch_contexts=CAPTURE.batch_contexts,
        dtype=cache.dtype,
        **settings,
    )


def bits(rows: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in rows.view(torch.uint16)]


def words(parts: Parts, rows: Tensor) -> np.ndarray:
    """The token of each row of the subject whose blocks add nothing."""
    embedding = load_subject(parts.subject, device="cpu").model.get_input_embeddings().weight.detach()
    return torch.cdist(rows.float(), embedding).argmin(1).numpy()


def read_epoch(source: StreamRows, *, blocks: int, count: int = 16) -> Tensor:
    """What is left of an epoch, in batches as long as they fit."""
    pieces = []
    end = source.block // blocks * blocks + blocks
    while source.block < end:
        pieces.append(source.next(count if end - source.block > 1 else 1))
    return torch.cat(pieces)


def test_an_epoch_is_every_usable_row_of_the_cache_once(worded: Parts) -> None:
    stream = make_stream(worded)
    source = stream.source("layers.2", 0)
    rows = read_epoch(source, blocks=stream.plan.blocks)
    expected = worded.usable()
    assert stream.plan.blocks > 4
    assert source.rows == len(expected) == len(rows)
    assert sorted(bits(rows)) == sorted(bits(expected))
    span = worded.cache().split_rows("train")
    assert sum(source.masked.values()) + source.rows == len(span)


def test_rows_that_depend_on_their_context_are_those_of_the_cache_up_to_rounding(control: Parts) -> None:
    stream = make_stream(control)
    rows = read_epoch(stream.source("layers.2", 0), blocks=stream.plan.blocks).float()
    expected = control.usable().float()
    assert len(rows) == len(expected)
    distance = torch.cdist(rows, expected)
    mine, theirs = linear_sum_assignment(distance.numpy())
    apart = float(distance[mine, theirs].max())
    assert apart < 0.01 * float(expected.norm(dim=1).median())
    # The other hookpoint is not the same rows.
    other = ActivationCache.open(control.activations, "layers.0")
    first = stream.source("layers.0", 0).first(50).float()
    assert float(torch.cdist(first, other.read(0, other.rows).float()).min(1).values.max()) < apart + 0.01
    assert float(torch.cdist(first, expected).min(1).values.min()) > 10 * apart


def test_rows_of_one_document_are_spread_over_the_buffer(worded: Parts) -> None:
    stream = make_stream(worded)
    found = words(worded, stream.source("layers.2", 0).first(400))
    together = float((found[1:] == found[:-1]).mean())
    ordered = words(worded, worded.usable()[:400])
    assert float((ordered[1:] == ordered[:-1]).mean()) > 0.9
    assert together < 0.2
    assert len(set(found[:40])) > 10


def test_every_epoch_has_an_order_of_its_own(worded: Parts) -> None:
    stream = make_stream(worded)
    source = stream.source("layers.2", 0)
    first, second = (read_epoch(source, blocks=stream.plan.blocks) for _ in range(2))
    assert not torch.equal(first, second)
    assert sorted(bits(first)) == sorted(bits(second))
    # Other documents share a block: not only the order within blocks changed.
    size = stream.buffer_rows // 2
    assert set(words(worded, first[:size])) != set(words(worded, second[:size]))


def test_seeds_give_other_orders_of_the_same_block(worded: Parts) -> None:
    stream = make_stream(worded)
    one, two = (stream.source("layers.2", seed).first(stream.plan.rows) for seed in (1, 2))
    assert not torch.equal(one, two)
    assert sorted(bits(one)) == sorted(bits(two))
    again = make_stream(worded).source("layers.2", 1).first(stream.plan.rows)
    assert torch.equal(one, again)
    elsewhere = make_stream(worded, seed=5).source("layers.2", 1).first(300)
    assert set(words(worded, elsewhere)) != set(words(worded, one[:300]))


@pytest.mark.parametrize("ahead", [False, True])
def test_a_new_process_goes_on_bit_by_bit_from_any_cursor(control: Parts, ahead: bool) -> None:
    loaded = load_subject(control.subject, device="cpu")
    source = make_stream(control, loaded=loaded).source("layers.2", 3)
    rng = np.random.default_rng(0)
    cursors, batches = [], []
    for count in rng.integers(1, 400, 40):
        cursors.append(json.loads(json.dumps(source.cursor)))
        batches.append(source.next(int(count)))
    assert source.block > 2 * source._stream.plan.blocks
    for index in rng.choice(40, 8, replace=False):
        # A subject that another stream may still be working ahead with is not to be shared.
        resumed = make_stream(control, loaded=None if ahead else loaded, ahead=ahead).source("layers.2", 3)
        resumed.first(10)
        resumed.seek(cursors[index])
        for batch in batches[index : index + 3]:
            assert torch.equal(resumed.next(len(batch)), batch)
        assert resumed.cursor == (cursors[index + 3] if index < 37 else resumed.cursor)


def test_the_first_rows_are_the_first_that_are_given_and_move_nothing(control: Parts) -> None:
    source = make_stream(control).source("layers.2", 0)
    before = source.cursor
    first = source.first(1200)  # of several blocks
    assert source.cursor == before == {"drawn": 0, "block": 0, "offset": 0, "norm": 0}
    assert torch.equal(first, torch.cat([source.next(400) for _ in range(3)]))
    assert torch.equal(source.first(1200), first)
    assert len(source.first(10**9)) == source.rows
    assert source.where(64).startswith("rows 1200-1263 of the stream, from row ")


def test_the_parts_of_all_processes_are_the_batch(control: Parts) -> None:
    whole, split = (make_stream(control).source("layers.0", 0) for _ in range(2))
    for count in (7, 450, 500):
        cursor = split.cursor
        parts = []
        for rank in range(3):
            split.seek(cursor)
            parts.append(split.next(count, rank=rank, size=3))
        assert torch.equal(torch.cat(parts), whole.next(count))


class Meeting:
    """A gather between threads."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._tensors: list[Any] = [None] * size

    def of(self, rank: int) -> Gather:
        def gather(tensor: Tensor) -> list[Tensor]:
            self._tensors[rank] = tensor
            self._barrier.wait(60)
            found = [other.clone() for other in self._tensors]
            self._barrier.wait(60)
            assert len({(other.shape, other.dtype) for other in found}) == 1
            return found

        return gather


def together(size: int, work: Callable[[int, Gather], Any]) -> list[Any]:
    """What `work` returns or raises in each of `size` threads."""
    meeting, results = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank, meeting.of(rank))
        except Exception as error:  # noqa: BLE001, looked at by the test
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(("size", "ahead"), [(2, False), (3, True)])
def test_several_processes_share_the_work_and_get_the_rows_of_one(control: Parts, size: int, ahead: bool) -> None:
    counts = (400, 100, 450, 300, 500, 500)
    limit = float(np.quantile(control.cache().norms, 0.7))  # so that batches keep uneven numbers of rows
    loaded = [load_subject(control.subject, device="cpu") for _ in range(size + 1)]
    passes = [0] * (size + 1)

    def read(subject: int, **options: Any) -> tuple[list[Tensor], list[Any]]:
        def count(*_: Any) -> None:
            passes[subject] += 1

        loaded[subject].model.register_forward_pre_hook(count)
        stream = make_stream(control, loaded=loaded[subject], limit=limit, **options)
        sources = [stream.source(name, 1) for name in HOOKPOINTS]
        rows = [source.next(count) for count in counts for source in sources]
        return rows, [(source.cursor, source.masked) for source in sources]

    def work(rank: int, gather: Gather) -> tuple[list[Tensor], list[Any]]:
        return read(rank, rank=rank, size=size, gather=gather, ahead=ahead)

    found = together(size, work)
    rows, ends = read(size)
    for other, other_ends in found:
        assert all(torch.equal(one, two) for one, two in zip(rows, other, strict=True))
        assert other_ends == ends
    if not ahead:  # one pass of each is over a single token
        assert sum(passes[:size]) - size == passes[size] - 1
        assert max(passes[:size]) <= -(-passes[size] // size) + len(counts)


def test_all_processes_raise_the_error_of_the_one_that_met_it(control: Parts) -> None:
    def work(rank: int, gather: Gather) -> None:
        loaded = load_subject(control.subject, device="cpu")
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight[vocabulary().index("w17")] = float("nan")
        make_stream(control, loaded=loaded, rank=rank, size=2, gather=gather).source("layers.2", 0).first(2000)

    one, two = together(2, work)
    assert isinstance(one, DataError)
    assert isinstance(two, DataError)
    assert str(one) == str(two)


@pytest.mark.parametrize("ahead", [False, True])
def test_hookpoints_share_forward_passes_which_end_at_the_deepest(control: Parts, ahead: bool) -> None:
    def passes(names: tuple[str, ...], rows: int) -> int:
        loaded, count = load_subject(control.subject, device="cpu"), 0

        def seen(*_: Any) -> None:
            nonlocal count
            count += 1

        loaded.model.register_forward_pre_hook(seen)
        heads: list[Any] = []
        loaded.model.lm_head.register_forward_hook(lambda *_: heads.append(1))
        stream = make_stream(control, loaded=loaded, ahead=ahead)
        sources = [stream.source(name, seed) for seed, name in enumerate(names)]
        for source in sources:
            source.first(100)
        for _ in range(rows // 100):
            for source in sources:
                source.next(100)
        for thread in threading.enumerate():
            if thread.name.startswith("block"):
                thread.join()
        assert heads == []
        return count

    alone = passes(("layers.2",), 3000)
    assert passes(HOOKPOINTS, 3000) == passes(("layers.2", "layers.2", "layers.0", "layers.0"), 3000) == alone > 20


@pytest.mark.parametrize("ahead", [False, True])
def test_sources_in_step_hold_at_most_two_blocks(control: Parts, ahead: bool) -> None:
    # Norm limits that differ: sources pass the borders of blocks at different steps.
    cache = control.cache()
    limits = {"layers.0": cache.norm_limit, "layers.2": float(np.quantile(cache.norms, 0.9))}
    stream = ActivationStream(
        load_subject(control.subject, device="cpu"),
        read_contexts(control.corpus, splits="train"),
        HOOKPOINTS,
        limits,
        cache.special_ids,
        buffer_rows=500,
        batch_contexts=4,
        dtype=cache.dtype,
        seed=0,
        ahead=ahead,
    )
    sources = [stream.source(name, 0) for name in HOOKPOINTS]
    most = 0
    while min(source.block for source in sources) < 3:
        for source in sources:
            source.next(60)
            held = {block for blocks in stream.held.values() for block in blocks}
            most = max(most, len(held))
            assert all(block >= min(other.block for other in sources) for block in held)
    assert most == 2
    assert (
        sources[0].cursor["block"] < sources[1].cursor["block"]
        or sources[0].cursor["offset"] < sources[1].cursor["offset"]
    )


@pytest.mark.parametrize("ahead", [False, True])
def test_sources_out_of_step_get_their_rows_and_hold_two_blocks_each_at_most(control: Parts, ahead: bool) -> None:
    loaded = load_subject(control.subject, device="cpu")
    alone = {}
    for seed, name in ((1, "layers.0"), (2, "layers.2"), (3, "layers.2")):
        lone = make_stream(control, loaded=loaded).source(name, seed)
        alone[seed] = torch.cat([lone.next(450) for _ in range(12)])
    stream = make_stream(control, loaded=loaded, ahead=ahead)
    fast, slow, stopped = stream.source("layers.0", 1), stream.source("layers.2", 2), stream.source("layers.2", 3)
    rows: dict[StreamRows, list[Tensor]] = {fast: [], slow: [], stopped: [stopped.next(20)]}
    for _ in range(12):
        rows[fast].append(fast.next(450))
        rows[slow].append(slow.next(150))
        held = stream.held
        assert len(held["layers.0"]) <= 2
        assert len(held["layers.2"]) <= 4  # of two sources
    rows[stopped].append(stopped.next(450))
    for seed, source in ((1, fast), (2, slow), (3, stopped)):
        found = torch.cat(rows[source])
        assert torch.equal(found, alone[seed][: len(found)])


def test_rows_beyond_the_norm_limit_are_never_given_and_are_counted(control: Parts) -> None:
    cache = control.cache()
    limit = float(np.quantile(cache.norms, 0.5))
    stream = make_stream(control, limit=limit)
    source = stream.source("layers.2", 0)
    assert source.masked["norm"] == 0
    rows = read_epoch(source, blocks=stream.plan.blocks)
    kept = len(control.usable(limit))
    assert 0.2 * source.rows < kept < 0.8 * source.rows
    assert float(torch.linalg.vector_norm(rows.float(), dim=1).max()) <= limit
    # Norms a rounding apart from the limit may fall on its other side.
    assert abs(len(rows) - kept) <= 2
    assert source.masked["norm"] == source.rows - len(rows)
    before = source.masked
    source.next(200)  # the second epoch counts nothing twice
    assert source.masked == before
    resumed = make_stream(control, limit=limit).source("layers.2", 0)
    resumed.seek(source.cursor)
    assert resumed.masked == before


def test_special_tokens_and_first_positions_are_never_given(worded: Parts) -> None:
    # Here w0 and w1 are called special.
    cache, special = worded.cache(), [vocabulary().index(word) for word in ("w0", "w1", "<bos>", "<eos>", "<unk>")]
    contexts = read_contexts(worded.corpus, splits="train")
    stream = ActivationStream(
        load_subject(worded.subject, device="cpu"),
        contexts,
        HOOKPOINTS,
        dict.fromkeys(HOOKPOINTS, cache.norm_limit),
        special,
        buffer_rows=500,
        batch_contexts=4,
        dtype=cache.dtype,
        seed=0,
    )
    source = stream.source("layers.0", 0)
    found = words(worded, source.first(source.rows))
    assert not set(special) & set(found)
    wanted = [token for context in contexts for token in context.token_ids[1:] if token not in special]
    assert sorted(found) == sorted(wanted)
    masked = sum(int(np.isin(context.token_ids[1:], special).sum()) for context in contexts)
    assert source.masked == {"position0": len(contexts), "special": masked, "norm": 0}
    assert masked > 0


def test_nan_names_the_hookpoint_the_context_and_the_document(worded: Parts) -> None:
    loaded = load_subject(worded.subject, device="cpu")
    token = vocabulary().index("w17")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token] = float("nan")
    stream = make_stream(worded, loaded=loaded)
    with pytest.raises(DataError, match=r"layers\.\d: the subject produced NaN or infinite activations") as caught:
        stream.source("layers.2", 0).first(10**6)
    places = [
        f"context {context.context_id}, document {context.doc_ids[-1]}"
        for context in read_contexts(worded.corpus, splits="train")
        if token in context.token_ids
    ]
    assert any(place in str(caught.value) for place in places)


def test_a_background_error_reaches_the_one_who_asks(worded: Parts) -> None:
    loaded = load_subject(worded.subject, device="cpu")
    stream = make_stream(worded, loaded=loaded, ahead=True)
    source = stream.source("layers.2", 0)
    source.first(10)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.fill_(float("nan"))
    source.next(10)
    with pytest.raises(DataError, match="NaN"):
        source.next(500)


def test_a_stream_of_several_processes_is_read_in_one_thread(worded: Parts) -> None:
    source = make_stream(worded, size=2, gather=lambda tensor: [tensor, tensor]).source("layers.2", 0)
    (error,) = together(1, lambda rank, gather: source.next(10))
    assert isinstance(error, AssertionError)
    alone = make_stream(worded)
    (rows,) = together(1, lambda rank, gather: alone.source("layers.2", 0).next(10))
    assert torch.equal(rows, make_stream(worded).source("layers.2", 0).next(10))


def test_what_cannot_be_streamed_is_refused(worded: Parts) -> None:
    stream = make_stream(worded)
    source = stream.source("layers.2", 0)
    with pytest.raises(ConfigError, match=r"capture\.buffer_rows: smaller than a training batch of 501 rows.*got 500"):
        source.next(501)
    with pytest.raises(ConfigError, match=r"not captured by this stream \(got 'layers\.1'\)"):
        stream.source("layers.1", 0)
    with pytest.raises(TrainingError, match="not one of a stream"):
        source.seek({"drawn": 512})
    with pytest.raises(ConfigError, match=r"capture\.buffer_rows: must hold a row"):
        make_stream(worded, buffer_rows=0)
    with pytest.raises(DataError, match=r"norms of all rows .*exceed the limit.*norm_multiple"):
        make_stream(worded, limit=1e-9).source("layers.0", 0).next(10)


def test_a_buffer_larger_than_the_corpus_holds_an_epoch(worded: Parts) -> None:
    stream = make_stream(worded, buffer_rows=10**6)
    source = stream.source("layers.2", 0)
    assert stream.plan.blocks == 1
    epochs = [source.next(source.rows) for _ in range(2)]
    assert sorted(bits(epochs[0])) == sorted(bits(epochs[1])) == sorted(bits(worded.usable()))
    assert not torch.equal(*epochs)


def test_a_buffer_smaller_than_a_context_still_gives_every_row_once(worded: Parts) -> None:
    def read(rank: int = 0, size: int = 1, gather: Gather | None = None) -> Tensor:
        # Some blocks hold no row at all.
        source = make_stream(worded, buffer_rows=3, rank=rank, size=size, gather=gather).source("layers.0", 0)
        return torch.cat([source.next(min(3, left)) for left in range(source.rows, 0, -3)])

    rows = read()
    assert sorted(bits(rows)) == sorted(bits(worded.usable()))
    assert all(torch.equal(rows, other) for other in together(2, lambda rank, gather: read(rank, 2, gather)))


def test_a_job_streams_with_the_limits_of_its_activations(control: Parts) -> None:
    text = Text(subject=control.subject, corpus=control.corpus, capture=CAPTURE, device="cpu")
    stream = open_stream(text, control.activations, HOOKPOINTS, Group(), torch.device("cpu"))
    source: Source = stream.source("layers.2", seed=4)
    expected = make_stream(control).source("layers.2", 4)
    assert (source.hookpoint, source.d_in, source.rows) == ("layers.2", 64, expected.rows)
    assert torch.equal(source.next(450), expected.next(450))
    assert source.cursor == expected.cursor


def test_training_on_a_stream_goes_on_to_the_same_weights_after_a_kill(control: Parts) -> None:
    config = TrainingConfig(num_latents=96, k=8, batch_rows=128, epochs=2, log_every=10)
    heldout = control.usable()[:200]

    def runs() -> list[Run]:
        stream = make_stream(control)
        return [Run(stream.source(name, config.seed), heldout, config) for name in HOOKPOINTS]

    whole, killed, resumed = runs(), runs(), runs()
    steps = whole[0].steps
    trainer = Trainer(whole)
    for _ in range(steps):
        assert trainer.step() == {}
    trainer = Trainer(killed)
    for _ in range(steps // 3):
        trainer.step()
    for run, other in zip(resumed, killed, strict=True):
        run.restore(other.snapshot())
    trainer = Trainer(resumed)
    for _ in range(steps - steps // 3):
        trainer.step()
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one.state.params, two.state.params)
        assert one.source.cursor == two.source.cursor
        assert one.source.masked == two.source.masked
    assert whole[1].evaluate().fvu < 0.9 * Run(whole[1].source, heldout, config).evaluate().fvu


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_working_ahead_on_a_gpu_changes_nothing(control: Parts) -> None:
    found = []
    for ahead in (None, False):
        loaded = load_subject(control.subject, device="cuda")
        stream = make_stream(control, loaded=loaded, ahead=ahead)
        sources = [stream.source(name, 1) for name in HOOKPOINTS]
        busy = torch.randn(2000, 2000, device="cuda")
        rows = []
        for _ in range(20):
            rows += [source.next(300) for source in sources]
            busy = (busy @ busy).tanh()  # work on the stream of the training
        found.append(torch.cat(rows))
    assert torch.equal(*found)


def _gloo(rank: int, parts: Parts, folder: Path) -> None:
    """One of two real processes."""
    torch.set_num_threads(1)
    address = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    gather = lambda tensor: all_gather(tensor, device="cpu")  # noqa: E731
    stream = make_stream(parts, rank=rank, size=2, gather=gather)
    rows = [stream.source(name, 1).first(1500) for name in HOOKPOINTS]
    torch.save(rows, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_real_processes_get_the_rows_of_one(control: Parts, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_gloo, (control, tmp_path), nprocs=2)
    stream = make_stream(control)
    for name, *found in zip(HOOKPOINTS, *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        expected = stream.source(name, 1).first(1500)
        assert all(torch.equal(rows, expected) for rows in found)
