"""From records to a table, beside the paper's. A pure function of the records."""

import json
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd
import yaml

from . import cost, draw, runs
from .config import EXPERIMENTS, nearest
from .files import write_bytes

# The paper's columns, as fields of a record's metrics. Its AP^b is the AP of boxes, not of boundaries.
METRICS = {
    "AP": ("segm", "AP"),
    "AP50": ("segm", "AP50"),
    "AP75": ("segm", "AP75"),
    "APS": ("segm", "APs"),
    "APM": ("segm", "APm"),
    "APL": ("segm", "APl"),
    "APb": ("bbox", "AP"),
    "APb50": ("bbox", "AP50"),
    "APb75": ("bbox", "AP75"),
    "AP_val": ("segm", "AP"),
    "AP75_val": ("segm", "AP75"),
    "AP_cityscapes": ("cityscapes", "AP"),
    # measured with coarse annotations as truth (Section 4.4)
    "AP_coarse": ("segm_coarse", "AP"),
    "AP75_coarse": ("segm_coarse", "AP75"),
}
PUBLISHED = "published"


class Row(NamedTuple):
    """A row: its variant (``published`` for a method that is only quoted), what it is compared with, its words."""

    variant: str
    baseline: str
    words: Dict[str, str]


def specs() -> Dict[str, Dict]:
    """What ``experiments/tables.yaml`` says, by the table's number or name."""
    return yaml.safe_load((EXPERIMENTS / "tables.yaml").read_text())


def spec(number: str) -> Dict:
    """What it says of one table. Raises InputError for one that it does not know."""
    known = specs()
    if str(number) not in known:
        raise nearest("table", number, list(known))
    return known[str(number)]


def title(number: str) -> str:
    """How the table is called: "Table 3. Adding ...", or its own title for one without a number."""
    text = spec(number)["title"]
    return f"Table {number}. {text}" if str(number).isdigit() else text


def base_path(number: str, profile: str) -> Path:
    """Where the table's files are, without their suffixes."""
    name = f"table{number}" if str(number).isdigit() else str(number)
    return runs.OUTPUT / "results" / profile / name


def notebook(number: str) -> str:
    """The file name of the table's notebook."""
    return Path(spec(number)["paper"]).with_suffix(".ipynb").name


def _paper(number: str) -> pd.DataFrame:
    return pd.read_csv(EXPERIMENTS / "paper" / spec(number)["paper"])


def rows(number: str) -> List[Row]:
    """The rows of a table: the paper's in its order, then those that are ours alone."""
    info = spec(number)
    paper = _paper(number)
    words = paper[[c for c in paper.columns if c not in info["metrics"]]]
    words = words.replace({"yes": "✓", "no": "–"}).astype(object).where(words.notna(), "–")
    entries = [entry.split(" vs ") for entry in info["rows"]]
    first = next(entry[0] for entry in entries if entry[0] != PUBLISHED)
    found = []
    for k, (variant, *baseline) in enumerate(entries):
        found.append(Row(variant, baseline[0] if baseline else first, {**words.iloc[k]}))
    for variant, own in info.get("more", {}).items():
        found.append(Row(variant, first, {**dict.fromkeys(words, "–"), **own}))
    return found


def table_runs(number: str, profile: str, seeds: List[int]) -> List[runs.Run]:
    """The runs of a table: its rows, each with every seed."""
    return [
        runs.Run(row.variant, profile, seed)
        for row in rows(number)
        if row.variant != PUBLISHED
        for seed in seeds
    ]


def table(number: str, profile: str, seeds: List[int]) -> pd.DataFrame:
    """A table of the paper from the published records, one line a row.

    For each metric M of the table there are the columns ``M`` (mean over the seeds, in percent), ``M std`` (sample
    standard deviation over the seeds; empty for one seed), ``dM`` and ``dM std`` (the same of the difference to the
    row's baseline with the same seed), ``dM low`` and ``dM high`` (see :func:`interval`), and the paper's ``paper M``
    and ``paper dM``. The columns before them say what the row is, in the paper's words; ``seeds`` counts the records
    and ``note`` says why there are fewer than asked for. ``attrs`` holds the devices, commits and data fingerprints
    of the records.
    """
    metrics = spec(number)["metrics"]
    entries, paper = rows(number), _paper(number)
    records = {
        row.variant: {seed: runs.Run(row.variant, profile, seed).record() for seed in seeds}
        for row in entries
        if row.variant != PUBLISHED
    }
    line_of = {row.variant: k for k, row in enumerate(entries)}

    def published(metric: str, k: int) -> float:
        return float(paper[metric][k]) if metric in paper and k < len(paper) else float("nan")

    lines = []
    for k, row in enumerate(entries):
        made = records.get(row.variant, {})
        good, base = without_failed(made), without_failed(records[row.baseline])
        line = {**row.words, "variant": row.variant, "seeds": len(good)}
        for metric in metrics:
            ours, difference = _values(good, metric), _values(good, metric) - _values(base, metric)
            line[metric], line[f"{metric} std"] = ours.mean(), ours.std()
            line[f"d{metric}"], line[f"d{metric} std"] = difference.mean(), difference.std()
            line[f"d{metric} low"], line[f"d{metric} high"] = interval(good, base, metric)
            line[f"paper {metric}"] = published(metric, k)
            gain = published(metric, k) - published(metric, line_of[row.baseline])
            line[f"paper d{metric}"] = float("nan") if row.variant == PUBLISHED else round(gain, 1)
        line["note"] = "; ".join(
            f"seed {seed}: " + (f"failed, {record['failed']}" if record else "not run")
            for seed, record in made.items()
            if seed not in good
        )
        lines.append(line)
    frame = pd.DataFrame(lines)
    everything = [record for made in records.values() for record in made.values() if record]
    for key in ("device_name", "git_commit", "data_fingerprint"):
        frame.attrs[key] = sorted({str(record.get(key)) for record in everything})
    return frame


