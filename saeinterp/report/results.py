"""The model behind `results.json`: everything a report prints, each number with its n, interval and source.

The surprising choice: titles and descriptions of the fields are the headings and tooltips of the reports, so a
column is described where it is defined.
"""

from __future__ import annotations

from pydantic import Field

from saeinterp.report.associations.results import EnrichmentSection, InterpretabilitySection
from saeinterp.report.explainer_results import ExplainerSection, PairsSection, ScorersSection, VarianceRow
from saeinterp.report.grade_results import GradeSection, OutsideTable
from saeinterp.report.model_results import ModelSection
from saeinterp.report.values import Fact, Model, Number, Setting

FORMAT = 5
ABSENT = "not known"
"""A configuration value that a side does not have."""


class LayerHealth(Model):
    """Health of one layer of one model on held-out text."""

    side: str = Field(title="Model")
    """The model."""
    hookpoint: str
    """Where the SAE reads, such as `layers.9`."""
    title: str = Field(title="Layer")
    """The hookpoint, with the settings in which its SAEs differ where there are several."""
    dataset: str = Field(title="Dataset")
    """The text it was measured on."""
    layer: int | None
    """Number of the block; empty where the hookpoint names none."""
    loss_recovered: Number = Field(
        title="Loss recovered",
        description="(CE zeroed − CE spliced) / (CE zeroed − CE clean); never clamped",
    )
    loss_recovered_mean: Number = Field(
        title="Recovered (mean)", description="The same against mean ablation, a stronger baseline than zero"
    )
    delta_ce: Number = Field(title="ΔCE", description="Cross entropy spliced − clean, nats per token")
    kl_recovered: Number = Field(title="KL recovered", description="As loss recovered, with KL(clean ‖ spliced)")
    explained_variance: Number = Field(
        title="Explained variance", description="1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²), in float64"
    )
    fvu: Number = Field(title="FVU", description="Fraction of variance unexplained: 1 − explained variance")
    cosine: Number = Field(title="Cosine", description="Mean cosine of activation and reconstruction")
    l0: Number = Field(title="L0", description="Mean latents active per token in the code used")
    dead: Number = Field(title="Dead", description="Share of latents that never fired on the evaluated tokens")
    always_on: Number = Field(title="Always on", description="Latents that fired on every evaluated token")
    absorption: Number = Field(title="Absorption", description="First-letter absorption")
    failed_checks: tuple[str, ...] = Field((), title="Integrity")
    """Rules between the numbers of this row that do not hold."""
    source: str
    """Id of the health artifact."""


HEALTH_COLUMNS = tuple(name for name, info in LayerHealth.model_fields.items() if info.annotation is Number)


class LayerTraining(Model):
    """How one SAE's training ended."""

    side: str = Field(title="Model")
    """The model."""
    hookpoint: str
    """Where the SAE reads, such as `layers.9`."""
    title: str = Field(title="Layer")
    """The hookpoint, with the settings in which its SAEs differ where there are several."""
    num_latents: int | None = Field(None, title="Latents")
    """Size of the dictionary."""
    k: int | None = Field(None, title="k")
    """Latents kept active per token."""
    rows: Number = Field(title="Rows")
    """Different activations trained on."""
    steps: Number = Field(title="Steps")
    """Batches trained on."""
    fvu: Number = Field(title="Held-out FVU")
    """Fraction of variance unexplained on the held-out split at the end."""
    dead: Number = Field(title="Dead at the end", description="Latents silent over the last rows of training")
    source: str
    """Id of the SAE."""


class ProfileFacts(Model):
    """What the profiles of one layer's latents were made from."""

    hookpoint: str = Field(title="Layer")
    """The layer."""
    tokens_explain: Number = Field(title="Tokens, explain", description="Tokens on which a latent's tokens are chosen")
    tokens_score: Number = Field(
        title="Tokens, score", description="Tokens of other documents, on which they are counted"
    )
    nearest_by_chance: Number = Field(
        title="Nearest by chance",
        description="Cosine below which a latent's nearest neighbour lies in 95% of random dictionaries of that shape",
    )
    source: str
    """Id of the profiles."""


