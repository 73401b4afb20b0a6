import os
import subprocess
import sys
from pathlib import Path

import pytest

from bmask import runs

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Everything that the study writes goes to an empty folder."""
    monkeypatch.setattr(runs, "OUTPUT", tmp_path)
    return tmp_path


@pytest.fixture
def bmask(tmp_path):
    """Start ``python -m bmask ARGUMENTS`` in a process of its own, with its output under ``tmp_path``."""

    def start(*arguments, output=tmp_path):
        return subprocess.Popen(
            [sys.executable, "-m", "bmask", *map(str, arguments)],
            env={**os.environ, "BMASK_OUTPUT": str(output), "OMP_NUM_THREADS": "1"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
