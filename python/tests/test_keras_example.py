"""The Keras example of examples/python. Named so that only the step with TensorFlow collects it (scripts/check.py)."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Server, environment
from test_python_examples import EXAMPLES


# To import TensorFlow from a cold disk takes most of a minute.
@pytest.mark.timeout(180)
def test_keras_learns_from_tfrecord_shards(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import keras_tfrecord

    for path in keras_tfrecord.make(tmp_path, shards=2, records=400):
        server.put(f"keras/{path.name}", path.read_bytes())
    command = [sys.executable, str(EXAMPLES / "keras_tfrecord.py"), "s3://data/keras/", "--epochs", "6"]
    done = subprocess.run(command, env=environment(server), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    share = int(done.stdout.rsplit("% right", 1)[0].split()[-1])
    assert share > 85, done.stdout
