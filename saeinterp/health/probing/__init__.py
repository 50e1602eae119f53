"""Sparse probing: which few latents tell the labels of a table apart."""
