import http.server
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle_tools

from bmask.errors import InputError
from bmask.study import runs

REPOSITORY = Path(__file__).resolve().parent.parent
# Seconds until what hangs is ended: machines with two cores differ in speed by a factor of five.
PATIENCE = 1800
# Started in the background of a shell, tests would pass on that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


def complaint(call, *places: str) -> str:
    """The message of the InputError that ``call`` raises: one line, one sentence, naming each place."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and not message.endswith(".") and ". " not in message
    assert ";" in message  # what to do follows what is wrong
    for place in places:
        assert place in message
    return message


class Stop(Exception):
    """What ends a training in a test."""


def stop_at(iteration):
    """A ``report`` of a training that ends it after this iteration; never, for None."""

    def report(done, _):
        if done == iteration:
            raise Stop

    return report


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def zipped(root: Path) -> Path:
    """A zip of what is in a folder, beside it, with a file that macOS adds."""
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(root))
        archive.writestr("__MACOSX/x/images/._x.png", b"")
    return target


def rle(mask: np.ndarray) -> dict:
    """A mask as it is in a COCO file."""
    encoded = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**encoded, "counts": encoded["counts"].decode()}


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Everything that the study writes goes to an empty folder, and nothing is shipped."""
    monkeypatch.setattr(runs, "OUTPUT", tmp_path)
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "shipped")
    return tmp_path


@pytest.fixture
def serve():
    """Start an HTTP server on this machine whose requests a function answers; gives its address."""
    started = []

    def start(answer):
        handler = type("Handler", (http.server.BaseHTTPRequestHandler,), {"do_GET": answer})
        handler.log_message = lambda *_: None
        started.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


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
