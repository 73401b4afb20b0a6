"""From records to a table, beside the paper's. A pure function of the records."""

from pathlib import Path
from typing import Dict, List

import pandas as pd
import yaml

from . import runs
from .config import EXPERIMENTS, nearest
from .files import write_bytes

# The paper's columns, as fields of a record's metrics. Its AP^b is the AP of boxes, not of boundaries.
METRICS = {"AP": ("segm", "AP"), "AP50": ("segm", "AP50"), "AP75": ("segm", "AP75"), "APb": ("bbox", "AP")}


def spec(number: str) -> Dict:
    """What ``experiments/tables.yaml`` says of a table. Raises InputError for one that it does not know."""
    specs = yaml.safe_load((EXPERIMENTS / "tables.yaml").read_text())
    if str(number) not in specs:
        raise nearest("table", number, list(specs))
    return specs[str(number)]


def table_runs(number: str, profile: str, seeds: List[int]) -> List[runs.Run]:
    """The runs of a table: its rows, each with every seed."""
    return [runs.Run(variant, profile, seed) for variant in spec(number)["rows"] for seed in seeds]


def table(number: str, profile: str, seeds: List[int]) -> pd.DataFrame:
    """A table of the paper from the published records, one line a row.

    For each metric M of the table there are the columns ``M`` (mean over the seeds, in percent), ``M std`` (sample
    standard deviation over the seeds; empty for one seed), ``dM`` and ``dM std`` (the same of the difference to
    the first row with the same seed), and the paper's ``paper M`` and ``paper dM``. The columns before them
    say what the row is, in the paper's words; ``seeds`` counts the records and ``note`` says why there are
    fewer than asked for. ``attrs`` holds the devices, commits and data fingerprints of the records.
    """
    info = spec(number)
    paper = pd.read_csv(EXPERIMENTS / "paper" / info["paper"])
    words = paper[[c for c in paper.columns if c not in info["metrics"]]].replace({"yes": "✓", "no": "–"})
    lines, baseline, found = [], {}, []
    for k, variant in enumerate(info["rows"]):
        records = {seed: runs.Run(variant, profile, seed).record() for seed in seeds}
        found += [record for record in records.values() if record]
        good = {seed: record for seed, record in records.items() if record and "failed" not in record}
        line = {**words.iloc[k], "variant": variant, "seeds": len(good)}
        for metric in info["metrics"]:
            kind, key = METRICS[metric]
            ours = pd.Series(
                {seed: record["metrics"][kind][key] for seed, record in good.items()}, dtype=float
            )
            baseline.setdefault(metric, ours)
            line[metric], line[f"{metric} std"] = ours.mean(), ours.std()
            difference = ours - baseline[metric]
            line[f"d{metric}"], line[f"d{metric} std"] = difference.mean(), difference.std()
            line[f"paper {metric}"] = paper[metric][k]
            line[f"paper d{metric}"] = round(paper[metric][k] - paper[metric][0], 1)
        line["note"] = "; ".join(
            f"seed {seed}: " + (f"failed, {record['failed']}" if record else "not run")
            for seed, record in records.items()
            if seed not in good
        )
        lines.append(line)
    frame = pd.DataFrame(lines)
    for key in ("device_name", "git_commit", "data_fingerprint"):
        frame.attrs[key] = sorted({str(record.get(key)) for record in found})
    return frame


def to_markdown(number: str, profile: str, frame: pd.DataFrame) -> str:
    """The table as text: ours, the paper's in brackets, and both differences to the first row."""
    info = spec(number)
    words = list(frame.columns[: frame.columns.get_loc("variant")])
    shown = frame[words].copy()
    shown.columns = [w.replace("_", " ") for w in words]
    for metric in info["metrics"]:
        shown[f"{metric} (paper)"] = [
            _number(row[metric], row[f"{metric} std"]) + f" ({row[f'paper {metric}']:.1f})"
            for _, row in frame.iterrows()
        ]
    for metric in info["metrics"]:
        shown[f"Δ{metric} (paper)"] = [
            _number(row[f"d{metric}"], row[f"d{metric} std"], "+") + f" ({row[f'paper d{metric}']:+.1f})"
            for _, row in frame.iterrows()
        ]
    lines = [f"Table {number}. {info['title']}: profile `{profile}`, the paper's numbers in brackets.", ""]
    lines += [shown.to_markdown(index=False, disable_numparse=True), ""]
    seeds = sorted(set(frame["seeds"]))
    if seeds == [1]:
        lines += ["One seed: there is no spread, and a difference may be noise.", ""]
    elif len(seeds) == 1 and seeds[0]:
        lines += [
            f"Mean ± sample standard deviation over {seeds[0]} seeds; differences are paired by seed.",
            "",
        ]
    lines += [f"- {row['variant']}: {row['note']}\n" for _, row in frame.iterrows() if row["note"]]
    made = {key: ", ".join(values) for key, values in frame.attrs.items()}
    if made["device_name"]:
        lines += [
            f"Made on {made['device_name']}, at commit {made['git_commit']}, from data {made['data_fingerprint']}."
        ]
    if len(frame.attrs["data_fingerprint"]) > 1:
        lines += ["**The rows have seen different data: do not compare them.**"]
    return "\n".join(lines).rstrip() + "\n"


def write(number: str, profile: str, seeds: List[int]) -> Path:
    """Write ``results/<profile>/table<number>.csv``, ``.md`` and ``.png`` and return the path of the ``.md``."""
    from . import figures

    frame = table(number, profile, seeds)
    base = runs.OUTPUT / "results" / profile / f"table{number}"
    write_bytes(base.with_suffix(".csv"), frame.round(4).to_csv(index=False).encode())
    write_bytes(base.with_suffix(".md"), to_markdown(number, profile, frame).encode())
    figures.save(figures.component_gains(frame, spec(number)), base.with_suffix(".png"))
    return base.with_suffix(".md")


def _number(value: float, std: float = float("nan"), sign: str = "") -> str:
    if pd.isna(value):
        return "–"
    return f"{value:{sign}.1f}" + ("" if pd.isna(std) else f" ± {std:.1f}")
