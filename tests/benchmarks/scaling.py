"""How the time of each step grows with layers, tokens and latents: slopes of log time against log size, with intervals.

`make bench-scaling` prints markdown and writes it beside JSON (some minutes). SmolLM2-135M on the Python language
reference, on the CPU; everything but the size that a row names stays as it is. Sizes are taken in turn, from the
smallest to the largest and again. CPU seconds are counted, not wall time, so that other programs disturb less (they do
still: caches and clocks are shared). A slope of 1 is time in proportion, 0 is time that does not grow. Training is the
loop alone, on rows in memory. Start-up of processes is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT / "tests", ROOT):
    sys.path.insert(0, str(place))

import numpy as np  # noqa: E402
import ours  # noqa: E402
import planted_rows  # noqa: E402
import torch  # noqa: E402
from measure import Feed  # noqa: E402
from planted_reports import build_world  # noqa: E402
from scipy import stats  # noqa: E402

from saeinterp.artifacts import Artifact, ArtifactStore  # noqa: E402
from saeinterp.config import CaptureConfig, CorpusConfig, LaunchConfig, SubjectConfig, TrainingConfig  # noqa: E402
from saeinterp.config.base import Split  # noqa: E402
from saeinterp.enrichment import associate  # noqa: E402
from saeinterp.latents import cache_latents  # noqa: E402
from saeinterp.report import write_report  # noqa: E402
from saeinterp.sae import train_saes  # noqa: E402
from saeinterp.subject import build_corpus, collect_activations, prepare_subject  # noqa: E402

LAYERS = ("layers.3", "layers.5", "layers.7", "layers.9", "layers.11", "layers.12", "layers.13", "layers.15")


class Case(NamedTuple):
    """A step, what grows, the sizes, and how to time one of them in seconds."""

    step: str
    grows: str
    sizes: tuple[int, ...]
    seconds: Callable[[int], float]


class Lab:
    """What the cases share: the subject, and corpora and activations by size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(folder / "runs")
        self.subject = prepare_subject(SubjectConfig(), store=self.store)
        self._seeds = 0
        self._activations: dict[tuple[int, int], Artifact] = {}
        self._saes: dict[int, Artifact] = {}

    def fresh(self) -> ArtifactStore:
        """A store in which nothing is found."""
        self._seeds += 1
        return ArtifactStore(self.folder / f"fresh-{self._seeds}")

    def corpus(self, tokens: int) -> Artifact:
        limits = {"train": tokens, "health": 1024, "explain": 1024, "score": 1024}
        config = CorpusConfig.model_validate({"context_length": 128, "max_tokens": limits})
        return build_corpus(self.subject, config=config, store=self.store)

    def capture(
        self, tokens: int, layers: int, store: ArtifactStore, splits: Sequence[Split] = ("train", "health")
    ) -> Artifact:
        config = CaptureConfig(hookpoints=LAYERS[-layers:])  # the deepest is always the same
        corpus = self.corpus(tokens)
        return collect_activations(self.subject, corpus, config=config, splits=splits, store=store)

    def activations(self, tokens: int, layers: int) -> Artifact:
        key = (tokens, layers)
        if key not in self._activations:
            self._activations[key] = self.capture(tokens, layers, self.store, ("train", "health", "explain", "score"))
        return self._activations[key]

    def train(self, tokens: int, layers: int, latents: int, store: ArtifactStore) -> dict[str, Artifact]:
        config = TrainingConfig(num_latents=latents, k=32, epochs=1, batch_rows=512, log_every=100)
        cache, some = self.activations(tokens, layers), list(LAYERS[-layers:])
        launch = LaunchConfig(together=layers, threads=2)
        return dict(train_saes(cache, hookpoints=some, config=config, launch=launch, store=store).saes)

    def sae(self, latents: int) -> Artifact:
        if latents not in self._saes:
            self._saes[latents] = self.train(4_000, 1, latents, self.store)[LAYERS[-1]]
        return self._saes[latents]


