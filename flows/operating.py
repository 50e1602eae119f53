"""What a Prefect server must have for our deployments, made where it is missing.

Everything is looked up first and what is there stays as it is, so that the command may run again at any time.
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import ConfigError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

POOLS = {"gpu": "Full-size runs, on the machine with the cards.", "small": "Runs of minutes on a CPU, offline."}
SILENT = timedelta(seconds=540)
"""A run whose heartbeats (one a minute) stop for so long is taken for dead."""
ZOMBIES = "Mark silent flow runs as crashed"


class Item(NamedTuple):
    """One thing on the server."""

    status: Literal["made", "changed", "found", "would make", "would change"]
    what: str
    name: str
    detail: str


class Wanted(NamedTuple):
    """What the worker's machine is like; None keeps what the server has, and takes what is here for a new pool."""

    gpus: int | None
    root: str | None
    directory: Path | None
    image: str | None = None
    """Makes pools whose runs are Jobs of this image on a Kubernetes cluster; `gpus` is then what one Job asks for."""


def cards() -> int:
    """GPUs of this machine, without loading torch."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(done.stdout.split())


def _cards(wanted: Wanted) -> int:
    return cards() if wanted.gpus is None else wanted.gpus


def set_up(client: SyncPrefectClient, wanted: Wanted, *, dry_run: bool) -> Iterator[Item]:
    """Make pools, concurrency limits and automations that are missing; items come as they are looked at.

    Raises:
        ConfigError: A pool of ours exists with another type.
    """
    for name in POOLS:
        yield _pool(client, name, wanted, dry_run=dry_run)
    # A cluster gives each Job its cards.
    slots = {} if wanted.image is not None else _slots(wanted)
    there = {limit.name: limit for limit in client.read_global_concurrency_limits(limit=200)}
    for name, purpose in slots.items():
        yield _limit(client, name, purpose, there.get(name), dry_run=dry_run)
    yield _automation(client, dry_run=dry_run)


def _slots(wanted: Wanted) -> dict[str, str]:
    slots = {f"gpu-{index}": f"card {index}: one task at a time" for index in range(_cards(wanted))}
    slots["vllm"] = "one vLLM at a time"
    return slots


def _pool(client: SyncPrefectClient, name: str, wanted: Wanted, *, dry_run: bool) -> Item:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    kind = "process" if wanted.image is None else "kubernetes"
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = new_template(name, wanted)
        if not dry_run:
            client.create_work_pool(
                WorkPoolCreate(name=name, type=kind, description=POOLS[name], base_job_template=template)
            )
        return Item("would make" if dry_run else "made", "work pool", name, _told(template))
    if pool.type != kind:
        known = {"process": "leave --kubernetes out, or ", "kubernetes": "give --kubernetes IMAGE, or "}
        raise ConfigError(
            "a work pool of this name is of another type",
            field=f"work pool {name}",
            got=pool.type,
            expected=kind,
            next_step=f"{known.get(pool.type, '')}rename or delete it: prefect work-pool delete {name}",
        )
    template = copy.deepcopy(pool.base_job_template)
    if wanted.image is None:
        _fill(template, _environment(name, wanted.root, wanted.gpus), wanted.directory)
    else:
        _fill_job(template, name, wanted)
    if template == pool.base_job_template:
        return Item("found", "work pool", name, _told(template) + (", paused" if pool.is_paused else ""))
    if not dry_run:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    return Item("would change" if dry_run else "changed", "work pool", name, _told(template))


def new_template(name: str, wanted: Wanted) -> dict[str, Any]:
    """The job template of a pool that is made."""
    from prefect.workers.process import ProcessWorker

    if wanted.image is not None:
        template: dict[str, Any] = json.loads(job_template_file().read_text(encoding="utf-8"))
        _fill_job(template, name, wanted)
        return template
    template = ProcessWorker.get_default_base_job_template()
    environment = _environment(name, wanted.root or ArtifactStore().shown, _cards(wanted))
    _fill(template, environment, wanted.directory or Path.cwd())
    return template


def job_template_file() -> Path:
    """The job template of our Kubernetes pools, as `prefect work-pool create --base-job-template` takes it too."""
    import deployments

    return Path(deployments.__file__).parent / "kubernetes" / "job-template.json"


def _fill_job(template: dict[str, Any], name: str, wanted: Wanted) -> None:
    """Put defaults into the job template of a Kubernetes pool."""
    properties = template["variables"]["properties"]
    if not {"image", "gpus", "env"} <= set(properties):
        raise ConfigError(
            "its job template is not ours",
            field=f"work pool {name}",
            expected="variables image, gpus and env",
            next_step=f"prefect work-pool update {name} --base-job-template {job_template_file()}",
        )
    mounted = _artifacts_mount(template)
    local = wanted.root if wanted.root is not None and "://" not in wanted.root else None
    if local is not None and mounted is not None and not Path(local).is_relative_to(mounted):
        raise ConfigError(
            "no volume is mounted there, and what a Job writes would go with it",
            field="--root",
            got=local,
            expected=f"{mounted}, or a folder below it",
            next_step="leave --root out; the variable artifacts_claim of the pool says which volume it is",
        )
    properties["image"]["default"] = wanted.image
    _fill(template, _environment(name, wanted.root, None), None)
    if name == "small":
        properties["gpus"]["default"] = 0
    elif wanted.gpus is not None:
        properties["gpus"]["default"] = wanted.gpus


def _artifacts_mount(template: dict[str, Any]) -> str | None:
    """Where the containers of a job template have the volume of the artifacts; None where it has none of that name."""
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    mounts = [mount for container in pod["containers"] for mount in container.get("volumeMounts", [])]
    return next((str(mount["mountPath"]) for mount in mounts if mount["name"] == "artifacts"), None)


def _environment(pool: str, root: str | None, gpus: int | None) -> dict[str, str]:
    """Variables of every run of a pool: where artifacts lie, how many cards have a slot, a step under way for each."""
    values = {} if root is None else {"SAEINTERP_ROOT": root}
    if pool == "gpu" and gpus:
        values["SAEINTERP_GPU_SLOTS"] = str(gpus)
        if gpus > 2:  # the default
            values["SAEINTERP_WORKERS"] = str(gpus)
    return values


def _fill(template: dict[str, Any], environment: dict[str, str], directory: Path | None) -> None:
    """Put defaults into a pool's job template, beside those that are there."""
    properties = template["variables"]["properties"]
    if environment:
        properties["env"]["default"] = {**(properties["env"].get("default") or {}), **environment}
    if directory is not None:
        properties["working_dir"]["default"] = str(directory)


