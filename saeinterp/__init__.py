"""saeinterp: train, grade, explain, score and compare TopK sparse autoencoders of language models."""

__version__ = "0.1.0"
