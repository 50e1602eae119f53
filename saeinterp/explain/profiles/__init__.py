"""What can be said of a latent without any explanation: how it fires, on which tokens, and what it writes."""

from saeinterp.explain.profiles.step import describe_latents, describe_latents_recipe

__all__ = ["describe_latents", "describe_latents_recipe"]
