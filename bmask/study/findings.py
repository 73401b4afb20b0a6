"""The paper's claims, each with what the records say of it: computed, not typed."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import yaml

from ..errors import InputError
from . import compare, predictions, runs, stats, tables
from .config import EXPERIMENTS
from .files import write_bytes

REPRODUCED, NOT_REPRODUCED, UNDECIDED, NONE = "reproduced", "not reproduced", "undecided", "no verdict"


class Finding(NamedTuple):
    """What the records of a profile say of one comparison: the difference, its 95% interval, and from which seeds."""

    difference: float
    low: float
    high: float
    seeds: List[int]

    @property
    def verdict(self) -> str:
        """Whether the difference is above zero, below it, or neither for sure.

        There is none with one seed, as the interval then knows nothing of others; and none without an interval, where
        the models are one, or their records have no resamples or are of different data.
        """
        if np.isnan(self.low) or len(self.seeds) == 1:
            return NONE
        if self.low > 0:
            return REPRODUCED
        return NOT_REPRODUCED if self.high < 0 else UNDECIDED


@dataclass(frozen=True)
class Comparison:
    """``A vs B``: that A is above B in a metric; or ``A - B vs C - D``: that the one difference is above the other."""

    text: str
    metric: str

    @property
    def sides(self) -> List[List[str]]:
        """The variants of both sides."""
        return [side.split(" - ") for side in self.text.split(" vs ")]

    @property
    def signs(self) -> Dict[str, int]:
        """What each variant counts in the difference."""
        found = {}
        for (first, *rest), sign in zip(self.sides, (1, -1)):
            found |= {first: sign, **{variant: -sign for variant in rest}}
        return found

    @property
    def paper(self) -> Optional[float]:
        """The paper's own difference, from the first of its tables that has both rows."""
        metrics, pair = self.metric.split(" - "), self.text.split(" vs ")
        for table in tables.known().values():
            papers = {row.variant: [row.paper[m] for m in metrics] for row in table.rows if {*metrics} <= {*row.paper}}
            if {*pair} <= {*papers}:
                first, *rest = np.subtract(*(papers[variant] for variant in pair))
                return round(float(first - sum(rest)), 1)
        return None

    def find(self, profile: str) -> Optional[Finding]:
        """What the records say of it, with the seeds that all of its variants have.

        Returns:
            None where there are no such records, or for ``thickness`` predictions.
        """
        records = {}
        for variant in self.signs:
            folder = runs.results(profile)
            made = sorted((folder / "runs").glob(f"{variant}-seed*.json"))
            seeds = sorted({int(path.stem.split("-seed")[1].split("-")[0]) for path in made})
            found = {seed: runs.Run(variant, profile, seed).record(folder) for seed in seeds}
            records[variant] = compare.without_failed(found)
        seeds = sorted(set.intersection(*(set(found) for found in records.values())))
        if self.metric == "thickness":
            return _thickness(list(self.signs), profile, seeds)
        if not seeds:
            return None
        # Two differences may be of different annotations, which is what Section 4.4 is about. The rows of one may not.
        compared = self.sides if " - " in self.text else [list(self.signs)]
        same = all(compare.same_data([records[v][s] for v in pair for s in seeds]) for pair in compared)
        terms = [(sign, records[variant]) for variant, sign in self.signs.items()]
        difference, *ends = compare.contrast(terms, self.metric)
        return Finding(difference, *(ends if same else stats.NONE), seeds)


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, and the comparisons that it says go one way."""

    text: str
    comparisons: Sequence[Comparison]


@cache
def claims() -> List[Claim]:
    """Those of ``experiments/claims.yaml``."""
    content = yaml.safe_load((EXPERIMENTS / "claims.yaml").read_text())
    return [Claim(info["claim"], [Comparison(text, info["metric"]) for text in info["compare"]]) for info in content]


def _thickness(variants: List[str], profile: str, seeds: List[int]) -> Optional[Finding]:
    """The difference of the thickness of two models' boundaries, in pixels of the 28x28 map."""
    measured, kept = [], []
    for seed in seeds:
        try:
            one, other = (
                predictions.load(runs.Run(variant, profile, seed), ["quality"]).quality for variant in variants
            )
        except InputError:
            continue
        kept.append(seed)
        measured.append((one["image"], one["thickness"] - other["thickness"]))
    if not measured:
        return None
    return Finding(*stats.mean_of_objects(measured), kept)


def to_markdown(profiles: List[str]) -> str:
    """The claims, a comparison a row: the paper's number, and for each profile ours and a verdict."""
    lines = ["| claim | | paper | " + " | ".join(f"`{profile}`" for profile in profiles) + " |"]
    lines.append("|" + " --- |" * (3 + len(profiles)))
    for claim in claims():
        for k, comparison in enumerate(claim.comparisons):
            unit = " px" if comparison.metric == "thickness" else ""
            cells = [claim.text if k == 0 else "", comparison.text.replace("vs", "over")]
            paper = comparison.paper
            cells.append("–" if paper is None else f"{paper:+.1f}")
            for profile in profiles:
                found = comparison.find(profile)
                cells.append("–" if found is None else _cell(found, unit))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Finding, unit: str) -> str:
    interval = "" if np.isnan(found.low) else f" [{found.low:+.1f}, {found.high:+.1f}]"
    seeds = f"{len(found.seeds)} {'seed' if len(found.seeds) == 1 else 'seeds'}"
    return f"{found.difference:+.1f}{unit}{interval} **{found.verdict}** ({seeds})"


def text(profiles: List[str]) -> str:
    """What differs from the paper, the claims with their verdicts, and what surprised; without a title."""
    notes = yaml.safe_load((EXPERIMENTS / "notes.yaml").read_text())
    settings = "\n".join(f"- `{profile}`: {tables.setting(profile)}" for profile in profiles)
    claimed = ["## The paper's claims", notes["reading"].strip(), to_markdown(profiles)]
    if not runs.PUBLISH:  # the notes are of the shipped results
        return "\n\n".join([settings, *claimed])
    surprises = ["## What surprised, and was looked into", notes["surprises"].strip()]
    return "\n\n".join([notes["setting"].strip() + ":", settings, *claimed, *surprises])


def write() -> Path:
    """Write the ``README.md`` of all results: the findings, and where the tables and figures of each profile are."""
    folder = runs.results()
    profiles = runs.profiles(folder)
    links = ", ".join(f"[{p}]({p}/README.md)" for p in profiles)
    title = "# Findings" if runs.PUBLISH else "# What was made here"
    content = "\n\n".join([title, text(profiles), f"All tables and figures: {links}."])
    write_bytes(folder / "README.md", f"{content}\n".encode())
    return folder / "README.md"
