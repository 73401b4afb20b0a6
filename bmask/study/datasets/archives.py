"""Data sets that are published as a zip: fetched, and read as it is or unpacked."""

import http.client
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
from filelock import FileLock
from tqdm.auto import tqdm

from ...errors import InputError
from ..files import make_folder, occupied

BROKEN = (OSError, ValueError, SyntaxError, zipfile.BadZipFile, zlib.error, cv2.error)  # what readers of images raise


def ready(last: Path) -> bool:
    """Whether a folder is a prepared data set, with this file of it.

    Raises:
        InputError: there is a folder, with something else in it.
    """
    folder = last.parent
    if occupied(folder) and not last.exists():
        raise InputError(f"{folder} is there already and is no prepared data set; name another folder with --out")
    return last.exists()


def download(url: str, target: Path) -> Path:
    """Fetch a file to ``target``, which is returned; does nothing where it exists.

    Where that fails ``.NAME.part`` keeps what there is, and the next call goes on from there if the server can.

    Raises InputError when the network or the server fails, or nothing can be written there.
    """
    if target.exists():
        return target
    make_folder(target.parent)
    part = target.with_name(f".{target.name}.part")
    try:
        with FileLock(part.with_suffix(".lock")):
            if not target.exists():  # another process may have fetched it meanwhile
                _fetch(url, part)
                os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{url} could not be downloaded to {target} ({error}); try again, which goes on where it was, or fetch it "
            "on another machine and put it there"
        ) from None
    return target


def _fetch(url: str, part: Path) -> None:
    with open(part, "ab") as stream:
        start = max(0, stream.tell() - 1)  # a byte that is there as well: a server refuses to send none
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            start = start if answer.status == 206 else 0  # others send the whole file
            stream.truncate(start)
            size = start + int(answer.headers.get("Content-Length") or 0)
            name = url.rpartition("/")[2]
            with tqdm(total=size or None, initial=start, desc=name, unit="B", unit_scale=True) as bar:
                while block := answer.read(1 << 20):
                    stream.write(block)
                    bar.update(len(block))
    if part.stat().st_size < size:
        raise http.client.IncompleteRead(b"", size - part.stat().st_size)


@contextmanager
def opened(source: Path, url: str) -> Iterator[tuple[list[str], Callable[..., Any]]]:
    """The PNG files of a zip, or of its unpacked folder, and how they are read.

    Yields their names, with / between folders, and a function ``read(name, decode, size=None)``: what ``decode`` makes
    of a file's bytes. It raises one of ``BROKEN``, or gives None, where these are no image. With ``size``, (height,
    width) in pixels of the image, it has to be a mask of that size.

    Raises:
        InputError: ``source`` is neither; or, from ``read``, a file is not what it has to be.
    """
    again = f"download {url} again"
    with _files(source, url) as (names, content):

        def read(name, decode, size=None):
            try:
                found = decode(content(name))
            except BROKEN:
                found = None
            if found is None:
                raise InputError(f"{name} in {source} is no readable PNG; {again}")
            if size and found.shape != size:
                raise InputError(
                    f"the mask {name} in {source} is {found.shape[1]} x {found.shape[0]} pixels, its image {size[1]} x "
                    f"{size[0]}; {again}"
                )
            return found

        # macOS adds ._NAME.png to zips.
        yield [n for n in names if n.endswith(".png") and not n.rpartition("/")[2].startswith(".")], read


@contextmanager
def _files(source: Path, url: str) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    if source.is_dir():
        yield [path.relative_to(source).as_posix() for path in source.rglob("*")], lambda n: (source / n).read_bytes()
        return
    try:
        archive = zipfile.ZipFile(source)
    except FileNotFoundError:
        raise InputError(f"{source} does not exist; download {url} or correct the path") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{source} is neither a folder nor a complete zip ({error}); remove it and download {url} again"
        ) from None
    with archive:
        yield archive.namelist(), archive.read