class Failure(Model):
    """A step that did not finish: what a flow hands over instead of an artifact."""

    stage: str
    """The step, such as `train`."""
    hookpoint: str | None = None
    """The layer, where the step belongs to one."""
    side: str | None = None
    """The model or explainer, where the step belongs to one."""
    error: str
    """The error's text."""


class Step(Model):
    """One artifact the report rests on."""

    id: str
    """Kind, name and the first digits of the recipe."""
    kind: str
    """What was made."""
    version: int
    """Of the code of the step."""
    counts: dict[str, str]
    """What the step counted, as text."""
    files: int
    """How many files it holds."""
    bytes: int
    """Their size."""


class Provenance(Model):
    """What the numbers were made from; wall times and hosts are in `timing.parquet`."""

    steps: tuple[Step, ...]
    """Every artifact behind the numbers, inputs first."""
    gone: tuple[str, ...]
    """Artifacts that were removed since, such as activations."""
    settings: tuple[Setting, ...]
    """The whole configuration of the run."""
    seeds: tuple[Setting, ...]
    """Of everything drawn at random."""
    tokens: tuple[Fact, ...]
    """Tokens and documents per split."""
    versions: tuple[Setting, ...]
    """Packages the steps ran with; several values where steps differ."""
    platforms: tuple[str, ...]
    """Operating systems and machines that the steps ran on."""


class Results(Model):
    """Everything a report prints."""

    format: int = FORMAT
    """Of this file; raised when its keys change."""
    title: str
    """Heading of the report."""
    setup: tuple[Setting, ...]
    """Model, SAE, corpus, latents and metric, one line each."""
    explainers: ExplainerSection | None
    """Two explainers; of more, the pair whose latents are shown."""
    pairs: PairsSection | None = None
    """Three or more explainers: their ranking and every pair."""
    scorers: ScorersSection | None = None
    """A second scorer beside the first, where one judged too."""
    variance: tuple[VarianceRow, ...] = ()
    """Of scores of explainers with several explanations per latent."""
    models: ModelSection | None
    """Layer health of two models, or of a model and its control."""
    interpretability: InterpretabilitySection | None = None
    """Two models by the latents that go with tokens."""
    enrichment: EnrichmentSection | None = None
    """Which latents of each model go with which tokens."""
    profiles: tuple[ProfileFacts, ...] = ()
    """How the latents' profiles were made, per layer."""
    detail_latents: int = 0
    """Latents whose examples and verdicts can be opened in the page."""
    layers: tuple[LayerHealth, ...]
    """Layer health, one row per SAE and text."""
    grades: GradeSection | None = None
    """How many of four metrics pass, per layer and model."""
    scores_table: OutsideTable | None = None
    """The file that scores were imported from."""
    training: tuple[LayerTraining, ...]
    """How the training of each SAE ended."""
    failures: tuple[Failure, ...]
    """Steps that did not finish; no number includes any of it."""
    findings: tuple[str, ...]
    """Generated sentences, each following from a test or a count in this file."""
    provenance: Provenance
    """What the numbers were made from."""

    @property
    def datasets(self) -> list[str]:
        """The datasets of the health table; more than one are named in it."""
        return list(dict.fromkeys(layer.dataset for layer in self.layers))

    @property
    def contradictions(self) -> list[tuple[str, str]]:
        """Integrity checks that fail: where, and what contradicts what."""
        table = self.scores_table or (self.grades.table if self.grades is not None else None)
        if table is not None:
            return [
                (", ".join(filter(None, (f"{table.unit} {item.line}", item.where))), f"{item.name}: {item.detail}")
                for item in table.problems
            ]
        if self.layers or self.grades is None:
            return [(_where(layer), line) for layer in self.layers for line in layer.failed_checks]
        return [
            (f"{model.title}, {layer.title}, {row.dataset}", line)
            for model in self.grades.models
            for layer in model.layers
            for row in layer.rows
            for line in row.failed_checks
        ]

    @property
    def broken_rules(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The same by rule: its name, then where it fails and the numbers."""
        rules: dict[str, list[tuple[str, str]]] = {}
        for where, line in self.contradictions:
            name, _, detail = line.partition(": ")
            rules.setdefault(name, []).append((where, detail))
        return list(rules.items())


def _where(layer: LayerHealth) -> str:
    return ", ".join((layer.side, layer.title, layer.dataset))
