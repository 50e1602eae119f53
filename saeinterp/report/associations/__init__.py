"""The part of a report about latents and tokens: section, tables, plots, and the pages of its latents."""
