"""What is known of latents without an explanation, as a report shows it: firing, logits, neighbours, tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saeinterp.artifacts import Artifact, read_json
from saeinterp.report.format import number, plural, visible
from saeinterp.report.pages.payload import joined
from saeinterp.report.results import ProfileFacts
from saeinterp.report.values import Number

if TYPE_CHECKING:
    import polars as pl


def profile_table(profiles: Sequence[Artifact]) -> pl.DataFrame:
    """All profiles in one table, with their hookpoint."""
    import polars as pl

    return pl.concat(
        pl.read_parquet(item.file("profiles.parquet")).with_columns(
            hookpoint=pl.lit(read_json(item.file("profiles.json"))["hookpoint"])
        )
        for item in profiles
    )


def profile_facts(profiles: Sequence[Artifact]) -> tuple[ProfileFacts, ...]:
    """What the profiles of each layer were made from."""
    found = []
    for item in profiles:
        facts = read_json(item.file("profiles.json"))

        def count(value: int, *, source: str = item.id) -> Number:
            return Number(value=value, style="count", n=value, of="tokens", source=source)

        nearest = facts["nearest_by_chance"]
        found.append(
            ProfileFacts(
                hookpoint=facts["hookpoint"],
                tokens_explain=count(facts["tokens"]["explain"]),
                tokens_score=count(facts["tokens"]["score"]),
                nearest_by_chance=Number(
                    value=nearest,
                    n=facts["num_latents"],
                    of="latents",
                    source=item.id,
                    reason=None if nearest is not None else "an SAE of one latent or one dimension",
                ),
                source=item.id,
            )
        )
    return tuple(found)


def profile_page(row: Mapping[str, Any], latent_id: str, facts: ProfileFacts) -> dict[str, Any]:
    """One latent's profile with finished texts.

    Args:
        row: Of `tables/profiles.parquet`.
        latent_id: Such as `L5_F302`.
        facts: Of its layer.
    """
    tokens = sum(int(item.value or 0) for item in (facts.tokens_explain, facts.tokens_score))
    return {
        "dead": None if row["firings"] else f"Dead on this text: it fires on none of {number(tokens, 'count')} tokens.",
        "activations": _bars(
            row["histogram"],
            0.0,
            row["peak"],
            f"{plural(row['firings'], 'activation')} on {number(tokens, 'count')} tokens, "
            f"the strongest {number(row['peak'], 'plain')}.",
        ),
        "logits": {
            **_bars(
                row["logit_histogram"],
                row["logit_low"],
                row["logit_high"],
                "Logits of the whole vocabulary: decoder direction, less the mean direction, through the unembedding. "
                "· is a space.",
            ),
            "up": [[spaced(item["token"]), number(item["logit"], "plain")] for item in row["promoted"]],
            "down": [[spaced(item["token"]), number(item["logit"], "plain")] for item in row["suppressed"]],
        },
        "neighbours": [_neighbour(item, latent_id, facts.nearest_by_chance) for item in row["neighbours"]],
        "neighbours_note": _chance_note(facts.nearest_by_chance),
        "tokens": [_token(item) for item in row["tokens"]],
        "tokens_note": "Chosen on the text shown to the explainers, counted on the other half of the documents. "
        f"Beside it, by chance: there it fires on {number(row['density_score'], 'percent')} of all tokens. "
        "· is a space.",
    }


def spaced(token: str) -> str:
    """A token by itself: its spaces as dots, since one at the end of a cell cannot be seen."""
    return visible(token).replace(" ", "·")


def _bars(counts: Sequence[int], low: float, high: float, caption: str) -> dict[str, Any]:
    """A histogram: counts, the finished edges of its bins, and what it is of."""
    step = (high - low) / max(1, len(counts))
    edges = [number(low + step * place, "plain") for place in range(len(counts) + 1)]
    return {
        "bars": list(counts),
        "texts": [
            f"{edges[place]} to {edges[place + 1]}: {number(count, 'count')}" for place, count in enumerate(counts)
        ],
        "ends": [edges[0], edges[-1]] if counts else [],
        "caption": caption,
    }


def _neighbour(item: Mapping[str, Any], latent_id: str, chance: Number) -> list[str]:
    # The layer's and the position's part of the id are the same.
    prefix = latent_id.rpartition("F")[0]
    above = chance.value is not None and item["cosine"] > chance.value
    return [f"{prefix}F{item['latent']}", number(item["cosine"], "score"), "above chance" if above else "as by chance"]


def _chance_note(chance: Number) -> str:
    if chance.value is None:
        return ""
    return (
        f"Cosine of decoder directions. In 95% of random dictionaries of {plural(chance.n or 0, 'latent')} the nearest "
        f"one stays below {number(chance.value, 'score')}."
    )


def _token(item: Mapping[str, Any]) -> list[str]:
    rate = item["fired"] / item["seen"] if item["seen"] else None
    counts = f"{number(item['fired'], 'count')} of {number(item['seen'], 'count')}"
    return [
        spaced(item["token"]),
        joined(rate, item["low"], item["high"], style="share"),
        f"{counts} in {plural(item['documents'], 'document')}",
        number(item["share"], "share"),
    ]
