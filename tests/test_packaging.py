"""A built wheel works in an environment and a folder that know nothing of the source tree."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`saeinterp` from a wheel, installed beside the dependencies but away from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    home = folder / "an empty environment"
    venv.create(home, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # Dependencies come from the running environment by path alone: an editable install's own .pth file is
    # not followed from there, so the wheel is the only saeinterp in sight.
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    wheel = next(folder.glob("saeinterp-*.whl"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "-q",
        "--python",
        str(home),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    return home / "bin" / "saeinterp"


def run(command: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SAEINTERP_ROOT": str(folder / "runs")}
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(command), *args], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )


def test_the_wheel_carries_presets_prompts_and_templates(command: Path, tmp_path: Path) -> None:
    code = (
        "import saeinterp, deployments, flows, pathlib\n"
        "root = pathlib.Path(saeinterp.__file__).parent\n"
        "print(root)\n"
        "print(len(list(root.glob('explain/prompts/*.txt'))), len(list(root.glob('report/templates/*'))),"
        " len(list((pathlib.Path(deployments.__file__).parent / 'presets').glob('*.yaml'))))\n"
    )
    python = command.parent / "python"
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, counts = done.stdout.strip().splitlines()
    assert not where.startswith(str(ROOT))
    assert all(int(count) > 0 for count in counts.split())


def test_the_installed_command_plans_a_preset_from_another_folder(command: Path, tmp_path: Path) -> None:
    assert "demo" in run(command, tmp_path, "presets").stdout
    done = run(command, tmp_path, "plan", "compare-explainers", "--config", "preset:demo")
    assert done.returncode == 0, done.stderr
    assert "report/" in done.stdout