def _told(template: dict[str, Any]) -> str:
    properties = template["variables"]["properties"]
    environment = properties.get("env", {}).get("default") or {}
    root = environment.get("SAEINTERP_ROOT", "the worker's SAEINTERP_ROOT")
    if "working_dir" not in properties:
        cards = properties.get("gpus", {}).get("default")
        return f"artifacts in {root}, each run a Job of {properties['image']['default']} with {cards} GPUs"
    directory = properties["working_dir"].get("default") or "a temporary folder"
    slots = f", {environment['SAEINTERP_GPU_SLOTS']} cards with a slot" if "SAEINTERP_GPU_SLOTS" in environment else ""
    return f"artifacts in {root}, runs start in {directory}{slots}"


def _limit(client: SyncPrefectClient, name: str, purpose: str, there: Any, *, dry_run: bool) -> Item:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    if there is not None:
        state = f"limit {there.limit}, {there.active_slots} in use" + ("" if there.active else ", switched off")
        return Item("found", "concurrency limit", name, state)
    if not dry_run:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    return Item("would make" if dry_run else "made", "concurrency limit", name, purpose)


def _automation(client: SyncPrefectClient, *, dry_run: bool) -> Item:
    there = client.read_automations_by_name(ZOMBIES)
    if there:
        return Item("found", "automation", ZOMBIES, "" if there[0].enabled else "switched off")
    if not dry_run:
        client.create_automation(_zombies())
    detail = f"after {SILENT.seconds} s without a heartbeat"
    return Item("would make" if dry_run else "made", "automation", ZOMBIES, detail)


def _zombies() -> AutomationCore:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    heartbeat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    return AutomationCore(
        name=ZOMBIES,
        description="The process or its machine died without a word. Retry the run: what was finished is kept.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"No heartbeat for {SILENT.seconds} s: its process is gone. Retry this run to go on.",
            )
        ],
    )
