"""The paper's claims, each with what the records say of it: computed, not typed."""

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np
import pandas as pd
import yaml

from . import figures, predictions, runs, tables
from .config import EXPERIMENTS
from .errors import InputError
from .files import write_bytes

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"


class Finding(NamedTuple):
    """What the records of a profile say of one comparison: the difference, its 95% interval, and from which seeds."""

    difference: float
    low: float
    high: float
    seeds: List[int]

    @property
    def verdict(self) -> str:
        """Whether the difference is above zero, below it, or neither for sure."""
        if np.isnan(self.low):
            return "the same model here"
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
    signs = {}
    for side, sign in zip(comparison.split(" vs "), (1, -1)):
        first, *second = side.split(" - ")
        signs |= {first: sign, **{variant: -sign for variant in second}}
    records = {}
    for variant in signs:
        made = sorted((runs.OUTPUT / "results" / profile / "runs").glob(f"{variant}-seed*.json"))
        seeds = sorted({int(path.stem.split("-seed")[1].split("-")[0]) for path in made})
        records[variant] = tables.without_failed({s: runs.Run(variant, profile, s).record() for s in seeds})
    seeds = sorted(set.intersection(*(set(found) for found in records.values())))
    if metric == "thickness":
        return _thickness(list(signs), profile, seeds)
    if not seeds:
        return None
    terms = [(sign, records[variant]) for variant, sign in signs.items()]
    difference = np.mean([sum(sign * _value(found[s], metric) for sign, found in terms) for s in seeds])
    return Finding(float(difference), *tables.contrast(terms, metric), seeds)


def _value(record: Dict, metric: str) -> float:
    parts = [record["metrics"][kind][key] for kind, key in (tables.METRICS[m] for m in metric.split(" - "))]
    return parts[0] - sum(parts[1:])


def _thickness(variants: List[str], profile: str, seeds: List[int]) -> Optional[Finding]:
    """The difference of the thickness of two models' boundaries, in pixels of the 28x28 map."""
    measured, kept = [], []
    for seed in seeds:
        try:
            one, other = (predictions.load(runs.Run(variant, profile, seed)).quality for variant in variants)
        except InputError:
            continue
        kept.append(seed)
        measured.append((one["image"], one["thickness"] - other["thickness"]))
    if not measured:
        return None
    found = figures.bootstrapped(measured)
    return Finding(found["mean"], found["low"], found["high"], kept)


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


def write() -> Path:
    """Write ``results/README.md``: what differs from the paper, the claims with their verdicts, and what surprised."""
    results = runs.OUTPUT / "results"
    profiles = sorted(path.parent.name for path in results.glob("*/made.json"))
    notes = yaml.safe_load((EXPERIMENTS / "notes.yaml").read_text())
    settings = "\n".join(
        f"- `{profile}`: {tables.setting(profile).removeprefix('Here: ')}" for profile in profiles
    )
    parts = ["# Findings", notes["setting"].strip() + ":", settings]
    parts += ["## The paper's claims", notes["reading"].strip(), to_markdown(profiles)]
    parts += ["## What surprised, and was looked into", notes["surprises"].strip()]
    parts.append("All tables and figures: " + ", ".join(f"[{p}]({p}/README.md)" for p in profiles) + ".")
    path = results / "README.md"
    write_bytes(path, ("\n\n".join(parts) + "\n").encode())
    return path
