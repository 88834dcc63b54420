"""The examples run as scripts, briefly, and do what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
ARGUMENTS = {
    "moment_propagation.py": ["--epochs", "3", "--draws", "5"],
    "own_network.py": ["--epochs", "3"],
    "uncertainty_bands.py": ["--epochs", "3", "--nuts", "4"],
}
OUTPUT = {
    "moment_propagation.py": ["moments: accuracy 0.", "5 draws: accuracy 0.", "of 5 passes", "(sensitivities): 0."],
    "own_network.py": ["accuracy  ", "entropy where right", "'head.weight_out'"],
    "uncertainty_bands.py": ["deep ensemble: epistemic standard deviation: data 0.", "NUTS:", "wrote bands.png"],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(path.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path), *ARGUMENTS[path.name]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [words for words in OUTPUT[path.name] if words not in done.stdout] == []
    assert path.name in (path.parents[1] / "README.md").read_text()
