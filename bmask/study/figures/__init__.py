"""From records and kept predictions to the paper's figures, each with a caption that says what was found.

A figure is a file, with a function ``draw`` from the figure's runs, and those of them whose predictions are kept, to
drawings and captions.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import yaml

from .. import predictions, runs
from ..config import EXPERIMENTS, pick
from ..files import write_bytes
from ..items import Item
from ..runs import Options, Run
from . import (
    ap_curves,
    boundary_losses,
    coarse_annotations,
    examples,
    precise_truth,
    roi_features,
    sobel,
    training_curves,
)
from .style import Drawn, save_beside

FILES = {
    "1": ap_curves,
    "2": examples,
    "5": roi_features,
    "6": boundary_losses,
    "7a": coarse_annotations,
    "7b": sobel,
    "precise": precise_truth,
    "curves": training_curves,
}


@dataclass(frozen=True, eq=False)
class Figure(Item):
    """A figure of the paper.

    variants: the models that it shows. paper: those that it shows of the paper's own profile, where these are others.
    predictions: those whose predictions are drawn. parts: which of these, of the first seed. further_seeds: which, of
    the others. shapes: the embedded shapes alone can give it. second: a profile with a second test set can. draw: from
    its runs, and from those whose predictions are drawn with the parts of these, to drawings and captions.
    """

    draw: Callable[[List[Run], Dict[Run, Sequence[str]]], Drawn]
    variants: Sequence[str]
    predictions: Sequence[str] = ()
    parts: Sequence[str] = ()
    further_seeds: Sequence[str] = ()
    paper: Sequence[str] = ()
    shapes: bool = False
    second: bool = False
    prefix = "figure-"
    shows_failed = False

    def models(self, profile: str) -> Sequence[str]:
        """The models that the figure shows."""
        return self.paper if self.paper and profile.startswith("paper") else self.variants

    def fits(self, profile: str) -> bool:
        study = Run("mask_rcnn", profile, 0).cfg.STUDY
        return study.DATASET == "shapes" if self.shapes else bool(study.SECOND_TEST) if self.second else True

    def runs(self, profile: str, seeds: List[int]) -> List[Run]:
        return [Run(variant, profile, seed) for variant, seed in product(self.models(profile), seeds)]

    def predicted(self, profile: str, seeds: List[int]) -> Dict[Run, Sequence[str]]:
        """The runs whose predictions it needs, and which parts of these; see :data:`bmask.study.predictions.PARTS`."""
        parts = {seeds[0]: self.parts} | {seed: self.further_seeds for seed in seeds[1:] if self.further_seeds}
        return {Run(variant, profile, seed): parts[seed] for variant, seed in product(self.predictions, parts)}

    def measure(self, profile: str, seeds: List[int], options: Options) -> None:
        predictions.ensure(self.predicted(profile, seeds), options)

    def written(self, folder: Path) -> List[Path]:
        here = folder / "figures"
        return [path for name in (f"{self.stem}.md", f"{self.stem}_*.md") for path in sorted(here.glob(name))]

    def write(self, profile: str, seeds: List[int]) -> List[Path]:
        paths, shown = [], self.runs(profile, seeds)
        for name, (drawing, caption) in self.draw(shown, self.predicted(profile, seeds)).items():
            paths.append(runs.results(profile) / "figures" / f"{name}.md")
            write_bytes(paths[-1], f"**{self.heading}.** {caption} {_setting(shown, profile, seeds)}\n".encode())
            save_beside(drawing, paths[-1])
        self.note_made(profile, seeds)
        return paths

    def on_page(self, path: Path, picture: str) -> List[str]:
        return [picture, path.read_text().strip()]


def _setting(shown: List[Run], profile: str, seeds: List[int]) -> str:
    text = f"Profile `{profile}`, " + (f"seed {seeds[0]}." if len(seeds) == 1 else f"{len(seeds)} seeds.")
    shipped = 0 if runs.PUBLISH else sum(run.results == runs.shipped(profile) for run in shown)
    return text + (f" {shipped} of its {len(shown)} runs are shipped ones." if shipped else "")


@cache
def known() -> Dict[str, Figure]:
    """Every figure of ``experiments/figures.yaml``, by its number or name."""
    content = yaml.safe_load((EXPERIMENTS / "figures.yaml").read_text())
    return {number: Figure(number, draw=FILES[number].draw, **info) for number, info in content.items()}


def named(number: str) -> Figure:
    """One of them. Raises InputError for one that there is not."""
    return pick("figure", number, known())
