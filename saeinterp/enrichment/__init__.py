"""Which latents go with which tokens: concepts of samples, tests of every pair, and what chance would give."""

from saeinterp.enrichment.activity import Activity, Site, measure_activity, measure_activity_recipe, read_activity
from saeinterp.enrichment.association import Associations, associate, associate_to
from saeinterp.enrichment.concept_tables import Concepts, build_concepts, build_concepts_recipe, read_concepts
from saeinterp.enrichment.concepts import parse_annotation_tokens
from saeinterp.enrichment.correlating import correlate_latents, correlate_latents_recipe
from saeinterp.enrichment.draws import Draws, draw_rates
from saeinterp.enrichment.rates import summarise_rates

__all__ = [
    "Activity",
    "Associations",
    "Concepts",
    "Draws",
    "Site",
    "associate",
    "associate_to",
    "build_concepts",
    "build_concepts_recipe",
    "correlate_latents",
    "correlate_latents_recipe",
    "draw_rates",
    "measure_activity",
    "measure_activity_recipe",
    "parse_annotation_tokens",
    "read_activity",
    "read_concepts",
    "summarise_rates",
]