def without_failed(records: Dict[int, Optional[Dict]]) -> Dict[int, Dict]:
    """The records with metrics, by seed."""
    return {seed: record for seed, record in records.items() if record and "failed" not in record}


def _values(records: Dict[int, Dict], metric: str) -> pd.Series:
    kind, key = METRICS[metric]
    return pd.Series(
        {seed: record["metrics"].get(kind, {}).get(key) for seed, record in records.items()}, dtype=float
    )


def interval(ours: Dict[int, Dict], base: Dict[int, Dict], metric: str) -> Tuple[float, float]:
    """A 95% bootstrap interval of the mean difference of two rows, paired over images and seeds.

    The records hold AP on resamples of the images, the same for both rows. Here the seeds that both rows share are
    drawn anew as well, and the middle 95% of the means are taken. Three seeds are few: the spread that they show of
    the seeds is too small by a fifth or so.

    Args:
        ours, base: the records of the two rows, by seed.
        metric: a column of the paper, or the difference of two, such as "AP75 - AP50".

    Returns:
        Its ends in AP points; two NaN where the rows are one, or records without resamples or other data.
    """
    shared = ours.keys() & base.keys()
    if any(ours[s].get("data_fingerprint") != base[s].get("data_fingerprint") for s in shared):
        return float("nan"), float("nan")
    return contrast([(1, ours), (-1, base)], metric)


def contrast(terms: Sequence[Tuple[int, Dict[int, Dict]]], metric: str) -> Tuple[float, float]:
    """The interval of a sum of rows with signs, all tested on the same images; see :func:`interval`."""
    nothing = (float("nan"), float("nan"))
    seeds = sorted(set.intersection(*(set(records) for _, records in terms)))
    drawn = [[_resamples(records[s], metric) for s in seeds] for _, records in terms]
    if not seeds or any(values is None for row in drawn for values in row):
        return nothing
    sums = sum(sign * np.array(row) for (sign, _), row in zip(terms, drawn))  # seed x resample
    if not sums.any():
        return nothing
    chosen = np.random.default_rng(0).integers(len(seeds), size=sums.shape)
    means = np.take_along_axis(sums, chosen, axis=0).mean(axis=0)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def _resamples(record: Dict, metric: str) -> Optional[np.ndarray]:
    if " - " in metric:
        parts = [_resamples(record, part) for part in metric.split(" - ")]
        return None if parts[0] is None or parts[1] is None else parts[0] - parts[1]
    kind, key = METRICS[metric]
    values = record["metrics"].get(kind, {}).get("bootstrap", {}).get(key)
    return None if values is None else np.array(values, dtype=float)


def to_markdown(number: str, profile: str, frame: pd.DataFrame) -> str:
    """The table as text: ours, the paper's in brackets, and both differences to the row's baseline."""
    info, entries = spec(number), rows(number)
    words = list(entries[0].words)
    shown = frame[words].copy()
    shown.columns = [w.replace("_", " ") for w in words]
    networks = [_network(row.variant, profile) for row in entries]
    same = len(set(networks) - {""}) == 1
    if not (same and all(networks)):
        shown["here"] = [(text and "run" if same else text) or PUBLISHED for text in networks]
    # Without what is neither here nor in the paper: Cityscapes' own AP of another data set.
    metrics = [m for m in info["metrics"] if frame[[m, f"paper {m}"]].notna().any(axis=None)]
    lines_of = [row for _, row in frame.iterrows()]
    for m in metrics:
        shown[f"{m} (paper)"] = [_cell(row[m], row[f"{m} std"], row[f"paper {m}"]) for row in lines_of]
    for m in compared(metrics):
        shown[f"Δ{m} (paper)"] = [_difference(row, entry, m) for row, entry in zip(lines_of, entries)]
    lines = [f"{title(number)}: profile `{profile}`, the paper's numbers in brackets.", ""]
    lines += [shown.to_markdown(index=False, disable_numparse=True), ""]
    lines += [info["note"], ""] if "note" in info else []
    lines += [setting(profile, networks[-1] if same else "")]
    seeds = sorted({row["seeds"] for row, entry in zip(lines_of, entries) if entry.variant != PUBLISHED})
    if seeds == [1]:
        lines += ["One seed: there is no spread over seeds, and a difference may be noise."]
    elif len(seeds) == 1 and seeds[0]:
        lines += [f"Mean ± sample standard deviation over {seeds[0]} seeds; differences are paired by seed."]
    if frame[[f"d{m} low" for m in metrics]].notna().any(axis=None):
        over = "images" if seeds == [1] else "images and seeds"
        lines += [
            f"In square brackets the 95% bootstrap interval of a difference, paired over {over}; * where zero is "
            "outside."
        ]
    notes = [f"- {row['variant']}: {row['note']}" for row in lines_of if row["note"]]
    lines += ["", *notes] if notes else []
    made = {key: "; ".join(values) for key, values in frame.attrs.items()}
    if made["device_name"]:
        lines += [
            "",
            f"Made on {made['device_name']}, at commit {made['git_commit']}, from data {made['data_fingerprint']}.",
        ]
    if len(frame.attrs["data_fingerprint"]) > 1:
        lines += ["**The rows have seen different data: do not compare them.**"]
    return "\n".join(lines).rstrip() + "\n"


