"""Files and folders that are whole or not there, whenever the process that writes them is stopped."""

import errno
import io
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Dict

import numpy as np

from ..errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What the place has, not the program: no permission, a read-only file system, a file where a folder is meant, ...
UNFIT = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EINVAL, errno.ENOENT,
)  # fmt: skip


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary name beside ``path``, then rename: no one sees half a file.

    Raises:
        InputError: it cannot be written there, or the disk is full.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _writing(path, draft):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.touch()  # fails with a reason, where libraries have errors of their own
            write(draft)
            os.replace(draft, path)
        finally:
            with suppress(OSError):
                draft.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file at once; one that holds ``content`` already is left alone, time stamp included."""
    with _writing(path, path):
        same = path.exists() and path.read_bytes() == content
    if not same:
        write_file(path, lambda draft: draft.write_bytes(content))


def npz(arrays: Dict[str, np.ndarray]) -> bytes:
    """The file of ``numpy.savez_compressed``, but by LZMA, which is smaller, and the same for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:  # dated 1980, as zipfile does where it is told no date
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are not there.

    Raises:
        InputError: there can be none, or nothing can be written to it.
    """
    with _writing(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def occupied(path: Path) -> bool:
    """Whether there is something: a file, or a folder that is not empty."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft folder that becomes ``folder`` when the block ends, and vanishes when it raises.

    Of two processes that write the same ``folder`` the second one's draft is discarded.

    Raises:
        InputError: it cannot be written there, or the disk is full.
    """
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with _writing(folder, draft):
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


@contextmanager
def _writing(path: Path, draft: Path) -> Iterator[None]:
    """Say it in a sentence when ``path``, which ``draft`` becomes, cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        place = Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else None
        ours = place and (place == path or place.is_relative_to(draft) or draft.is_relative_to(place))
        if number in UNFIT and ours:
            raise InputError(
                f"{path} cannot be written ({error.strerror}); name another place, or make this one writable"
            ) from error
        if number in FULL or _free(path) < 2**16:  # libraries have errors of their own for that
            raise InputError(
                f"the disk of {path.parent} is full; make room and give the same command again, which goes on where it "
                "was"
            ) from error
        raise


def _free(path: Path) -> float:
    """Bytes on the disk of a file or folder that may not be there yet."""
    for folder in path.absolute().parents:
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return float("inf")
