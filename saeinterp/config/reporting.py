"""What a report holds."""

from __future__ import annotations

from pydantic import Field

from saeinterp.config.base import Config


class ReportConfig(Config):
    """How much of the latents lies in a report itself; its tables hold everything whatever is set here."""

    latents: int = Field(5000, ge=0)
    """Latents that can be opened in the report: with their examples, verdicts and replies, those that differ most
    first; with their tokens, those of the largest odds ratios first. The first 512 lie in the page, the others in files
    beside it of some 5 KB a latent."""
