"""Names for the SAEs of one model: the hookpoint, and beyond it only what tells them apart.

The surprising choice: the settings are read from the recipe of the artifact, so two SAEs that were trained alike but on
other text still get different names (their recipe), and nothing in a table stands twice under one name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saeinterp.artifacts import Artifact
from saeinterp.report.lineage import Lineage

_WORDS = {"k": "k = {}", "num_latents": "{} latents", "seed": "seed {}"}


def sae_titles(saes: Mapping[Artifact, str], lineage: Lineage) -> dict[str, str]:
    """Recipe hash -> title, unique among these SAEs.

    Args:
        saes: SAE artifact -> its hookpoint; folders that are gone count by their recipe alone.
    """
    settings = {sae.hash: _settings(sae, lineage) for sae in saes}
    titles = {}
    for sae, hookpoint in saes.items():
        beside = [other for other, name in saes.items() if name == hookpoint]
        differing = [
            name for name in settings[sae.hash] if len({str(settings[other.hash].get(name)) for other in beside}) > 1
        ]
        said = [_WORDS.get(name, name.replace("_", " ") + " {}").format(settings[sae.hash][name]) for name in differing]
        alike = [other for other in beside if settings[other.hash] == settings[sae.hash]]
        if len(alike) > 1:
            said.append(sae.hash[:8])
        titles[sae.hash] = f"{hookpoint} ({', '.join(said)})" if said else hookpoint
    return titles


def side_titles(artifacts: Sequence[tuple[Artifact, str]], lineage: Lineage) -> dict[str, str]:
    """Artifact id -> title of its SAE, for SAE and health artifacts of one model given with their hookpoints."""
    of = {}
    for artifact, hookpoint in artifacts:
        inputs = [artifact] if artifact.kind == "sae" else lineage.inputs(artifact, "sae")
        of[artifact.id] = (inputs[0] if inputs else artifact, hookpoint)
    titles = sae_titles(dict(of.values()), lineage)
    return {key: titles[sae.hash] for key, (sae, _) in of.items()}


def _settings(sae: Artifact, lineage: Lineage) -> Mapping[str, Any]:
    if sae.kind != "sae" or not sae.exists:
        return {}
    settings: Mapping[str, Any] = lineage.manifest(sae)["config"].get("training", {})
    return settings
