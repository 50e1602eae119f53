"""The page `report.html`: its frame, plots, pages of latents, and the files beside it."""
