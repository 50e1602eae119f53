"""Sparse latent activations of unseen text, and the frozen example sets made from them."""

from saeinterp.latents.cache import LatentCache, cache_latents, cache_latents_recipe
from saeinterp.latents.examples import build_examples, build_examples_recipe
from saeinterp.latents.selection import select_latents

__all__ = [
    "LatentCache",
    "build_examples",
    "build_examples_recipe",
    "cache_latents",
    "cache_latents_recipe",
    "select_latents",
]
