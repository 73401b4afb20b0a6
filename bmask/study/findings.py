"""The paper's claims, each with what the records say of it: computed, not typed."""

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np
import pandas as pd
import yaml

from ..errors import InputError
from . import predictions, runs, stats, tables
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
        """Whether the difference is above zero, below it, or neither for sure; none without an interval.

        There is none where the models are one, or their records have no resamples or are of different data.
        """
        if np.isnan(self.low):
            return NONE
        if self.low > 0:
            return REPRODUCED
        return NOT_REPRODUCED if self.high < 0 else UNDECIDED


def claims() -> List[Dict]:
    """What ``experiments/claims.yaml`` says."""
    return yaml.safe_load((EXPERIMENTS / "claims.yaml").read_text())


def find(comparison: str, metric: str, profile: str) -> Optional[Finding]:
    """What the records say of ``A vs B`` or ``A - B vs C - D``, with the seeds that all of these have.

    Returns:
        None where there are no such records, or for ``thickness`` predictions.
    """
    sides = [side.split(" - ") for side in comparison.split(" vs ")]
    signs = {}
    for (first, *second), sign in zip(sides, (1, -1)):
        signs |= {first: sign, **{variant: -sign for variant in second}}
    records = {}
    for variant in signs:
        folder = runs.results(profile)
        made = sorted((folder / "runs").glob(f"{variant}-seed*.json"))
        seeds = sorted({int(path.stem.split("-seed")[1].split("-")[0]) for path in made})
        found = {seed: runs.Run(variant, profile, seed).record(folder) for seed in seeds}
        records[variant] = tables.without_failed(found)
    seeds = sorted(set.intersection(*(set(found) for found in records.values())))
    if metric == "thickness":
        return _thickness(list(signs), profile, seeds)
    if not seeds:
        return None
    terms = [(sign, records[variant]) for variant, sign in signs.items()]
    difference = np.mean([sum(sign * _value(found[s], metric) for sign, found in terms) for s in seeds])
    # Two differences may be of different annotations, which is what Section 4.4 is about. The rows of one may not.
    compared = sides if " - " in comparison else [list(signs)]
    same = all(tables.same_data([records[v][s] for v in pair for s in seeds]) for pair in compared)
    low, high = (
        stats.contrast([(sign, tables.resamples(found, metric)) for sign, found in terms]) if same else stats.NONE
    )
    return Finding(float(difference), low, high, seeds)


def _value(record: Dict, metric: str) -> float:
    parts = [record["metrics"][kind][key] for kind, key in (tables.METRICS[m] for m in metric.split(" - "))]
    return parts[0] - sum(parts[1:])


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


def papers(comparison: str, metric: str) -> Optional[float]:
    """The paper's own difference, from the first of its tables that has both rows."""
    pair = comparison.split(" vs ")
    for number in tables.specs():
        rows = [row.variant for row in tables.rows(number)]
        paper = pd.read_csv(EXPERIMENTS / "paper" / tables.spec(number)["paper"])
        columns = metric.split(" - ")
        if set(pair) <= set(rows) and set(columns) <= set(paper):
            ours, base = (paper.loc[rows.index(variant), columns] for variant in pair)
            first, *rest = ours - base
            return round(float(first - sum(rest)), 1)
    return None


def to_markdown(profiles: List[str]) -> str:
    """The claims, a comparison a row: the paper's number, and for each profile ours and a verdict."""
    lines = ["| claim | | paper | " + " | ".join(f"`{profile}`" for profile in profiles) + " |"]
    lines.append("|" + " --- |" * (3 + len(profiles)))
    for info in claims():
        for k, comparison in enumerate(info["compare"]):
            paper = papers(comparison, info["metric"])
            unit = " px" if info["metric"] == "thickness" else ""
            cells = [info["claim"] if k == 0 else "", comparison.replace("vs", "over")]
            cells.append("–" if paper is None else f"{paper:+.1f}")
            for profile in profiles:
                found = find(comparison, info["metric"], profile)
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
