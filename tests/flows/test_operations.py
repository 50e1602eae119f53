"""The operating guide on a real server with a password, real workers, and a client in another folder.

The tests go through one lab in the order of the guide: each may use what those before it set up.
"""

from __future__ import annotations

import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import httpx
import pytest
import yaml
from lab import DEPLOY, ROOT, Lab, free_port

from flows.catalogue import FLOWS, preset_file
from saeinterp.config import override, parse_config, read_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
VARIANTS = {"gpu", "small"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with a password; pools, deployments and workers come as the tests go."""
    lab = Lab(tmp_path_factory.mktemp("lab"), free_port())
    try:
        lab.start_server()
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def deployments(lab: Lab) -> dict[str, dict[str, Any]]:
    """Every deployment on the server by its full name."""
    done = lab.saeinterp("ops", "setup", "--gpus", "2", "--root", str(lab.runs))
    assert done.returncode == 0, done.stderr
    done = lab.prefect(*DEPLOY)
    assert done.returncode == 0, done.stdout + done.stderr
    flows = {flow["id"]: flow["name"] for flow in lab.ask("flows/filter", {})}
    found = lab.ask("deployments/filter", {"limit": 200})
    return {f"{flows[item['flow_id']]}/{item['name']}": item for item in found}


@pytest.fixture(scope="module")
def workers(lab: Lab, deployments: dict[str, Any]) -> Lab:
    """The lab with a worker on the pool of a bare name."""
    lab.start_worker("gpu", OPENAI_API_KEY="sk-planted-secret")
    return lab


def test_the_server_answers_nobody_without_its_password_and_keeps_it_private(lab: Lab) -> None:
    for path in ("flows/filter", "block_documents/filter", "variables/filter", "flow_runs/filter"):
        assert httpx.post(f"{lab.url}/{path}", json={}, timeout=30).status_code == 401
        assert httpx.post(f"{lab.url}/{path}", json={}, auth=("saeinterp", "guess"), timeout=30).status_code == 401
    assert lab.ask("flows/filter", {}) == []
    for path in (lab.home / "server.env", *lab.home.glob("prefect.db*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert lab.password.partition(":")[2] not in lab.log("server")


def test_a_dry_run_makes_nothing_and_a_second_setup_changes_nothing(lab: Lab) -> None:
    arguments = ("ops", "setup", "--gpus", "2", "--root", str(lab.runs))
    done = lab.saeinterp(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("would make") == 6
    assert _set_up(lab) == ([], [], [])

    assert lab.saeinterp(*arguments).stdout.count("\nmade ") == 6
    pools, limits, automations = first = _set_up(lab)
    assert {pool["name"]: pool["type"] for pool in pools} == {"gpu": "process", "small": "process"}
    assert {limit["name"]: limit["limit"] for limit in limits} == {"gpu-0": 1, "gpu-1": 1, "vllm": 1}
    assert [(item["trigger"]["within"], item["enabled"]) for item in automations] == [(540, True)]

    done = lab.saeinterp(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nfound ") == 6
    assert _set_up(lab) == first


def test_setup_changes_the_folders_that_are_named_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    before = {pool["name"]: pool for pool in _set_up(lab)[0]}
    done = lab.saeinterp("ops", "setup", "--root", str(tmp_path / "other"))
    assert done.stdout.count("changed ") == 2, done.stderr
    changed = {pool["name"]: _environment(pool) for pool in _set_up(lab)[0]}
    assert changed["gpu"] == {"SAEINTERP_ROOT": str(tmp_path / "other"), "SAEINTERP_GPU_SLOTS": "2"}
    assert changed["small"] == {"SAEINTERP_ROOT": str(tmp_path / "other")}
    done = lab.saeinterp("ops", "setup", "--gpus", "1", "--root", str(lab.runs))
    assert _environment(lab.ask("work_pools/gpu"))["SAEINTERP_GPU_SLOTS"] == "1"
    assert lab.saeinterp("ops", "setup", "--gpus", "2").stdout.count("changed ") == 1
    after = {pool["name"]: pool for pool in _set_up(lab)[0]}
    assert {name: pool["base_job_template"] for name, pool in after.items()} == {
        name: pool["base_job_template"] for name, pool in before.items()
    }


def test_every_flow_is_deployed_on_both_pools_with_its_preset(deployments: dict[str, dict[str, Any]]) -> None:
    assert set(deployments) == {f"{flow}/{variant}" for flow in FLOWS for variant in VARIANTS}
    presets = _presets_in_the_file()
    for name, deployment in deployments.items():
        flow, _, variant = name.partition("/")
        assert deployment["work_pool_name"] == variant
        assert deployment["parameters"]["config"] == presets[name]
        parse_config(FLOWS[flow][1], deployment["parameters"]["config"])
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_weekly_schedules_are_there_and_start_nothing(lab: Lab, deployments: dict[str, dict[str, Any]]) -> None:
    for deployment in deployments.values():
        (schedule,) = deployment["schedules"]
        assert (schedule["slug"], schedule["active"]) == ("weekly", False)
    assert lab.flow_runs() == []


def test_the_form_has_a_title_a_description_and_choices_for_every_field(deployments: dict[str, Any]) -> None:
    for name, deployment in deployments.items():
        schema = deployment["parameter_openapi_schema"]
        for model, definition in schema["definitions"].items():
            assert definition.get("description"), f"{name}: {model}"
            for field, described in definition.get("properties", {}).items():
                where = f"{name}: {model}.{field}"
                assert described.get("title"), where
                assert described.get("description") or "$ref" in str(described), where
                assert "`" not in described["title"], where
        precision = schema["definitions"]["TrainingConfig"]["properties"]["precision"]
        assert precision["enum"] == ["auto", "bfloat16", "float32"]


def test_doctor_warns_of_an_open_server_and_of_files_that_others_can_read(lab: Lab, prefect_url: str) -> None:
    done = lab.saeinterp("doctor", "--root", str(lab.runs))
    assert "ok       Prefect access: only with the password" in done.stdout, done.stdout
    assert "other users" not in done.stdout

    done = lab.saeinterp("doctor", PREFECT_API_URL=prefect_url)
    assert "warning  Prefect access: the server answers without a password" in done.stdout
    assert "saeinterp ops server" in done.stdout

    # Reachable by everybody, unlike what pytest makes.
    with tempfile.TemporaryDirectory() as place:
        shared = Path(place)
        shared.chmod(0o755)
        home, results = shared / "prefect", shared / "results"
        for folder, mode in ((home, 0o755), (results, 0o777)):
            folder.mkdir()
            folder.chmod(mode)
        profiles = home / "profiles.toml"
        profiles.write_text("")
        profiles.chmod(0o644)
        wrong = {"PREFECT_API_AUTH_STRING": "saeinterp:guess", "PREFECT_HOME": str(home)}
        done = lab.saeinterp("doctor", "--root", str(results), **wrong)
        assert done.returncode == 1
        assert "problem  Prefect access: the server refuses the password" in done.stdout
        assert f"problem  private files: other users may read {profiles}" in done.stdout, done.stdout
        assert f"chmod 600 {profiles}" in done.stdout
        assert f"problem  artifacts: other users may read and write {results}" in done.stdout


def test_a_password_that_others_could_have_read_is_not_used_again(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "server.env"
    file.write_text("PREFECT_SERVER_API_AUTH_STRING=saeinterp:known\n")
    file.chmod(0o644)
    done = lab.saeinterp("ops", "server", "--port", str(free_port()), PREFECT_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"chmod 600 {file}" in done.stderr
    assert "known" not in done.stdout + done.stderr


def test_wrong_usage_is_refused_with_code_2_before_a_run_exists(lab: Lab, deployments: dict[str, Any]) -> None:
    for arguments, expected in (
        (("compare-explainer",), "compare-explainers"),
        (("compare-explainers/big",), "compare-explainers/gpu, compare-explainers/small"),
        (("compare-explainers", "-p", "trainign.k=3"), "did you mean 'training'?"),
        (("compare-explainers", "-p", "training.k=0"), "training.k"),
        (("compare-explainers", "--preset", "nope"), "demo-small"),
        (("compare-explainers", "--preset", "compare-models-small"), "subject_a"),
        (("compare-explainers", "--preset", "demo", "--config", "x.yaml"), "one of them"),
        (("compare-explainers", "--config", "x.yaml"), "no such file"),
        (("probe-latents",), "-p probing.file="),
    ):
        done = lab.saeinterp("submit", *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert lab.flow_runs() == []


def test_no_server_is_code_3_with_what_to_do(lab: Lab, deployments: dict[str, Any]) -> None:
    for change, expected in (
        ({"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}, "does not answer"),
        ({"PREFECT_API_URL": ""}, "saeinterp ops server"),
        ({"PREFECT_API_AUTH_STRING": "saeinterp:guess"}, "PREFECT_API_AUTH_STRING"),
    ):
        for arguments in (("submit", "compare-explainers"), ("ops", "setup")):
            done = lab.saeinterp(*arguments, **change)
            assert done.returncode == 3, done.stdout + done.stderr
            assert expected in done.stderr
            assert "Next:" in done.stderr
            assert "guess" not in done.stderr


def test_prefects_own_command_starts_a_deployment_by_its_name(lab: Lab, deployments: dict[str, Any]) -> None:
    done = lab.prefect("deployment", "run", "compare-explainers/gpu", cwd=lab.laptop)
    assert done.returncode == 0, done.stderr
    (run,) = lab.flow_runs()
    assert run["parameters"]["config"]["explainer_b"]["label"] == "Qwen2.5-7B"
    # There is no worker yet; it must not find a run that wants a GPU.
    assert lab.prefect("flow-run", "delete", run["id"]).returncode == 0


def test_without_a_worker_the_run_waits_and_that_is_said(lab: Lab, deployments: dict[str, Any]) -> None:
    done = lab.saeinterp("submit", "train-saes", "--preset", "train-saes-small")
    assert done.returncode == 0, done.stderr
    assert "saeinterp ops worker --pool gpu" in done.stderr
    (run,) = lab.flow_runs()
    assert run["name"] == "smollm2-135m, layers 5 and 15, k 32"
    assert run["id"] in done.stdout
    assert f"/runs/flow-run/{run['id']}" in done.stdout
    assert lab.prefect("flow-run", "delete", run["id"]).returncode == 0


def test_a_bare_name_from_another_folder_runs_to_the_report(workers: Lab, planted_config: Path) -> None:
    values = yaml.safe_load(planted_config.read_text())
    (workers.laptop / "mine.yaml").write_text(yaml.safe_dump(values))
    done = workers.saeinterp("submit", "compare-explainers", "--config", "mine.yaml", "--watch", "-p", "training.k=1")
    assert done.returncode == 0, done.stdout + done.stderr + workers.log("worker-gpu")
    assert done.stdout.startswith("compare-explainers/gpu: subject, layers 0, 1 and 2, k 1: oracle against top-tokens")
    for layer in range(3):
        assert f"train-layer layers.{layer} subject: Completed" in done.stdout
    report = _report(done.stdout)
    assert report.is_file()
    assert workers.runs in report.parents
    assert "run: Completed" in done.stdout

    run = workers.ask(f"flow_runs/{_run_id(done.stdout)}")
    assert run["state_type"] == "COMPLETED"
    assert run["name"] == done.stdout.splitlines()[0].partition(": ")[2]
    # Nothing on the laptop, and nothing that other users of the worker's machine could read.
    assert sorted(path.name for path in workers.laptop.iterdir()) == ["mine.yaml"]
    made = [path for path in workers.runs.rglob("*") if not path.is_symlink()]
    assert (workers.runs / ".prefect").is_dir()
    assert [path for path in (workers.runs, *made) if path.stat().st_mode & 0o077] == []


def test_a_run_that_fails_is_code_1_and_says_how_to_retry(workers: Lab) -> None:
    arguments = ("--preset", "train-saes-small", "-p", "subject.model=no/such-model", "--watch")
    done = workers.saeinterp("submit", "train-saes", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no/such-model" in done.stdout
    assert f"prefect flow-run retry {_run_id(done.stdout)}" in done.stderr


def test_an_interrupted_watch_is_code_130_and_the_run_goes_on(workers: Lab) -> None:
    watching = workers.popen("submit", "train-saes", "--preset", "train-saes-small", "--watch")
    assert watching.stdout is not None
    lines = []
    for line in watching.stdout:
        lines.append(line)
        if "run: Running" in line:
            break
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=60)
    assert watching.returncode == 130, errors
    run_id = _run_id("".join(lines))
    assert f"prefect flow-run cancel {run_id}" in errors
    time.sleep(3)
    assert workers.ask(f"flow_runs/{run_id}")["state_type"] == "RUNNING"

    assert workers.prefect("flow-run", "cancel", run_id).returncode == 0
    assert workers.until(run_id, "CANCELLED", seconds=90)["state_type"] == "CANCELLED"


def test_one_line_activates_a_schedule(lab: Lab, deployments: dict[str, Any], tmp_path: Path) -> None:
    text = (ROOT / "deployments" / "prefect.yaml").read_text()
    active = text.replace("active: false", "active: true", 1)
    (tmp_path / "prefect.yaml").write_text(active)
    file = ("--prefect-file", str(tmp_path / "prefect.yaml"))
    assert lab.prefect("--no-prompt", "deploy", *file, "-n", "train-saes/gpu").returncode == 0
    deployment = lab.ask("deployments/name/train-saes/gpu")
    assert [schedule["active"] for schedule in deployment["schedules"]] == [True]


def _run_id(printed: str) -> str:
    found = re.search(r"^flow run (\S+)$", printed, re.MULTILINE)
    assert found is not None, printed
    return found[1]


def _report(printed: str) -> Path:
    link = re.search(r"^report (file:\S+)$", printed, re.MULTILINE)
    assert link is not None, printed
    return Path(unquote(urlparse(link[1]).path))


def _environment(pool: dict[str, Any]) -> dict[str, str]:
    return dict(pool["base_job_template"]["variables"]["properties"]["env"]["default"])


def _set_up(lab: Lab) -> tuple[list[Any], list[Any], list[Any]]:
    """Pools, concurrency limits and automations, without what moves by itself."""
    moving = ("updated", "created", "status", "active_slots")
    found = (
        lab.ask("work_pools/filter", {}),
        [item for item in lab.ask("v2/concurrency_limits/filter", {}) if not item["name"].startswith("deployment:")],
        lab.ask("automations/filter", {}),
    )
    kept = [
        sorted(
            ({key: value for key, value in item.items() if key not in moving} for item in kind),
            key=lambda item: str(item["name"]),
        )
        for kind in found
    ]
    return kept[0], kept[1], kept[2]


def _presets_in_the_file() -> dict[str, dict[str, Any]]:
    """What prefect.yaml names for every deployment, read from the preset files themselves."""
    found = {}
    for item in yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]:
        step = item["build"][0]["deployments.steps.preset"]
        found[f"{step['flow']}/{item['name']}"] = override(
            read_yaml(preset_file(step["name"])), step.get("changes", ())
        )
    return found
