"""The programs and the notebook of examples/python, from the installed wheel; with PyTorch's in test_torch.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Server, environment

EXAMPLES = ROOT / "examples" / "python"


def put_shards(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import shards

    for path in shards.make(folder, shards=3, samples=80):
        server.put(f"examples-python/{path.name}", path.read_bytes())


def test_a_killed_trainer_resumes_with_each_sample_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(server, tmp_path, monkeypatch)
    command = [sys.executable, str(EXAMPLES / "spot_resume.py"), "s3://data/examples-python/", "--kills", "2"]
    done = subprocess.run(command, env=environment(server), capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill 2" in done.stdout
    assert "240 samples: 240 seen, 0 doubled, 0 missing" in done.stdout


def test_the_notebook_runs_and_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, as a kernel would."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((EXAMPLES / "throughput.ipynb").read_text())
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code"), "clear the outputs"
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"throughput.ipynb, {cell['id']}", "exec"), names)
    assert [len(axes.lines) for axes in names["figure"].axes] == [3, 3]
    assert all(len(times) > 0 for times, *_ in names["passes"].values())
