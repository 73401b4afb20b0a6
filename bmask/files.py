"""Files and folders that are whole or not there, whenever the process that writes them is stopped."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary name beside ``path``, then rename: no one sees half a file.

    Raises:
        InputError: the disk is full.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _room(path.parent):
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

    Raises:
        InputError: the disk is full.
    """
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        with _room(draft):
            yield draft
        try:
            os.rename(draft, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Say it in a sentence when the disk is full. Libraries have errors of their own for that."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full or shutil.disk_usage(folder).free < 2**16):
            raise
        raise InputError(
            f"the disk of {folder} is full; make room and give the same command again, which goes on where it was"
        ) from error
