"""The paper's claims, each with what the records say of it: computed, not typed."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd
import yaml

from ..errors import InputError
from . import compare, config, predictions, runs, stats, tables
from .config import EXPERIMENTS
from .figures import gains, style
from .files import write_bytes
from .items import Item
from .stats import Estimate

HOLDS, OPPOSITE, OPEN, NONE = "holds", "opposite", "open", "no verdict"
LEVEL = 0.05  # of a verdict, after the correction
Found = Optional[Tuple[Estimate, List[int]]]  # what records say of a comparison, and of which seeds they are


@dataclass(frozen=True)
class Comparison:
    """``A vs B``: that A is above B in a metric; ``A - B vs C - D``: that the one difference is above the other.

    ``A`` alone: that it is above zero. words: what a reader calls it.
    """

    text: str
    words: str = ""

    @property
    def sides(self) -> List[List[str]]:
        """The variants of each side."""
        return [side.split(" - ") for side in self.text.split(" vs ")]

    @property
    def signs(self) -> Dict[str, int]:
        """What each variant counts in the difference."""
        found = {}
        for (first, *rest), sign in zip(self.sides, (1, -1)):
            found |= {first: sign, **{variant: -sign for variant in rest}}
        return found

    def paper(self, metric: str) -> Optional[float]:
        """The paper's own difference, or ratio of times, from the first of its tables that has both rows."""
        metrics, pair = metric.split(" - "), self.text.split(" vs ")
        if metric == "time":
            words = {row.variant: row.words for row in tables.named("8").rows}
            ours, base = (float(words[variant]["ms_per_image_2080Ti"]) for variant in pair)
            return round(ours / base, 2)
        for table in tables.known().values():
            papers = {row.variant: [row.paper[m] for m in metrics] for row in table.rows if {*metrics} <= {*row.paper}}
            if {*pair} <= {*papers}:
                first, *rest = np.subtract(*(papers[variant] for variant in pair))
                return round(float(first - sum(rest)), 1)
        return None

    def find(self, profile: str, metric: str, load: Optional[Callable] = None) -> Found:
        """What the records of a profile say of it, and with which seeds: those that all of its variants have.

        Args:
            load: gives the records of a variant of the profile, by seed; by default from where results are.

        Returns:
            None where there are no such records, or for ``thickness`` no predictions, or for ``time`` no measurement.
            The estimate has no error where the models are one, or their records have no resamples or other data.
        """
        if metric == "time":
            return _time(list(self.signs), runs.results(profile))
        records = {variant: (load or partial(_records, profile))(variant) for variant in self.signs}
        seeds = sorted(set.intersection(*(set(found) for found in records.values())))
        if metric == "thickness":
            return _thickness(list(self.signs), profile, seeds)
        seeds = [s for s in seeds if not any(np.isnan(compare.value(found[s], metric)) for found in records.values())]
        if not seeds:
            return None
        # Two differences may be of different annotations, which is what Section 4.4 is about. The rows of one may not.
        compared = self.sides if " - " in self.text else [list(self.signs)]
        same = all(compare.same_data([records[v][s] for v in pair for s in seeds], metric) for pair in compared)
        terms = [(sign, {s: records[variant][s] for s in seeds}) for variant, sign in self.signs.items()]
        found = compare.contrast(terms, metric)
        return (found if same else Estimate(found.mean)), seeds


@dataclass(frozen=True, eq=False)
class Claim:
    """One of the paper's claims: the comparisons that go one way, it says, and the metrics that judge it, each alone.

    shown: the table or figure where it can be looked at.
    """

    text: str
    shown: Item
    metrics: Sequence[str]
    comparisons: Sequence[Comparison]