def cases(lab: Lab) -> Iterator[Case]:
    """Every step with every size that it could grow with."""

    def capturing(tokens: int, layers: int) -> float:
        lab.corpus(tokens)
        return _clock(lambda store: lab.capture(tokens, layers, store), lab)

    def training(tokens: int, layers: int, latents: int) -> float:
        batch = 512
        steps = tokens // batch
        case = planted_rows.Case("", layers, latents, 32, batch, steps, tokens)
        rows = torch.randn((layers, tokens, planted_rows.D_IN), generator=torch.Generator().manual_seed(0))
        return _clock(lambda _: ours.train(case, Feed(rows, batch_rows=batch, steps=steps), {}, seed=0), lab)

    def encoding(tokens: int, latents: int) -> float:
        sae, cache = lab.sae(latents), lab.activations(tokens, 1)
        return _clock(lambda store: cache_latents(cache, sae, hookpoint=LAYERS[-1], store=store), lab)

    def enriching(samples: int, latents: int, tokens: int = 300) -> float:
        rng = np.random.default_rng(0)
        present = rng.random((samples, tokens)) < 0.05
        active = rng.random((samples, latents)) < 0.1
        return _clock(lambda _: associate(active, present), lab)

    def reporting(layers: int, latents: int) -> float:
        world = build_world(lab.fresh(), hookpoints=LAYERS[:layers], latents=latents, control=False)
        seconds = _clock(lambda _: write_report(**world.arguments()), lab)
        shutil.rmtree(world.store.root)
        return seconds

    tokens, widths, counts = (2_000, 4_000, 8_000, 16_000), (1024, 2048, 4096, 8192), (1, 2, 4, 8)
    rows = (4_096, 8_192, 16_384, 32_768)
    yield Case("enrichment", "samples", (4_000, 8_000, 16_000, 32_000), lambda size: enriching(size, 4_000))
    yield Case("enrichment", "latents", (4_000, 8_000, 16_000, 32_000), lambda size: enriching(4_000, size))
    yield Case("report", "layers", counts, lambda size: reporting(size, 7))
    yield Case("report", "latents", (16, 64, 256, 1024), lambda size: reporting(1, size))
    yield Case("training", "rows", rows, lambda size: training(size, 1, 2048))
    yield Case("training", "latents", widths, lambda size: training(8_192, 1, size))
    yield Case("training", "layers", counts, lambda size: training(8_192, size, 2048))
    yield Case("capture", "tokens", tokens, lambda size: capturing(size, 1))
    yield Case("capture", "layers", counts, lambda size: capturing(4_000, size))
    yield Case("latent cache", "tokens", tokens, lambda size: encoding(size, 2048))
    yield Case("latent cache", "latents", widths, lambda size: encoding(8_000, size))


def _clock(work: Callable[[ArtifactStore], Any], lab: Lab) -> float:
    """CPU seconds of all threads of this process."""
    store = lab.fresh()
    started = time.process_time()
    work(store)
    seconds = time.process_time() - started
    shutil.rmtree(store.root, ignore_errors=True)
    return seconds


def measure(case: Case, *, rounds: int) -> dict[str, Any]:
    """Times of every size, and the slope of log seconds over log size with its 95% interval (Student's t)."""
    case.seconds(case.sizes[0])  # first calls load and compile
    times: dict[int, list[float]] = {size: [] for size in case.sizes}
    for _ in range(rounds):
        for size in case.sizes:
            times[size].append(case.seconds(size))
    points = [(size, seconds) for size, found in times.items() for seconds in found]
    fit = stats.linregress(np.log([size for size, _ in points]), np.log([seconds for _, seconds in points]))
    half = float(stats.t.ppf(0.975, len(points) - 2)) * fit.stderr
    last = case.sizes[-2:]
    top = np.log(median(times[last[1]]) / median(times[last[0]])) / np.log(last[1] / last[0])
    return {
        "step": case.step,
        "grows": case.grows,
        "seconds": {str(size): found for size, found in times.items()},
        "slope": fit.slope,
        "low": fit.slope - half,
        "high": fit.slope + half,
        "last_doubling": float(top),
    }


def markdown(about: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """One row a case."""
    lines = [
        "| step | grows with | from | to | CPU seconds | slope [95%] | last doubling |",
        "|---|---|---:|---:|---|---|---:|",
    ]
    for item in found:
        sizes = list(item["seconds"])
        medians = ", ".join(f"{median(times):.3g}" for times in item["seconds"].values())
        slope = f"{item['slope']:.2f} [{item['low']:.2f}, {item['high']:.2f}]"
        ends = f"{int(sizes[0]):,} | {int(sizes[-1]):,}"
        lines.append(
            f"| {item['step']} | {item['grows']} | {ends} | {medians} | {slope} | {item['last_doubling']:.2f} |"
        )
    lines += [
        "",
        f"{about['machine']}, load {about['load']} at the start. `{about['command']}`, {about['rounds']} rounds.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that every size is measured")
    parser.add_argument("--only", nargs="+", help="only these steps, such as capture training")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-scaling.json")
    options = parser.parse_args()
    import os

    torch.set_num_threads(2)
    about = {
        "command": shlex.join(["tests/benchmarks/scaling.py", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "rounds": options.rounds,
    }
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Lab(Path(folder))):
            if options.only and case.step not in options.only:
                continue
            found.append(measure(case, rounds=options.rounds))
            _write(options.out, about, found)
            print(f"{case.step} by {case.grows}: slope {found[-1]['slope']:.2f}", file=sys.stderr, flush=True)
    print(markdown(about, found))


def _write(out: Path, about: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """After every case, so that an end in the middle loses one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"about": about, "cases": found}, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(about, found) + "\n")


if __name__ == "__main__":
    main()
