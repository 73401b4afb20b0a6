"""What tables and figures have in common, and which of them have been made."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Dict, List, Optional

from ..errors import InputError
from . import config, runs
from .files import write_bytes
from .runs import Options, Run


@dataclass(frozen=True, eq=False)
class Item(ABC):
    """A table or a figure, as ``experiments/`` describes it. Each is loaded once, and is equal to itself alone.

    number: the paper's, or a name. title: without the number. notebook: its file name.
    """

    number: str
    title: str
    notebook: str
    prefix: ClassVar[str]  # of the number, in what a reader calls it
    shows_failed: ClassVar[bool]  # whether it can be made where some of its runs have failed

    @property
    def name(self) -> str:
        """What a reader calls it, on the command line and in notebooks; ``made.json`` has it under this name."""
        return self.prefix + self.number

    @property
    def label(self) -> str:
        """ "Table 3", or the title of one without a number."""
        return f"{type(self).__name__} {self.number}" if self.number[0].isdigit() else self.title

    @property
    def heading(self) -> str:
        """ "Table 3. Adding ...", or the title of one without a number."""
        return f"{self.label}. {self.title}" if self.number[0].isdigit() else self.title

    def heading_in(self, profile: str) -> str:
        """What a page of a profile's results calls it."""
        return self.heading

    @property
    def stem(self) -> str:
        """The name of its files, without suffixes: "table3"."""
        return self.label.replace(" ", "").lower() if self.number[0].isdigit() else self.number

    @property
    def target(self) -> str:
        """What ``make`` has after ``reproduce-``."""
        return self.name

    def fits(self, profile: str) -> bool:
        """Whether the profile's data can give it."""
        return True

    def check_fits(self, profile: str) -> None:
        """Raises InputError where the profile's data cannot give it."""
        if not self.fits(profile):
            able = ", ".join(p for p in config.available("profile") if self.fits(p))
            raise InputError(f"the data of profile {profile} say nothing of {self.label}; take one of these: {able}")

    @abstractmethod
    def runs(self, profile: str, seeds: List[int]) -> List[Run]:
        """The runs that it needs."""

    @abstractmethod
    def measure(self, profile: str, seeds: List[int], options: Options) -> None:
        """Make sure of what it needs beside the records of its runs."""

    @abstractmethod
    def write(self, profile: str, seeds: List[int]) -> List[Path]:
        """Write its files to where results are written, and return those that :meth:`written` gives.

        Raises:
            InputError: what it is made from is not there; says which command makes it.
        """

    def written(self, folder: Path) -> List[Path]:
        """Its ``.md`` files in a folder of results; pictures and data lie beside them."""
        return [folder / f"{self.stem}.md"]

    @abstractmethod
    def on_page(self, path: Path, picture: str) -> List[str]:
        """One of its ``.md`` files and the picture beside it, as Markdown, below a heading of its own."""

    def made_in(self, profile: str) -> Optional[Path]:
        """The folder of results that has it: the local one where it does, or else the shipped one."""
        folders = runs.results(profile), runs.shipped(profile)
        return next((folder for folder in folders if self.name in made(profile, folder)), None)

    def note_made(self, profile: str, seeds: List[int]) -> None:
        """Add it to what has been :func:`made`."""
        folder = runs.results(profile)
        with runs.locked(folder):
            items = {**made(profile), self.name: seeds}
            in_order = {name: items[name] for name in sorted(items, key=lambda name: ("figure" in name, name))}
            write_bytes(folder / "made.json", runs.as_json(in_order))


def made(profile: str, folder: Optional[Path] = None) -> Dict[str, List[int]]:
    """The names of the items that have been written to a folder of results, in their order, and their seeds."""
    path = (folder or runs.results(profile)) / "made.json"
    return json.loads(path.read_text()) if path.exists() else {}