class Judged(NamedTuple):
    """What the records of a profile say of a claim by one metric, a comparison each. p: after Holm's correction."""

    found: List[Found]
    p: float = float("nan")

    @property
    def holds(self) -> bool:
        """Whether all comparisons are above zero, for sure or not."""
        return all(found and found[0].mean > 0 for found in self.found)

    @property
    def raw(self) -> float:
        """How likely this is where the truth is zero, before the correction.

        A claim holds where all of its comparisons do: it is as likely as the likeliest of them. It is opposite where
        one of k is, whose p value counts k times. NaN, and so no verdict, with one seed, which knows nothing of
        others, and where a comparison has no record or its estimate no error.
        """
        if any(found is None or len(found[1]) == 1 or np.isnan(found[0].p) for found in self.found):
            return float("nan")
        ps = [estimate.p for estimate, _ in self.found if self.holds or estimate.mean <= 0]
        return max(ps) if self.holds else min(1.0, len(self.found) * min(ps))

    @property
    def verdict(self) -> str:
        if np.isnan(self.p):
            return NONE
        return OPEN if self.p >= LEVEL else HOLDS if self.holds else OPPOSITE


Claims = Dict[Claim, List[Judged]]  # each judged by each of its metrics


def judge(profile: str) -> Claims:
    """What the records of a profile say of each claim, by each of its metrics.

    Holm's correction is over the claims: those that AP and the like judge, and those in true boxes apart.
    """
    load = cache(partial(_records, profile))  # once, for all that is compared with it
    found = {
        claim: [Judged([comparison.find(profile, m, load) for comparison in claim.comparisons]) for m in claim.metrics]
        for claim in claims()
    }
    for k in range(2):
        family = [claim for claim in found if len(claim.metrics) > k]
        for claim, p in zip(family, stats.holm([found[claim][k].raw for claim in family])):
            found[claim][k] = found[claim][k]._replace(p=float(p))
    return found


@cache
def claims() -> List[Claim]:
    """Those of ``experiments/claims.yaml``."""
    items, found = tables.items(), []
    for info in yaml.safe_load((EXPERIMENTS / "claims.yaml").read_text()):
        shown = items[info["shown"]]
        texts = [next(iter(c.items())) if isinstance(c, dict) else (c, _in_words(c, shown)) for c in info["compare"]]
        found.append(Claim(info["claim"], shown, info["metrics"], [Comparison(*text) for text in texts]))
    return found


@cache
def _notes() -> Dict[str, str]:
    return yaml.safe_load((EXPERIMENTS / "notes.yaml").read_text())


def _in_words(text: str, table: tables.Table) -> str:
    """A comparison in the words of its table: "both over B2M", or where rows add up "+ fusions: row 3 over row 2"."""
    ours, base = ([row.variant for row in table.rows].index(variant) for variant in text.split(" vs "))
    names = table.rows[ours].name, table.rows[base].name
    return f"{names[0]}: row {ours + 1} over row {base + 1}" if names[0].startswith("+") else " over ".join(names)


def _records(profile: str, variant: str) -> Dict[int, Dict]:
    """Those with metrics, by seed."""
    folder = runs.results(profile)
    made = sorted((folder / "runs").glob(f"{variant}-seed*.json"))
    seeds = sorted({int(path.stem.split("-seed")[1].split("-")[0]) for path in made})
    return compare.without_failed({seed: runs.Run(variant, profile, seed).record(folder) for seed in seeds})


def _time(variants: List[str], folder: Path) -> Found:
    """The ratio of the times of an image, as far as they were measured."""
    path = folder / "cost.json"
    if not path.exists():
        return None
    ours, base = (json.loads(path.read_text())["systems"][variant]["ratio"] for variant in variants)
    return Estimate(ours / base), [0]


def _thickness(variants: List[str], profile: str, seeds: List[int]) -> Found:
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
    return (stats.mean_of_objects(measured), kept) if measured else None


def _decided(judged: Dict[str, Claims]) -> Dict[str, Claims]:
    """The profiles with any verdict; all of them, where none has one."""
    some = {p: found for p, found in judged.items() if any(j.verdict != NONE for js in found.values() for j in js)}
    return some or judged


