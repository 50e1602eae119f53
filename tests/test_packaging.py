"""A built wheel works in an environment and a folder that know nothing of the source tree."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import saeinterp

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
TEXT = {".py", ".md", ".yaml", ".json", ".toml", ".txt", ".c", ".h", ".Dockerfile", ".example"}


def _pip(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *args], check=True)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, as `make dist` makes it."""
    folder = tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("saeinterp-*.tar.gz"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, sdist: Path) -> dict[str, zipfile.ZipFile]:
    """Wheels built from the source archive and from the tree."""
    built = {}
    for name, source in {"archive": sdist, "tree": ROOT}.items():
        folder = tmp_path_factory.mktemp(name)
        _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
        built[name] = zipfile.ZipFile(next(folder.glob("saeinterp-*.whl")))
    return built


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`saeinterp` from a wheel, installed beside the dependencies but away from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT))
    home = folder / "an empty environment"
    venv.create(home, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # Dependencies come from the running environment by path alone: an editable install's own .pth file is
    # not followed from there, so the wheel is the only saeinterp in sight.
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    wheel = next(folder.glob("saeinterp-*.whl"))
    _pip("--python", str(home), "install", "--no-deps", "--no-index", str(wheel))
    return home / "bin" / "saeinterp"


def run(command: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SAEINTERP_ROOT": str(folder / "runs")}
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(command), *args], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )


def test_a_wheel_from_the_source_archive_is_the_wheel_from_the_tree(wheels: dict[str, zipfile.ZipFile]) -> None:
    content = {name: {item: wheel.read(item) for item in wheel.namelist()} for name, wheel in wheels.items()}
    assert content["archive"] == content["tree"]
    assert len(content["tree"]) > 300


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheels: dict[str, zipfile.ZipFile]) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("saeinterp", "tasks", "flows", "deployments")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheels["archive"].namelist() if ".dist-info/" not in name}
    assert held == wanted
    needed = {"deployments/prefect.yaml", "deployments/presets/demo.yaml", "saeinterp/sae/native_topk.c"}
    assert needed <= held


def test_the_source_archive_holds_what_its_makefile_and_readme_speak_of(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("Makefile", "constraints.txt", "CITATION.cff", "CONTRIBUTING.md", ".dockerignore", "LICENSE"):
        assert name in held
    for folder in ("docker", "tests", "docs", "deployments"):
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in TEXT}
        assert wanted <= held, sorted(wanted - held)[:5]
    assert "docker/.env" not in held


def test_the_version_stands_in_one_place(wheels: dict[str, zipfile.ZipFile]) -> None:
    metadata = next(name for name in wheels["archive"].namelist() if name.endswith(".dist-info/METADATA"))
    assert f"\nVersion: {saeinterp.__version__}\n" in wheels["archive"].read(metadata).decode()
    files = [ROOT / name for name in ("pyproject.toml", "CITATION.cff", "CONTRIBUTING.md", "README.md", "Makefile")]
    files += [path for folder in ("docker", "deployments", "flows", "tasks", "saeinterp") for path in _texts(folder)]
    assert [path.relative_to(ROOT) for path in files if saeinterp.__version__ in path.read_text(encoding="utf-8")] == [
        Path("saeinterp/__init__.py")
    ]
    assert f"## {saeinterp.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def _texts(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).rglob("*") if path.suffix in TEXT]


def test_the_citation_file_follows_its_format_and_a_broken_one_does_not(tmp_path: Path) -> None:
    schema = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.citation-file-format"]
    good = ROOT / "CITATION.cff"
    assert subprocess.run([*schema, str(good)], capture_output=True, check=False).returncode == 0
    bad = tmp_path / "CITATION.cff"
    bad.write_text(good.read_text().replace("authors:", "author:"))
    assert subprocess.run([*schema, str(bad)], capture_output=True, check=False).returncode != 0


def test_the_wheel_carries_presets_prompts_and_templates(command: Path, tmp_path: Path) -> None:
    code = (
        "import saeinterp, deployments, flows, pathlib\n"
        "root = pathlib.Path(saeinterp.__file__).parent\n"
        "print(root)\n"
        "print(len(list(root.glob('explain/prompts/*.txt'))), len(list(root.glob('report/templates/*'))),"
        " len(list((pathlib.Path(deployments.__file__).parent / 'presets').glob('*.yaml'))))\n"
    )
    python = command.parent / "python"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    where, counts = done.stdout.strip().splitlines()
    assert not where.startswith(str(ROOT))
    assert all(int(count) > 0 for count in counts.split())


def test_the_installed_command_plans_a_preset_from_another_folder(command: Path, tmp_path: Path) -> None:
    assert "demo" in run(command, tmp_path, "presets").stdout
    done = run(command, tmp_path, "plan", "compare-explainers", "--config", "preset:demo")
    assert done.returncode == 0, done.stderr
    assert "report/" in done.stdout
