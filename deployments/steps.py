"""The steps that prefect.yaml names: `preset` when a flow is deployed, `prepare_process` on the worker before a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import saeinterp
from flows.catalogue import model_of, preset_file
from flows.environment import prepare_environment
from saeinterp.config import override, parse_config, read_yaml
from saeinterp.errors import ConfigError


def preset(flow: str, name: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """A preset as the `config` of a deployment, and the `version` that it was checked by.

    Args:
        changes: As `saeinterp run --set`.

    Raises:
        ConfigError: There is no such preset, or the flow does not take it.
    """
    path = preset_file(name, field="preset")
    values = override(read_yaml(path), changes)
    parse_config(model_of(flow), values, source=str(path))
    return {"config": values, "version": saeinterp.__version__}


def prepare_process() -> dict[str, str]:
    """Make files of this flow run private to its user, and set what `saeinterp run` sets.

    Runs in the process that becomes the flow run; Prefect passes its environment on.

    Raises:
        ConfigError: The worker does not know where artifacts belong: they would go with its temporary folder.
    """
    os.umask(0o077)
    if not os.environ.get("SAEINTERP_ROOT"):
        raise ConfigError(
            "not set for this work pool",
            field="SAEINTERP_ROOT",
            next_step="saeinterp ops setup --root DIR, or set it where the worker is started",
        )
    prepare_environment()
    return {"directory": str(Path.cwd())}