def overview(judged: Dict[str, Claims], measured: bool = False) -> str:
    """The claims with a verdict for each profile, and below each its comparisons: the paper's number and ours.

    A verdict links to its table or figure, and its notebook. Profiles without any verdict are left out, where others
    have one, and with ``measured`` what none of them has measured.
    """
    judged = _decided(judged)
    names = [f"[{profile.replace('-samedetector', '')}]({profile}/README.md)" for profile in judged]
    lines = ["| | paper | " + " | ".join(names) + " |", "| --- | --- |" + " --- |" * len(judged)]
    for claim in claims():
        rows = []
        for k, comparison in enumerate(claim.comparisons):
            found = [judged[profile][claim][0].found[k] for profile in judged]
            if any(found) or not measured:
                paper = comparison.paper(claim.metrics[0])
                cells = [_size(each, claim.metrics[0], paper) for each in found]
                rows.append([comparison.words, _number(paper, claim.metrics[0]), *cells])
        if rows:
            cells = [_verdicts(claim, judged[profile][claim], profile) for profile in judged]
            lines += ["| " + " | ".join(row) + " |" for row in ([f"**{claim.text}**", "", *cells], *rows)]
    return "\n".join(lines)


def _verdicts(claim: Claim, judged: List[Judged], profile: str) -> str:
    """The claim's verdict, where it is another in true boxes that one as well, with links."""
    if judged[0].verdict == NONE:
        return ""
    folder = runs.results(profile)
    notebook = folder / claim.shown.notebook
    shown = [path for path in claim.shown.written(folder) if path.exists()] or [folder / "README.md"]
    text = f"[{_said(judged, ' / ')}]({shown[0].relative_to(folder.parent)})"
    return text + (f" [nb]({notebook.relative_to(folder.parent)})" if notebook.exists() else "")


def _said(judged: List[Judged], between: str) -> str:
    """The verdict by AP, and where it is another in true boxes that one as well."""
    verdict = judged[0].verdict
    return between.join([verdict, *(j.verdict for j in judged[1:] if j.verdict not in (NONE, verdict))])


def _number(value: Optional[float], metric: str) -> str:
    if value is None or np.isnan(value):
        return "–"
    return f"×{value:.2f}" if metric == "time" else f"{round(value, 1) + 0.0:+.1f}"


def _size(found: Found, metric: str, paper: Optional[float]) -> str:
    """Ours, in bold where its interval is off zero, and whether it holds the paper's."""
    if found is None:
        return "–"
    low, high = found[0].interval
    text = _number(found[0].mean, metric)
    if np.isnan(low) or len(found[1]) == 1:
        return text
    inside = "" if paper is None else "\u00a0" + ("=" if low <= paper <= high else "≠")  # on one line, on a phone too
    return (f"**{text}**" if low > 0 or high < 0 else text) + inside


def numbers(profile: str) -> str:
    """What the records of a profile say of the claims, in numbers; empty where they say nothing.

    Of each comparison difference and interval, by AP and in true boxes, and of each claim the verdict with its p value.
    """
    lines = []
    for claim, judged in judge(profile).items():
        if not any(found for j in judged for found in j.found):
            continue
        verdicts = [
            "" if j.verdict == NONE else f"{j.verdict}, p {f'{j.p:.1g}' if j.p > 1e-4 else '< 0.0001'}" for j in judged
        ]
        lines.append([f"**{claim.text}**", "", *verdicts, *[""] * (2 - len(judged))])
        for k, comparison in enumerate(claim.comparisons):
            cells = [_interval(j.found[k], metric) for j, metric in zip(judged, claim.metrics)]
            paper = comparison.paper(claim.metrics[0])
            lines.append([comparison.words, _number(paper, claim.metrics[0]), *cells, *[""] * (2 - len(cells))])
    rows = ["", "paper", "here", "here, IoU in true boxes"], ["---"] * 4, *lines
    words = (
        "Differences in points of AP, or of what the row says, with their 95% intervals; in true boxes of mean IoU. "
        "p is after Holm's correction for the claims; with one seed there is none."
    )
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"## The paper's claims\n\n{words}\n\n{table}" if lines else ""


