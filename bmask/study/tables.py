"""From records to a table, beside the paper's. A pure function of the records."""

import json
from pathlib import Path
from textwrap import fill
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd
import yaml

from ..errors import InputError
from . import cost, draw, runs, stats
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
WIDTH = 100  # characters of a line


class Row(NamedTuple):
    """A row: its variant (``published`` for a method that is only quoted), what it is compared with, what it is called,
    and the paper's words for it."""

    variant: str
    baseline: str
    name: str
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


def file_name(number: str) -> str:
    """The name of the table's files, without their suffixes."""
    return f"table{number}" if str(number).isdigit() else str(number)


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
    entries = [(*key.split(" vs "), name) for entry in info["rows"] for key, name in entry.items()]
    first = next(variant for variant, *_ in entries if variant != PUBLISHED)
    found = []
    for k, (variant, *baseline, name) in enumerate(entries):
        found.append(Row(variant, baseline[0] if baseline else first, name, {**words.iloc[k]}))
    for variant, name in info.get("more", {}).items():
        found.append(Row(variant, first, name, dict.fromkeys(words, "–")))
    return found


def table_runs(number: str, profile: str, seeds: List[int]) -> List[runs.Run]:
    """The runs of a table: its rows, each with every seed."""
    return [runs.Run(row.variant, profile, seed) for row in rows(number) if row.variant != PUBLISHED for seed in seeds]


