"""Kubernetes files without a cluster: valid as Prefect renders them, and every name in them leads somewhere."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import uuid
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect_kubernetes.worker
import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from shipped_files import ROOT, prefect_settings, wrong_command

from flows.operating import POOLS, Wanted, job_template_file, new_template
from saeinterp.config import TrainSaesConfig, parse_config, read_yaml
from saeinterp.config import override as with_overrides
from saeinterp.errors import ConfigError

FOLDER = ROOT / "deployments/kubernetes"
VERSIONS = ("1.29", "1.37")
IMAGE = "planted/saeinterp-worker-vllm:1"
POD_ONLY_FOR_PREFECT = ("completions", "parallelism")
"""Prefect demands these in the pod, where Kubernetes has no such fields; a cluster leaves them out."""


def documents(name: str) -> list[dict[str, Any]]:
    """The objects of one file."""
    return [item for item in yaml.safe_load_all((FOLDER / name).read_text()) if item]


def pool(name: str) -> dict[str, Any]:
    """The job template that `ops setup --kubernetes IMAGE` gives a pool."""
    return new_template(name, Wanted(gpus=None, root=None, directory=None, image=IMAGE))


def rendered(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The Job that Prefect's worker would send for one flow run."""
    # Only references to stored blocks would ask a server, and there are none.
    nobody = PrefectClient("http://127.0.0.1:9/api")
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(template, values, client=nobody)
    )
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="planted run"))
    return configuration.job_manifest


def strictly(job: dict[str, Any], version: str) -> None:
    """Validate a Job, no unknown field allowed."""
    job = copy.deepcopy(job)
    for field in POD_ONLY_FOR_PREFECT:
        job["spec"]["template"]["spec"].pop(field)
    kubernetes_validate.validate(job, version, strict=True)


def deployed_environment(name: str) -> dict[str, str]:
    """Variables that prefect.yaml gives the runs of a pool."""
    deployments = read_yaml(ROOT / "deployments/prefect.yaml")["deployments"]
    found = next(item for item in deployments if item["work_pool"]["name"] == name)
    return dict(found["work_pool"]["job_variables"]["env"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", list(POOLS))
def test_the_job_of_a_run_follows_kubernetes_schemas(name: str, version: str) -> None:
    job = rendered(pool(name), env=deployed_environment(name))
    strictly(job, version)
    wrong = copy.deepcopy(job)
    wrong["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        strictly(wrong, version)


def test_a_run_has_cards_shared_memory_storage_keys_and_no_privileges() -> None:
    job = rendered(pool("gpu"), env=deployed_environment("gpu"), gpus=2, shared_memory="16Gi")
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == IMAGE
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    volumes = {item["name"]: item for item in pod["volumes"]}
    mounts = {item["mountPath"]: volumes[item["name"]] for item in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == "saeinterp-artifacts"
    assert container["envFrom"] == [{"secretRef": {"name": "saeinterp-keys", "optional": True}}]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment["SAEINTERP_ROOT"] == "/data"
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    assert "SAEINTERP_GPU_SLOTS" not in environment
    # An evicted run is scheduled again and goes on from its checkpoints.
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert not wrong_command(container["args"])


def test_runs_of_the_small_pool_ask_for_no_card() -> None:
    job = rendered(pool("small"), env=deployed_environment("small"))
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 0}


@pytest.mark.parametrize("root", ["/elsewhere", "/database"])
def test_an_artifact_folder_outside_the_volume_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="/data, or a folder below it"):
        new_template("gpu", Wanted(gpus=None, root=root, directory=None, image=IMAGE))


def test_object_storage_needs_no_volume() -> None:
    template = new_template("gpu", Wanted(gpus=None, root="s3://lab/runs", directory=None, image=IMAGE))
    assert template["variables"]["properties"]["env"]["default"]["SAEINTERP_ROOT"] == "s3://lab/runs"


def test_every_variable_of_the_template_is_used_and_every_placeholder_is_a_variable() -> None:
    template = json.loads(job_template_file().read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


def test_prefects_worker_reads_every_field_of_the_template() -> None:
    source = Path(prefect_kubernetes.worker.__file__).read_text()
    fields = set(json.loads(job_template_file().read_text())["job_configuration"])
    own = fields - set(BaseJobConfiguration.model_fields)
    assert own >= {"job_manifest", "namespace"}
    assert [name for name in own if not re.search(rf"(self|configuration)\.{name}\b", source)] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["cluster.yaml", "training-nodes.yaml"])
def test_manifests_follow_kubernetes_schemas_and_a_misspelt_field_does_not(name: str, version: str) -> None:
    for item in documents(name):
        kubernetes_validate.validate(item, version, strict=True)
    wrong = documents(name)[-1]
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_files_agree_on_names_users_and_ports() -> None:
    objects = [*documents("cluster.yaml"), *documents("training-nodes.yaml")]
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    properties = json.loads(job_template_file().read_text())["variables"]["properties"]
    assert ("Namespace", properties["namespace"]["default"]) in names
    assert {item["metadata"].get("namespace") for item in objects} == {None, properties["namespace"]["default"]}
    for claim in ("artifacts_claim", "models_claim"):
        assert ("PersistentVolumeClaim", properties[claim]["default"]) in names
    pods = [item["spec"]["template"]["spec"] for item in objects if item["kind"] in ("Job", "Deployment")]
    pods.append(rendered(pool("gpu"))["spec"]["template"]["spec"])
    users = set()
    for dockerfile in sorted((ROOT / "docker").glob("*.Dockerfile")):
        users |= {int(user) for user in re.findall(r"^USER (\d+)", dockerfile.read_text(), re.MULTILINE)}
    assert {pod["securityContext"]["runAsUser"] for pod in pods} == users
    for pod in pods:
        for volume in pod.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    worker = next(pod for pod in pods if pod.get("serviceAccountName"))
    assert ("ServiceAccount", worker["serviceAccountName"]) in names
    container = worker["containers"][0]
    assert not wrong_command(container["args"])
    assert {item["name"] for item in container["env"]} - prefect_settings() == {"POD_NAMESPACE"}


def test_the_nodes_of_a_training_are_counted_alike_and_find_each_other() -> None:
    service, job = documents("training-nodes.yaml")
    spec = job["spec"]
    container = spec["template"]["spec"]["containers"][0]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    nodes, cards = int(environment["NODES"]), int(environment["CARDS"])
    assert spec["completions"] == spec["parallelism"] == nodes
    assert container["resources"]["limits"]["nvidia.com/gpu"] == cards
    host, _, port = environment["LEADER"].partition(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert [item["port"] for item in service["spec"]["ports"]] == [int(port)]
    words = re.findall(r"--set (?:\"([^\"]*)\"|(\S+))", container["args"][0])
    changes = [re.sub(r"\$(\w+)", lambda name: environment.get(name[1]) or "planted", one or two) for one, two in words]
    config = parse_config(TrainSaesConfig, with_overrides({}, changes), source="training-nodes.yaml")
    assert config.launch.processes == nodes * cards
    assert config.launch.spread == "rows"
    assert f"--nnodes={nodes}" in config.launch.command


def test_no_secret_lies_in_the_files() -> None:
    for path in sorted(FOLDER.iterdir()):
        assert "kind: Secret" not in path.read_text(), path.name
    assert not [path for path in FOLDER.iterdir() if path.suffix not in (".yaml", ".json")]
