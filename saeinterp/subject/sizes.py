"""How many parameters a subject has.

The surprising choice: counted from its configuration alone, on torch's meta device, so that no weight is read and the
control, which has no checkpoint, counts like its model.
"""

from __future__ import annotations

from pathlib import Path

from saeinterp.artifacts import Artifact
from saeinterp.subject.autoclasses import auto_classes, explained, quiet
from saeinterp.subject.models import subject_info


def parameter_count(subject: Artifact) -> int | None:
    """Parameters of a prepared subject, tied ones once; None where its checkpoint's folder has gone.

    Raises:
        SubjectError: The configuration cannot be read.
    """
    import torch

    info = subject_info(subject)
    folder = subject.path / "model" if info["source"] == "self" else Path(info["path"])
    if not (folder / "config.json").is_file():
        return None
    auto = auto_classes()
    trust = info["trust_remote_code"]
    with quiet(), explained(info["model"]):
        config = auto.config.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        with torch.device("meta"):
            model = auto.model.from_config(config, trust_remote_code=trust)
        model.tie_weights()
    return sum(parameter.numel() for parameter in {id(item): item for item in model.parameters()}.values())
