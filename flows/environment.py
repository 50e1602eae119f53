"""Settings that must stand before Prefect, torch or transformers are imported, for the command line and for workers."""

from __future__ import annotations

import os

from saeinterp.artifacts import ArtifactStore


def prepare_environment(root: str | None = None) -> None:
    """Put them into the environment; what the user set wins."""
    if root is not None:
        os.environ["SAEINTERP_ROOT"] = root
    base = ArtifactStore().root
    os.environ.setdefault("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(base / ".prefect"))
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "saeinterp")
    # Threads that spin while they wait take the cores from the training processes beside them: on two shared
    # cores a model ran up to six times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not os.environ.get("SAEINTERP_VERBOSE"):
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
