"""TopK sparse autoencoders: the coder, and the steps that train one or take one over. Names are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeinterp.sae.adopting import adopt_sae, adopt_sae_recipe
    from saeinterp.sae.curves import CurveRow, Heldout, TimingRow, evaluate
    from saeinterp.sae.finished import adopted_from
    from saeinterp.sae.kernels import Activation, TopKCode
    from saeinterp.sae.launch import (
        Launcher,
        TrainedLayers,
        launch_command,
        train_sae,
        train_sae_recipe,
        train_saes,
    )
    from saeinterp.sae.run import Run
    from saeinterp.sae.topk import TopKSae
    from saeinterp.sae.trainer import Group, Trainer

_HOMES = {
    "Activation": "kernels",
    "CurveRow": "curves",
    "Group": "trainer",
    "Heldout": "curves",
    "Launcher": "launch",
    "Run": "run",
    "TimingRow": "curves",
    "TopKCode": "kernels",
    "TopKSae": "topk",
    "TrainedLayers": "launch",
    "Trainer": "trainer",
    "adopt_sae": "adopting",
    "adopt_sae_recipe": "adopting",
    "adopted_from": "finished",
    "evaluate": "curves",
    "launch_command": "launch",
    "train_sae": "launch",
    "train_sae_recipe": "launch",
    "train_saes": "launch",
}

__all__ = [
    "Activation",
    "CurveRow",
    "Group",
    "Heldout",
    "Launcher",
    "Run",
    "TimingRow",
    "TopKCode",
    "TopKSae",
    "TrainedLayers",
    "Trainer",
    "adopt_sae",
    "adopt_sae_recipe",
    "adopted_from",
    "evaluate",
    "launch_command",
    "train_sae",
    "train_sae_recipe",
    "train_saes",
]


def __getattr__(name: str) -> object:
    """Import the module that defines a public name: planning needs the recipes but not torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