def made(profile: str) -> Dict[str, List[int]]:
    """The tables and figures (``figure-6``) that have been written, in their order, and their seeds."""
    path = runs.OUTPUT / "results" / profile / "made.json"
    return json.loads(path.read_text()) if path.exists() else {}


def note_made(item: str, profile: str, seeds: List[int]) -> None:
    """Add a table or figure to what has been :func:`made`."""
    items = {**made(profile), item: seeds}
    in_order = {name: items[name] for name in sorted(items, key=lambda name: ("figure" in name, name))}
    path = runs.OUTPUT / "results" / profile / "made.json"
    write_bytes(path, runs.as_json(in_order))


def setting(profile: str, network: str = "") -> str:
    """One line: with which network, data and schedule the rows of a profile are trained."""
    cfg = runs.Run("mask_rcnn", profile, 0).cfg
    return (
        f"Here: {network}{', ' if network else ''}data `{cfg.STUDY.DATASET}`, {cfg.SOLVER.IMS_PER_BATCH} images a "
        f"batch, {cfg.SOLVER.MAX_ITER} iterations, learning rate {cfg.SOLVER.BASE_LR:g}, lowered after "
        + " and ".join(map(str, cfg.SOLVER.STEPS))
        + (" (by the linear scaling rule)." if "-batch" in profile else ".")
    )


def _network(variant: str, profile: str) -> str:
    """The backbone and input size of a row, as they are here; nothing for a row that is only quoted."""
    if variant == PUBLISHED:
        return ""
    cfg = runs.Run(variant, profile, 0).cfg
    hrnet = cfg.MODEL.BACKBONE.NAME == "build_hrnetv2p_backbone"
    name = cfg.MODEL.HRNET.NAME if hrnet else f"ResNet-{cfg.MODEL.RESNETS.DEPTH}"
    return f"{name}-FPN, {cfg.INPUT.MIN_SIZE_TEST} px"


def write(number: str, profile: str, seeds: List[int]) -> Path:
    """Write the table's ``.csv``, ``.md`` and ``.png`` under ``results/<profile>/``, and return the second's path."""
    frame = table(number, profile, seeds)
    base = base_path(number, profile)
    text = to_markdown(number, profile, frame)
    if spec(number).get("cost"):
        text += "\n" + cost.to_markdown(profile, [row.words for row in rows(number)])
    write_bytes(base.with_suffix(".csv"), frame.round(4).to_csv(index=False).encode())
    write_bytes(base.with_suffix(".md"), text.encode())
    figure = draw.gains(frame, rows(number), title(number), compared(spec(number)["metrics"]))
    draw.save(figure, base.with_suffix(".png"))
    note_made(str(number), profile, seeds)
    return base.with_suffix(".md")


def compared(metrics: List[str]) -> List[str]:
    """Those of a table's metrics whose differences are shown: AP by size and Cityscapes' own AP are for a look."""
    return [m for m in metrics if m not in ("APS", "APM", "APL", "AP_cityscapes")]


def _cell(value: float, std: float, paper: float) -> str:
    return _number(value, std) + ("" if pd.isna(paper) else f" ({paper:.1f})")


def _difference(row: pd.Series, entry: Row, metric: str) -> str:
    if entry.variant in (PUBLISHED, entry.baseline):
        return ""
    low, high = row[f"d{metric} low"], row[f"d{metric} high"]
    text = _number(row[f"d{metric}"], row[f"d{metric} std"], "+")
    if not pd.isna(low):
        text += f" [{low:+.1f}, {high:+.1f}]" + ("*" if low > 0 or high < 0 else "")
    paper = row[f"paper d{metric}"]
    return text + ("" if pd.isna(paper) else f" ({paper:+.1f})")


def _number(value: float, std: float = float("nan"), sign: str = "") -> str:
    if pd.isna(value):
        return "–"
    return f"{value:{sign}.1f}" + ("" if pd.isna(std) else f" ± {std:.1f}")
