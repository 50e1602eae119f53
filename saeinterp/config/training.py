"""SAEs and how their training is started."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from saeinterp.config.base import Config, place


class TrainingConfig(Config):
    """One TopK SAE."""

    num_latents: int = Field(1152, ge=1)
    """Dictionary size M."""
    k: int = Field(32, ge=1)
    """Latents active per token."""
    activation: Literal["topk", "abs_topk"] = "topk"
    """`topk`: ReLU, then the k largest. `abs_topk`: the k largest magnitudes, signs kept."""
    epochs: int = Field(4, ge=1)
    """Passes over the training rows."""
    batch_rows: int = Field(512, ge=1)
    """Rows per step, over all processes."""
    optimizer: Literal["adam", "signum"] = "adam"
    """Adam, or SignSGD with momentum."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate; empty takes the rule of the method page for this size and optimizer."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps with rising learning rate."""
    decay_fraction: float = Field(0.2, ge=0, le=1)
    """Share of the steps, at the end, with the learning rate falling to zero."""
    aux_coefficient: float = Field(1 / 32, ge=0)
    """Weight of AuxK, which revives dead latents; 0 turns it off."""
    dead_after_rows: int = Field(20_000, ge=1)
    """A latent silent for so many rows counts as dead."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the large products; `auto` is bfloat16 where the hardware multiplies it fast. Weights stay float32."""
    seed: int = Field(0, ge=0)
    """Seed of initialisation and shuffle."""
    log_every: int = Field(20, ge=1)
    """Steps between rows of the curves."""
    eval_rows: int = Field(4096, ge=1)
    """Held-out rows for the FVU of the curves."""
    checkpoint_seconds: float = place(60.0)
    """Seconds between checkpoints."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict, json_schema_extra={"in_recipe": False})
    """Fields that differ at some hookpoints, as in `{layers.15: {k: 64, lr: 0.002}}`."""
    saes: dict[str, str] = Field(default_factory=dict, json_schema_extra={"in_recipe": False})
    """SAEs that exist, as in `{layers.4: /data/run/layers.4}`: folders that sparsify, SAELens or saeinterp wrote. They
    are taken over, not trained; the content of their files enters the recipe, not their place."""

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if self.k > self.num_latents:
            raise ValueError(f"k = {self.k} exceeds num_latents = {self.num_latents}; lower k or raise num_latents")
        for hookpoint in self.overrides:
            if hookpoint in self.saes:
                raise ValueError(f"overrides: {hookpoint} is not trained, saes names its SAE; name it in one of them")
            self.at(hookpoint)
        return self

    def at(self, hookpoint: str) -> TrainingConfig:
        """The configuration of one hookpoint's SAE, `overrides` applied and dropped, `saes` dropped.

        Raises:
            ValueError: An override names no field of this model, or has a value the field refuses.
        """
        plain = self.model_copy(update={"overrides": {}, "saes": {}})
        changed = self.overrides.get(hookpoint, {})
        return plain.changed(changed, where=f"overrides.{hookpoint}", fixed=("overrides", "saes"))

    def changed(
        self, fields: Mapping[str, Any], *, where: str, fixed: tuple[str, ...] = ("overrides",)
    ) -> TrainingConfig:
        """This configuration with some fields replaced; `where` is the key that holds them, for errors.

        Raises:
            ValueError: One is no field of this model, or one of `fixed`, or has a value that is refused.
        """
        unknown = [name for name in fields if name not in type(self).model_fields or name in fixed]
        if unknown:
            known = sorted(set(type(self).model_fields) - set(fixed))
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"{where}: no field {unknown[0]!r}{hint}")
        try:
            return TrainingConfig.model_validate({**self.model_dump(), **fields})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in (where, *first["loc"]))
            shown = f" (got {first['input']!r})" if first["loc"] else ""
            raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}{shown}") from error


class LaunchConfig(Config):
    """How training is started. `processes`, `threads` and `spread` change the rounding, so they enter the recipe."""

    processes: int = Field(1, ge=1)
    """Processes per SAE (data parallel)."""
    parallel: int = place(2)
    """Layers worked on at once."""
    together: int | None = Field(None, ge=1, json_schema_extra={"in_recipe": False})
    """SAEs of one shape that a process trains as one batched problem; empty is all when streaming, else one."""
    spread: Literal["rows", "saes"] = "rows"
    """Several processes split every batch (`rows`), or each trains SAEs of its own (`saes`, with `together` > 1)."""
    command: tuple[str, ...] = place(())
    """A launcher of your own, as in `[srun, torchrun, --nnodes, "2", ...]`; `-m saeinterp.sae.training --job FILE`
    is added."""
    threads: int | None = Field(None, ge=1)
    """CPU threads per training process; empty shares the cores out over `parallel`."""
    timeout_minutes: float = place(24 * 60.0)
    """Stop a layer's training after this long."""
    memory_gb: float = place(4.0)
    """Training rows each process copies into memory; where they take more, they are read from the mapped files."""