def table(number: str, profile: str, seeds: List[int], folder: Optional[Path] = None) -> pd.DataFrame:
    """A table of the paper from the records in a folder of results, by default where results are written.

    For each metric M of the table there are the columns ``M`` (mean over the seeds, in percent), ``M std`` (sample
    standard deviation over the seeds; empty for one seed), ``dM`` and ``dM std`` (the same of the difference to the
    row's baseline with the same seed), ``dM low`` and ``dM high`` (see :func:`interval`), and the paper's ``paper M``
    and ``paper dM``. The columns before them say what the row is; ``seeds`` counts the records and ``note`` says why
    there are fewer than asked for. ``attrs`` holds the seeds, devices, commits and data fingerprints of the records.
    """
    metrics, folder = spec(number)["metrics"], folder or runs.results(profile)
    entries, paper = rows(number), _paper(number)
    records = {
        row.variant: {seed: runs.Run(row.variant, profile, seed).record(folder) for seed in seeds}
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
        line = {
            "row": row.name,
            **row.words,
            "variant": row.variant,
            "network": _network(row.variant, profile),
        }
        line["seeds"] = len(good)
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
    frame.attrs["seeds"] = [seed for seed in seeds if any(made[seed] for made in records.values())]
    return frame


def without_failed(records: Dict[int, Optional[Dict]]) -> Dict[int, Dict]:
    """The records with metrics, by seed."""
    return {seed: record for seed, record in records.items() if record and "failed" not in record}


def _values(records: Dict[int, Dict], metric: str) -> pd.Series:
    kind, key = METRICS[metric]
    return pd.Series({seed: record["metrics"].get(kind, {}).get(key) for seed, record in records.items()}, dtype=float)


def interval(ours: Dict[int, Dict], base: Dict[int, Dict], metric: str) -> Tuple[float, float]:
    """The interval of the difference of two rows, from their records by seed; see :func:`bmask.study.stats.contrast`.

    Args:
        metric: a column of the paper, or the difference of two, such as "AP75 - AP50".

    Returns:
        Its ends in AP points; two NaN where the rows are one, or records without resamples or of other data.
    """
    if not same_data([side[s] for s in ours.keys() & base.keys() for side in (ours, base)]):
        return stats.NONE
    return stats.contrast([(1, resamples(ours, metric)), (-1, resamples(base, metric))])


def same_data(records: Sequence[Dict]) -> bool:
    """Whether all of the records are of runs with the same data."""
    return len({record.get("data_fingerprint") for record in records}) <= 1


def resamples(records: Dict[int, Dict], metric: str) -> Dict[int, Optional[np.ndarray]]:
    """A metric, or the difference of two, on the draws of test images that records hold, by seed."""

    def drawn(record, part):
        kind, key = METRICS[part]
        values = record["metrics"].get(kind, {}).get("bootstrap", {}).get(key)
        return None if values is None else np.array(values, dtype=float)

    found = {}
    for seed, record in records.items():
        first, *rest = (drawn(record, part) for part in metric.split(" - "))
        found[seed] = None if first is None or any(part is None for part in rest) else first - sum(rest)
    return found


def frames(number: str, profile: str, seeds: List[int]) -> Dict[str, pd.DataFrame]:
    """The table ``here``, with these seeds, and as it is ``shipped``; without what has no record.

    Raises:
        InputError: neither has one; says which command makes it.
    """
    shipped = runs.shipped(profile)
    found = {
        "here": table(number, profile, seeds),
        "shipped": table(number, profile, made(profile, shipped).get(str(number), seeds), shipped),
    }
    if runs.PUBLISH:
        del found["here"]
    found = {source: frame for source, frame in found.items() if frame.attrs["seeds"]}
    if not found:
        target = f"table-{number}" if str(number).isdigit() else number
        raise InputError(
            f"no run of {title(number).split('.')[0]} has been made with profile {profile} and the seeds "
            f"{','.join(map(str, seeds))}; `make reproduce-{target} PROFILE={profile}` makes them"
        )
    return found


def to_markdown(number: str, profile: str, sources: Dict[str, pd.DataFrame]) -> str:
    """AP and AP75 of each row and what it gains: here, shipped and the paper's. Lines have 100 characters at most.

    Args:
        sources: from :func:`frames`.
    """
    info, entries = spec(number), rows(number)
    metrics = shown(info["metrics"])
    last = list(sources.values())[-1]
    lines = []
    for k, entry in enumerate(entries):
        compared, own = entry.variant not in (PUBLISHED, entry.baseline), []
        for source in _sources_of(sources, k) if entry.variant != PUBLISHED else []:
            row = sources[source].iloc[k]
            cells = [_number(row[m], row[f"{m} std"]) for m in metrics]
            own.append([source, *cells, *(_difference(row, m) if compared else "" for m in metrics)])
        row = last.iloc[k]
        if row[[f"paper {m}" for m in metrics]].notna().any():
            cells = [_number(row[f"paper {m}"]) for m in metrics]
            gains = [_number(row[f"paper d{m}"], sign="+") if compared else "" for m in metrics]
            own.append(["paper", *cells, *gains])
        lines += [["" if others else entry.name, *line] for others, line in enumerate(own)]
    names = [m.removesuffix("_val") for m in metrics]
    table = pd.DataFrame(lines, columns=["", "", *names, *(f"Δ{name}" for name in names)])
    text = [f"{title(number)}. Profile `{profile}`.", table.to_markdown(index=False, disable_numparse=True)]
    text += [fill(info["note"], WIDTH)] if "note" in info else []
    text += [fill(f"{_intervals(sources)} {setting(profile)} {_networks(last)}", WIDTH)]
    for source, frame in sources.items():
        text += [fill(f"{source}: {_provenance(frame)}.", WIDTH)]
        listed = [row for k, (_, row) in enumerate(frame.iterrows()) if source in _sources_of(sources, k)]
        notes = [f"- {row['row']}, {row['note']}" for row in listed if row["note"]]
        text += ["\n".join(notes)] if notes else []
        if len(frame.attrs["data_fingerprint"]) > 1:
            text += ["**The rows have seen different data: do not compare them.**"]
    if len({tuple(frame.attrs["data_fingerprint"]) for frame in sources.values()}) > 1:
        text += ["**What is here and what is shipped have seen different data: do not compare them.**"]
    return "\n\n".join(text) + "\n"


def _sources_of(sources: Dict[str, pd.DataFrame], k: int) -> List[str]:
    """Those that have a record of row k; the first where none has, to say so."""
    rows = {source: frame.iloc[k] for source, frame in sources.items()}
    return [s for s, row in rows.items() if row["seeds"] or "failed" in row["note"]] or list(sources)[:1]


def shown(metrics: List[str]) -> List[str]:
    """Those of a table's metrics that the text shows; all of them are in its CSV."""
    return [m for m in metrics if m in ("AP", "AP75", "AP_val", "AP75_val")]


def _intervals(sources: Dict[str, pd.DataFrame]) -> str:
    numbers = [len(frame.attrs["seeds"]) for frame in sources.values()]
    many, one = max(numbers) > 1, min(numbers) == 1
    return (
        "AP of masks in percent"
        + (", mean ± standard deviation over the seeds" if many else "")
        + "; Δ: what the row gains over its baseline"
        + (" with the same seed" if many else "")
        + ", with its 95% bootstrap interval over images and seeds."
        + (" With one seed it knows nothing of other seeds." if one else "")
    )


def _networks(frame: pd.DataFrame) -> str:
    """Which rows have which network and input."""
    by_network = frame[frame["network"] != ""].groupby("network", sort=False)["row"].apply("; ".join)
    if len(by_network) == 1:
        return f"All rows: {by_network.index[0]}."
    return " ".join(f"{network}: {rows}." for network, rows in by_network.items())


def _provenance(frame: pd.DataFrame) -> str:
    seeds = frame.attrs["seeds"]
    return (
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; made on "
        f"{'; '.join(frame.attrs['device_name'])}, at commit {', '.join(c[:7] for c in frame.attrs['git_commit'])}, "
        f"from data {', '.join(frame.attrs['data_fingerprint'])}"
    )


def made(profile: str, folder: Optional[Path] = None) -> Dict[str, List[int]]:
    """The tables and figures (``figure-6``) that have been written to a folder of results, in their order, and their
    seeds."""
    path = (folder or runs.results(profile)) / "made.json"
    return json.loads(path.read_text()) if path.exists() else {}


def made_in(item: str, profile: str) -> Optional[Path]:
    """The folder of results that has a table or figure: the local one where it does, or else the shipped one."""
    folders = runs.results(profile), runs.shipped(profile)
    return next((folder for folder in folders if item in made(profile, folder)), None)


def note_made(item: str, profile: str, seeds: List[int]) -> None:
    """Add a table or figure to what has been :func:`made`."""
    items = {**made(profile), item: seeds}
    in_order = {name: items[name] for name in sorted(items, key=lambda name: ("figure" in name, name))}
    write_bytes(runs.results(profile) / "made.json", runs.as_json(in_order))


def setting(profile: str) -> str:
    """One line: with which data and schedule the rows of a profile are trained."""
    cfg = runs.Run("mask_rcnn", profile, 0).cfg
    return (
        f"Data `{cfg.STUDY.DATASET}`, {cfg.SOLVER.IMS_PER_BATCH} images a "
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
    """Write the table's ``.csv``, ``.md`` and ``.png`` beside the records, and return the second's path.

    Raises:
        InputError: there is no record.
    """
    found = frames(number, profile, seeds)
    base, entries = runs.results(profile) / file_name(number), rows(number)
    text = to_markdown(number, profile, found)
    if spec(number).get("cost"):
        folders = {"here": runs.results(profile), "shipped": runs.shipped(profile)}
        folders = {source: folders[source] for source in found}
        text += "\n" + cost.to_markdown(folders, [row.name for row in entries], [row.words for row in entries])
    main, *others = found.values()
    content = main.round(4)
    if others:
        content = content.join(others[0][[*_measured(others[0])]].round(4).add_prefix("shipped "))
    write_bytes(base.with_suffix(".csv"), content.to_csv(index=False).encode())
    write_bytes(base.with_suffix(".md"), text.encode())
    figure = draw.gains(found, entries, title(number), compared(spec(number)["metrics"]))
    draw.save(figure, base.with_suffix(".png"))
    note_made(str(number), profile, seeds)
    return base.with_suffix(".md")


def _measured(frame: pd.DataFrame) -> List[str]:
    """The columns with numbers of ours."""
    start = list(frame).index("seeds")
    return [c for c in list(frame)[start:-1] if not c.startswith("paper ")]


def compared(metrics: List[str]) -> List[str]:
    """Those of a table's metrics whose differences are drawn: AP by size and Cityscapes' own AP are for a look."""
    return [m for m in metrics if m not in ("APS", "APM", "APL", "AP_cityscapes")]


def _difference(row: pd.Series, metric: str) -> str:
    low, high = row[f"d{metric} low"], row[f"d{metric} high"]
    interval = "" if pd.isna(low) else f" [{low:.1f}, {high:.1f}]"
    return _number(row[f"d{metric}"], sign="+") + interval


def _number(value: float, std: float = float("nan"), sign: str = "") -> str:
    if pd.isna(value):
        return "–"
    return f"{round(value, 1) + 0.0:{sign}.1f}" + ("" if pd.isna(std) else f" ± {std:.1f}")
