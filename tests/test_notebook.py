"""The notebook guide does what it says, on the planted subject."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

PLANTED = {
    "SubjectConfig()": "SubjectConfig(model={folder!r}, dtype='float32')",
    "CorpusConfig()": "CorpusConfig(sources=({{'name': {corpus!r}}},), context_length=64)",
    "TrainingConfig()": "TrainingConfig(num_latents=20, k=1, epochs=2, batch_rows=256)",
    "ExamplesConfig()": "ExamplesConfig(window=16, latents='sample:3')",
    "layers.10": "layers.1",
}


def test_the_guide_runs_from_top_to_bottom(tmp_path: Path, planted_folder: Path, planted_corpus: Path) -> None:
    guide = (ROOT / "docs" / "how-to" / "notebook.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", guide, re.DOTALL))
    for shown, planted in PLANTED.items():
        assert shown in code
        code = code.replace(shown, planted.format(folder=str(planted_folder), corpus=str(planted_corpus)))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().splitlines()[-1]).is_file()
    assert "prefect" not in done.stderr.lower()