def frame(judged: Dict[str, Claims]) -> pd.DataFrame:
    """The comparisons of the paper's ablations, Tables 3 to 8, as :func:`bmask.study.figures.gains.claims` draws them.

    Of profiles without any verdict only where none has one.
    """
    lines = []
    for profile, found in _decided(judged).items():
        study = runs.Run("mask_rcnn", profile, 0).cfg.STUDY
        title = f"{tables.DATA.get(study.DATASET, study.DATASET)}\n{profile.replace('-samedetector', '')}"
        protocol = tables.SAME if study.SAME_DETECTOR else "joint"
        for claim, (by_ap, *_) in found.items():
            if claim.metrics[0] != "AP" or claim.shown.name not in ("3", "4", "5", "6", "7", "8"):
                continue
            for comparison, each in zip(claim.comparisons, by_ap.found):
                estimate = each[0] if each else Estimate(np.nan)
                numbers = comparison.paper("AP"), estimate.mean, *estimate.interval
                verdict = by_ap.verdict.replace(NONE, "")
                lines.append([claim.text, comparison.words, title, protocol, verdict, *numbers])
    columns = ["claim", "comparison", "data", "protocol", "verdict", "paper", "gain", "low", "high"]
    return pd.DataFrame(lines, columns=columns)


def answer(item: Item, profile: str) -> str:
    """What a table or figure answers, as Markdown: the verdicts of the claims that it is about, with their numbers.

    Of a figure the first sentences of its captions as well; of a table without such a claim, what its rows gain.
    """
    folder = item.made_in(profile)
    with runs.as_shipped() if folder == runs.shipped(profile) else nullcontext():
        asked = {claim: judged for claim, judged in judge(profile).items() if claim.shown is item}
    said = []
    for claim, judged in asked.items():
        metric, parts = claim.metrics[0], []
        for comparison, found in zip(claim.comparisons, judged[0].found):
            paper = comparison.paper(metric)
            beside = "" if paper is None else f" (the paper {_number(paper, metric)})"
            parts.append(f"{comparison.words}: {_interval(found, metric)}{beside}")
        said.append(f"**{claim.text}: {_said(judged, ', in true boxes ')}.** {'; '.join(parts)}.")
    if isinstance(item, tables.Table):
        return "\n\n".join(said) or item.gains(profile, folder)
    captions = (path.read_text().split("** ", 1)[1] for path in item.written(folder))
    return "\n\n".join([*said, *(caption.split(". ", 1)[0] + "." for caption in captions)])


def _interval(found: Found, metric: str) -> str:
    if found is None:
        return "–"
    (low, high), seeds = found[0].interval, len(found[1])
    text = _number(found[0].mean, metric)
    text += "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    return text + ("" if metric == "time" else f", {seeds} seed{'s' * (seeds > 1)}")


def text(judged: Dict[str, Claims]) -> str:
    """What differs from the paper, the claims with their verdicts, and what surprised; without a title.

    Args:
        judged: each profile's :func:`judge`.
    """
    notes = _notes()
    joint = {profile: found for profile, found in judged.items() if config.same_detector(profile) != profile}
    same = {profile: found for profile, found in judged.items() if profile not in joint}
    told = [profile for profile in judged if profile not in map(config.same_detector, joint)]
    settings = "\n".join(f"- `{profile}`: {tables.setting(profile)}" for profile in told)
    claimed = ["## The paper's claims", notes["reading"].strip(), overview(joint or same)]
    if joint and same:
        claimed += ["### With the same detector for all rows", notes["same_detector"].strip()]
        claimed.append(overview(same, measured=True))
    if not runs.PUBLISH:  # the notes are of the shipped results
        return "\n\n".join([settings, *claimed])
    surprises = ["## What surprised, and was looked into", notes["surprises"].strip()]
    return "\n\n".join([notes["setting"].strip() + ":", settings, *claimed, *surprises])


def picture(judged: Dict[str, Claims], path: Path) -> str:
    """Draw the claims of Tables 3 to 8; returns the picture and its caption as Markdown."""
    style.save(gains.claims(frame(judged)), path)
    return f"![Claims of the paper, ours and the paper's gains]({path.name})\n\n{_notes()['picture'].strip()}"


def write() -> Path:
    """Write the ``README.md`` of all results: the findings, and where the tables and figures of each profile are."""
    folder = runs.results()
    judged = {profile: judge(profile) for profile in runs.profiles(folder)}
    links = ", ".join(f"[{p}]({p}/README.md)" for p in judged)
    title = "# Findings" if runs.PUBLISH else "# What was made here"
    drawn = picture(judged, folder / "claims.png")
    content = "\n\n".join([title, drawn, text(judged), f"All tables and figures: {links}."])
    write_bytes(folder / "README.md", f"{content}\n".encode())
    return folder / "README.md"
