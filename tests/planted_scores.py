"""Score tables and whole artifact chains with planted answers, for the tests of comparisons.

Everything is written in the shapes of the real steps (subject, corpus, SAE, examples, explanations, scores),
so that the comparison reads what it reads in a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from saeinterp.artifacts import Artifact, ArtifactStore, Recipe, Ref, Workspace, write_json
from saeinterp.compare import ScoreTable
from saeinterp.stats import always_yes, auroc, classification

POSITIVES = 15
NEGATIVES = 15


def verdict_rows(
    latents: Sequence[int],
    hit: Mapping[int, float] | float,
    false_alarm: Mapping[int, float] | float,
    *,
    seed: int,
    unusable: float = 0.0,
    documents: int = 12,
    probabilities: bool = True,
) -> pl.DataFrame:
    """Verdicts on `POSITIVES` true and `NEGATIVES` false examples per latent, right at planted rates."""
    rng = np.random.default_rng(seed)
    rows = []
    for latent in latents:
        rate = {True: _at(hit, latent), False: _at(false_alarm, latent)}
        for example in range(POSITIVES + NEGATIVES):
            truth = example < POSITIVES
            said = bool(rng.uniform() < rate[truth])
            missing = bool(rng.uniform() < unusable)
            rows.append(
                {
                    "latent": latent,
                    "example_id": example,
                    "kind": "activating" if truth else "random",
                    "quantile": example % 10 if truth else None,
                    "doc_id": (latent * 7 + example) % documents,
                    "truth": truth,
                    "verdict": None if missing else said,
                    "probability": None if missing or not probabilities else round(0.6 * said + 0.4 * rng.uniform(), 3),
                    "reply": "" if missing else ("yes" if said else "no"),
                    "status": "unusable" if missing else "ok",
                }
            )
    schema = {"latent": pl.Int32, "example_id": pl.Int32, "quantile": pl.Int8, "doc_id": pl.Int32}
    return pl.DataFrame(rows, schema_overrides={**schema, "probability": pl.Float64, "verdict": pl.Boolean})


def score_rows(
    verdicts: pl.DataFrame, *, hookpoint: str, status: Mapping[int, str] | None = None, extra: Sequence[int] = ()
) -> pl.DataFrame:
    """`scores.parquet` of verdicts; `extra` latents were not scored and need a `status`."""
    status = status or {}
    rows = []
    for (latent,), group in verdicts.group_by("latent", maintain_order=True):
        ok = group.filter(pl.col("status") == "ok")
        truth, said = ok["truth"].to_numpy(), ok["verdict"].to_numpy().astype(bool)
        tp, fp = int((truth & said).sum()), int((~truth & said).sum())
        tn, fn = int((~truth & ~said).sum()), int((truth & ~said).sum())
        metrics = {name: _known(value) for name, value in classification(tp, fp, tn, fn)._asdict().items()}
        area = None if ok["probability"].null_count() else auroc(truth, ok["probability"])
        rows.append(
            {
                "latent": latent,
                "hookpoint": hookpoint,
                "status": status.get(int(latent), "scored"),
                "explanation": f"words about {latent}",
                "n": len(group),
                "usable": len(ok),
                "coverage": len(ok) / len(group),
                **{"tp": tp, "fp": fp, "tn": tn, "fn": fn},
                **metrics,
                "auroc": area,
                "f1_always_yes": _known(always_yes(truth.sum(), (~truth).sum()).f1),
                "firings": 100 * (int(latent) + 1),
                "density": 0.01 * (int(latent) + 1),
            }
        )
    rows += [
        {"latent": latent, "hookpoint": hookpoint, "status": status[latent], "firings": 2, "density": 1e-5}
        for latent in extra
    ]
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("latent").cast(pl.Int32))


def table(title: str, verdicts: pl.DataFrame, *, hookpoint: str = "layers.5", **options: object) -> ScoreTable:
    """A score table in memory."""
    scores = score_rows(verdicts, hookpoint=hookpoint, **options)  # type: ignore[arg-type]
    return ScoreTable(title, scores, verdicts.with_columns(hookpoint=pl.lit(hookpoint)))


@dataclass
class Chain:
    """Builds the artifacts that lead to scores; change an attribute to plant a mismatch."""

    store: ArtifactStore
    hookpoint: str = "layers.5"
    latents: Sequence[int] = tuple(range(8))
    sae_seed: int = 0
    num_latents: int = 1152
    corpus_tokens: int = 1000
    examples_seed: int = 0
    scorer: Mapping[str, object] = field(
        default_factory=lambda: {"kind": "detection", "llm": {"model": "judge-1b"}, "threshold": 0.5}
    )
    scorer_prompt: str = "aaaa"

    def explanations(
        self, explainer: str, *, kind: str = "llm", prompt: str = "pppp", reasoned: bool = False, control: str = ""
    ) -> Artifact:
        """Explanations by an explainer, or a control made from those of `explainer`."""
        config: dict[str, object] = {"kind": kind, "llm": {"model": explainer}, "chain_of_thought": reasoned}
        config["prompts"] = {"explain-reasoning" if reasoned else "explain": prompt}
        inputs: tuple[Ref, ...] = (self.examples(), self.subject(), self.sae())
        if control:
            config = {"control": control, "seed": 0}
            inputs = (self.explanations(explainer, kind=kind, prompt=prompt),)
        rows = pl.DataFrame({"latent": list(self.latents), "explainer": [control or explainer] * len(self.latents)})
        return self._build("explanations", self.hookpoint, config, inputs, {"explanations.parquet": rows})

    def scores(self, explanations: Artifact, verdicts: pl.DataFrame, **options: object) -> Artifact:
        """Scores of explanations with given verdicts."""
        rows = score_rows(verdicts, hookpoint=self.hookpoint, **options)  # type: ignore[arg-type]
        config = {"scorer": dict(self.scorer), "prompt_hash": self.scorer_prompt}
        inputs = (explanations, self.examples())
        tables = {"scores.parquet": rows, "verdicts.parquet": verdicts}
        return self._build("scores", self.hookpoint, config, inputs, tables)

    def subject(self) -> Artifact:
        """The model under study."""
        return self._build("subject", "planted", {"model": "planted"}, (), {})

    def corpus(self) -> Artifact:
        """The text."""
        return self._build("corpus", "planted", {"tokens": self.corpus_tokens}, (self.subject(),), {})

    def sae(self) -> Artifact:
        """The SAE of this hookpoint."""
        config = {"training": {"num_latents": self.num_latents, "k": 32, "seed": self.sae_seed}}
        return self._build("sae", self.hookpoint, config, (self.corpus(),), {})

    def examples(self) -> Artifact:
        """The frozen examples."""
        rows = pl.DataFrame({"latent": list(self.latents), "seed": [self.examples_seed] * len(self.latents)})
        config = {"seed": self.examples_seed, "latents": list(self.latents)}
        return self._build("examples", self.hookpoint, config, (self.corpus(), self.sae()), {"examples.parquet": rows})

    def _build(
        self,
        kind: str,
        name: str,
        config: Mapping[str, object],
        inputs: tuple[Ref, ...],
        tables: Mapping[str, pl.DataFrame],
    ) -> Artifact:
        def write(space: Workspace) -> None:
            write_json(space.out / f"{kind}.json", dict(config))
            for file, rows in tables.items():
                rows.write_parquet(space.out / file)

        return self.store.build(Recipe(kind, name, 1, config, inputs), write)


def _at(rate: Mapping[int, float] | float, latent: int) -> float:
    return rate[latent] if isinstance(rate, Mapping) else rate


def _known(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]
    return None if np.isnan(number) else number
