"""Which latents go with which tokens: concepts of samples, tests of every pair, and what chance would give."""

from saeinterp.enrichment.association import Associations, associate
from saeinterp.enrichment.concepts import parse_annotation_tokens

__all__ = ["Associations", "associate", "parse_annotation_tokens"]
