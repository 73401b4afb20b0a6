"""Files and folders that are whole or not there, whenever the process that writes them is stopped."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary name beside ``path``, then rename: no one sees half a file."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file at once; one that holds ``content`` already is left alone, time stamp included."""
    if not path.exists() or path.read_bytes() != content:
        write_file(path, lambda draft: draft.write_bytes(content))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft folder that becomes ``folder`` when the block ends, and vanishes when it raises.

    Of two processes that write the same ``folder`` the second one's draft is discarded.
    """
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        yield draft
        try:
            os.rename(draft, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
