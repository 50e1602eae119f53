"""Names of the environment variables that say what runs the steps of a flow."""

from __future__ import annotations

WORKERS = "SAEINTERP_WORKERS"
RUNNER = "SAEINTERP_TASK_RUNNER"
ADDRESS = "SAEINTERP_DASK_ADDRESS"
CLUSTER = "SAEINTERP_DASK_CLUSTER"
OPTIONS = "SAEINTERP_DASK_OPTIONS"
ADAPT = "SAEINTERP_DASK_ADAPT"
