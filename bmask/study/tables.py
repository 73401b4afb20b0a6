"""From records to a table, beside the paper's. A pure function of the records."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence

import pandas as pd
import yaml
from detectron2.config import CfgNode

from ..errors import InputError
from . import compare, config, cost, figures, runs
from .config import EXPERIMENTS, pick
from .figures import gains, style
from .files import write_bytes
from .items import Item, made
from .runs import Options, Run

PUBLISHED = "published"
WIDTH = 100  # characters of a line
NAN = float("nan")
SHOWN = ("AP", "AP75", "AP_val", "AP75_val")  # metrics that the text shows; all of them are in the CSV
NOT_DRAWN = ("APS", "APM", "APL", "APb50", "APb75", "AP_cityscapes")  # for a look: more panels are hard to read
# Further metrics of all tables, as far as records have them: what is said of them, what a reader calls them, and
# those whose gains are shown.
FURTHER = (
    (
        "The masks in the true boxes and classes of all test objects, in percent: mean IoU, share with an IoU above "
        "0.75, mean F-score of the boundary with a tolerance of one pixel of the 28x28 mask.",
        {"IoU": "IoU", "IoU75": "> 0.75", "F": "F"},
        ("IoU", "F"),
    ),
    (
        "The same models on the profile's second test set: AP, and IoU and F in true boxes.",
        {"AP_second": "AP", "IoU_second": "IoU", "F_second": "F"},
        ("AP_second", "IoU_second"),
    ),
)
DATA = {  # what a reader calls data sets
    "shapes": "generated shapes",
    "coco_person": "photographs of persons",
    "nuclei": "microscopy of nuclei",
    "coco": "COCO val2017",
    "cityscapes": "Cityscapes val",
}
SAME = "same detector"  # the source of what was trained by that protocol


class Row(NamedTuple):
    """A row: its variant (``published`` for a method that is only quoted), what it is compared with, what it is called,
    the paper's words for it, and the paper's metrics, in percent; none for a row that is ours alone."""

    variant: str
    baseline: str
    name: str
    words: Dict[str, str]
    paper: Dict[str, float]

    @property
    def quoted(self) -> bool:
        return self.variant == PUBLISHED


@dataclass(frozen=True, eq=False)
class Table(Item):
    """A table of the paper.

    metrics: its columns, see :data:`bmask.study.compare.METRICS`. rows: the paper's in its order, then those that are
    ours alone. note: what it can and cannot be. cost: whether it shows what the heads cost. of: the paper's data. only:
    the data set without which it says nothing.
    """

    metrics: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    cost: bool = False
    of: str = "COCO val2017"
    only: Optional[str] = None
    prefix = ""
    shows_failed = True

    @property
    def target(self) -> str:
        return f"table-{self.number}" if self.number.isdigit() else self.number

    def heading_in(self, profile: str) -> str:
        cfg = Run(self.variants[0], profile, 0).cfg
        here = f"{DATA.get(cfg.STUDY.DATASET, cfg.STUDY.DATASET)}, {_network(cfg)}"
        here += f", {SAME}" if cfg.STUDY.SAME_DETECTOR else ""
        return f"{self.label} on {here}" + (f"; the paper: {self.of}" if self.of else "")

    def fits(self, profile: str) -> bool:
        # `smoke` is there to try everything, and says nothing anyway.
        return not self.only or profile == "smoke" or Run("mask_rcnn", profile, 0).cfg.STUDY.DATASET == self.only

    @property
    def variants(self) -> List[str]:
        """The variants that are run, in the order of the rows."""
        return [row.variant for row in self.rows if not row.quoted]

    def runs(self, profile: str, seeds: List[int]) -> List[Run]:
        return [Run(variant, profile, seed) for variant in self.variants for seed in seeds]

    def measure(self, profile: str, seeds: List[int], options: Options) -> None:
        if self.cost:
            cost.ensure(profile, options)

    def frame(self, profile: str, seeds: List[int], folder: Optional[Path] = None) -> pd.DataFrame:
        """The table from the records in a folder of results, by default where results are written.

        For each metric M of the table there are the columns ``M`` (mean over the seeds, in percent), ``M std`` (sample
        standard deviation over the seeds; empty for one seed), ``dM`` and ``dM std`` (the same of the difference to the
        row's baseline with the same seed), ``dM low`` and ``dM high`` (see :func:`bmask.study.compare.interval`), and
        the paper's ``paper M`` and ``paper dM``. The columns before them say what the row is; ``seeds`` counts the
        records and ``note`` says why there are fewer than asked for. ``attrs`` holds the seeds, devices, commits and
        data fingerprints of the records.
        """
        folder = folder or runs.results(profile)
        records = {
            variant: {seed: Run(variant, profile, seed).record(folder) for seed in seeds} for variant in self.variants
        }
        baselines = {row.variant: row for row in self.rows}
        lines = []
        for row in self.rows:
            by_seed, base = records.get(row.variant, {}), compare.without_failed(records[row.baseline])
            good = compare.without_failed(by_seed)
            line = {"row": row.name, **row.words, "variant": row.variant}
            line["network"] = "" if row.quoted else _network(Run(row.variant, profile, 0).cfg)
            line["seeds"] = len(good)
            for metric in (*self.metrics, *(metric for _, metrics, _ in FURTHER for metric in metrics)):
                ours, difference = _values(good, metric), _values(good, metric) - _values(base, metric)
                line[metric], line[f"{metric} std"] = ours.mean(), ours.std()
                line[f"d{metric}"], line[f"d{metric} std"] = difference.mean(), difference.std()
                line[f"d{metric} low"], line[f"d{metric} high"] = compare.interval(good, base, metric)
                line[f"paper {metric}"] = row.paper.get(metric, NAN)
                gain = row.paper.get(metric, NAN) - baselines[row.baseline].paper.get(metric, NAN)
                line[f"paper d{metric}"] = NAN if row.quoted else round(gain, 1)
            line["note"] = "; ".join(
                f"seed {seed}: " + (f"failed, {record['failed']}" if record else "not run")
                for seed, record in by_seed.items()
                if seed not in good
            )
            lines.append(line)
        frame = pd.DataFrame(lines)
        everything = [record for found in records.values() for record in found.values() if record]
        for key in ("device_name", "git_commit", "data_fingerprint"):
            frame.attrs[key] = sorted({str(record.get(key)) for record in everything})
        frame.attrs["apart"] = [seed for seed in seeds if self._apart(records, seed)]
        frame.attrs["seeds"] = [seed for seed in seeds if any(found[seed] for found in records.values())]
        return frame

    def _apart(self, records: Dict[str, Dict[int, Optional[Dict]]], seed: int) -> bool:
        """Whether a row and its baseline, trained by the same-detector protocol, have different detectors after all."""
        detectors = {variant: (by_seed[seed] or {}).get("detector") for variant, by_seed in records.items()}
        pairs = [(detectors.get(row.variant), detectors[row.baseline]) for row in self.rows]
        return any(ours and base and ours != base for ours, base in pairs)

    def frames(self, profile: str, seeds: List[int]) -> Dict[str, pd.DataFrame]:
        """The table ``here``, with these seeds, as it is ``shipped``, and with the ``same detector`` in all rows, from
        here or else shipped; without what has no record.

        Raises:
            InputError: neither has one; says which command makes it.
        """

        def as_made(profile, folder):
            return self.frame(profile, made(profile, folder).get(self.name, seeds), folder)

        found = {"shipped" if runs.PUBLISH else "here": self.frame(profile, seeds)}
        if not runs.PUBLISH:
            found["shipped"] = as_made(profile, runs.shipped(profile))
        if (same := config.same_detector(profile)) != profile:
            ours = as_made(same, runs.results(same))
            found[SAME] = ours if ours.attrs["seeds"] else as_made(same, runs.shipped(same))
        found = {source: frame for source, frame in found.items() if frame.attrs["seeds"]}
        if not found:
            raise InputError(
                f"no run of {self.label} has been made with profile {profile} and the seeds "
                f"{','.join(map(str, seeds))}; `make reproduce-{self.target} PROFILE={profile}` makes them"
            )
        return found

    def to_markdown(self, profile: str, sources: Dict[str, pd.DataFrame]) -> str:
        """AP and AP75 of each row and what it gains: here, shipped and the paper's. Lines have 100 characters at most.

        Args:
            sources: from :meth:`frames`.
        """
        last = list(sources.values())[-1]
        metrics = {m: m.removesuffix("_val") for m in self.metrics if m in SHOWN}
        text = [f"{self.heading_in(profile)}.", f"{self.title}. Profile `{profile}`."]
        text.append(self._lines(sources, metrics, metrics))
        for words, metrics, compared in FURTHER:
            if any(frame[[*metrics]].notna().any(axis=None) for frame in sources.values()):
                text += [fill(words, WIDTH), self._lines(sources, metrics, compared, spread=False)]
        text += [fill(self.note, WIDTH)] if self.note else []
        text += [fill(f"{_intervals(sources)} {setting(profile)} {_networks(last)}", WIDTH)]
        for source, frame in sources.items():
            text += [fill(f"{source}: {_provenance(frame)}.", WIDTH)]
            listed = [row for k, (_, row) in enumerate(frame.iterrows()) if source in _sources_of(sources, k)]
            notes = [f"- {row['row']}, {row['note']}" for row in listed if row["note"]]
            text += ["\n".join(notes)] if notes else []
            if apart := frame.attrs["apart"]:
                seeds = f"seed{'s' * (len(apart) > 1)} {', '.join(map(str, apart))}"
                text += [f"**Rows with {seeds} have different detectors: train them on one machine.**"]
            if len(frame.attrs["data_fingerprint"]) > 1:
                text += ["**The rows have seen different data: do not compare them.**"]
        if len({tuple(frame.attrs["data_fingerprint"]) for frame in sources.values()}) > 1:
            text += ["**What is here and what is shipped have seen different data: do not compare them.**"]
        return "\n\n".join(text) + "\n"

    def _lines(
        self, sources: Dict[str, pd.DataFrame], metrics: Dict[str, str], gained: Iterable[str], spread: bool = True
    ) -> str:
        """A table of metrics, which readers know by other names, and of what is gained in some of them: of each row a
        line for each source, and the paper's. spread: with the standard deviation of the metrics."""
        last = list(sources.values())[-1]
        lines = []
        for k, entry in enumerate(self.rows):
            compared, own = entry.variant not in (PUBLISHED, entry.baseline), []
            for source in [] if entry.quoted else _sources_of(sources, k):
                row = sources[source].iloc[k]
                cells = [_number(row[m], row[f"{m} std"] if spread else NAN) for m in metrics]
                own.append([source, *cells, *(_difference(row, m) if compared else "" for m in gained)])
            row = last.iloc[k]
            if row[[f"paper {m}" for m in metrics]].notna().any():
                cells = [_number(row[f"paper {m}"]) for m in metrics]
                deltas = [_number(row[f"paper d{m}"], sign="+") if compared else "" for m in gained]
                own.append(["paper", *cells, *deltas])
            lines += [["" if others else entry.name, *line] for others, line in enumerate(own)]
        table = pd.DataFrame(lines, columns=["", "", *metrics.values(), *(f"Δ{metrics[m]}" for m in gained)])
        return table.to_markdown(index=False, disable_numparse=True)

    def gains(self, profile: str, folder: Path) -> str:
        """In a sentence, what the rows gain in AP where a folder of results has the table."""
        frame = self.frame(profile, made(profile, folder)[self.name], folder)
        metric = next(m for m in self.metrics if m in SHOWN)
        names = {row.variant: row.name for row in self.rows}
        return "; ".join(
            f"{row.name} over {names[row.baseline]}: {_difference(line, metric)}"
            for row, (_, line) in zip(self.rows, frame.iterrows())
            if row.variant not in (PUBLISHED, row.baseline) and line["seeds"]
        )

    def write(self, profile: str, seeds: List[int]) -> List[Path]:
        found = self.frames(profile, seeds)
        (path,) = self.written(runs.results(profile))
        (_, content), *others = found.items()
        for source, frame in others:
            content = content.join(frame[[*_measured(frame)]].add_prefix(f"{source} "))
        names = "|".join(metric for _, metrics, _ in FURTHER for metric in metrics)
        further = content.filter(regex=rf"\bd?({names})\b")
        content = content.drop(columns=further.columns[further.isna().all()]).round(4)
        text, title = self.to_markdown(profile, found), self.heading_in(profile)
        if self.cost:
            folders = {"here": runs.results(profile), "shipped": runs.shipped(profile)}
            costs = cost.measured({source: folder for source, folder in folders.items() if source in found})
            text += "\n" + cost.to_markdown(costs, [row.name for row in self.rows], [row.words for row in self.rows])
            drawing = gains.against_time(found, costs, self.rows, title)
        else:
            drawn = [m for m in (*self.metrics, "IoU") if m in content and m not in NOT_DRAWN]
            drawing = gains.chart(found, self.rows, title, drawn)
        write_bytes(path.with_suffix(".csv"), content.to_csv(index=False).encode())
        write_bytes(path, text.encode())
        style.save(drawing, path.with_suffix(".png"))
        self.note_made(profile, seeds)
        return [path]

    def on_page(self, path: Path, picture: str) -> List[str]:
        return [path.read_text().split("\n", 1)[1].strip(), picture]


@cache
def known() -> Dict[str, Table]:
    """Every table of ``experiments/tables.yaml``, by its number or name."""
    content = yaml.safe_load((EXPERIMENTS / "tables.yaml").read_text())
    return {number: _load(number, **info) for number, info in content.items()}


def items() -> Dict[str, Item]:
    """Every table and figure, by what a reader calls it."""
    return {item.name: item for item in (*known().values(), *figures.known().values())}


def named(number: str) -> Table:
    """One of them. Raises InputError for one that there is not."""
    return pick("table", number, known())


def _load(number: str, paper: str, metrics: List[str], rows: List[Dict], more: Dict[str, str] = {}, **info) -> Table:
    notebook, paper = Path(paper).with_suffix(".ipynb").name, pd.read_csv(EXPERIMENTS / "paper" / paper)
    numbers = paper[[m for m in metrics if m in paper]]
    words = paper.drop(columns=numbers.columns)
    words = words.replace({"yes": "✓", "no": "–"}).astype(object).where(words.notna(), "–")
    entries = [(*key.split(" vs "), name) for entry in rows for key, name in entry.items()]
    first = next(variant for variant, *_ in entries if variant != PUBLISHED)
    found = []
    for k, (variant, *baseline, name) in enumerate(entries):
        found.append(
            Row(variant, baseline[0] if baseline else first, name, {**words.iloc[k]}, numbers.iloc[k].to_dict())
        )
    for variant, *baseline, name in ((*key.split(" vs "), name) for key, name in more.items()):
        found.append(Row(variant, baseline[0] if baseline else first, name, dict.fromkeys(words, "–"), {}))
    return Table(number, notebook=notebook, metrics=metrics, rows=found, **info)


def _values(by_seed: Dict[int, Dict], metric: str) -> pd.Series:
    return pd.Series({seed: compare.value(record, metric) for seed, record in by_seed.items()}, dtype=float)


def _sources_of(sources: Dict[str, pd.DataFrame], k: int) -> List[str]:
    """Those that have a record of row k; the first where none has, to say so."""
    rows = {source: frame.iloc[k] for source, frame in sources.items()}
    return [s for s, row in rows.items() if row["seeds"] or "failed" in row["note"]] or list(sources)[:1]


def _intervals(sources: Dict[str, pd.DataFrame]) -> str:
    numbers = [len(frame.attrs["seeds"]) for frame in sources.values()]
    many, one = max(numbers) > 1, min(numbers) == 1
    return (
        "AP of masks in percent"
        + (", mean ± standard deviation over the seeds" if many else "")
        + "; Δ: what the row gains over its baseline"
        + (" with the same seed" if many else "")
        + ", with its 95% interval over images and seeds."
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


def setting(profile: str) -> str:
    """One line: with which data and schedule the rows of a profile are trained."""
    cfg = Run("mask_rcnn", profile, 0).cfg
    return (
        f"Data `{cfg.STUDY.DATASET}`, {cfg.SOLVER.IMS_PER_BATCH} images a "
        f"batch, {cfg.SOLVER.MAX_ITER} iterations, learning rate {cfg.SOLVER.BASE_LR:g}, lowered after "
        + " and ".join(map(str, cfg.SOLVER.STEPS))
        + (" (by the linear scaling rule)." if "-batch" in profile else ".")
        + (
            " Tested on a fifth of the training images, which are left out of the training."
            if cfg.STUDY.HELD_OUT
            else ""
        )
        + (" No mask head's gradient reaches the detector." if cfg.STUDY.SAME_DETECTOR else "")
    )


def _network(cfg: CfgNode) -> str:
    """The backbone and input size of a run."""
    names = {"build_hrnetv2p_backbone": cfg.MODEL.HRNET.NAME, "build_timm_fpn_backbone": cfg.MODEL.TIMM.NAME}
    name = names.get(cfg.MODEL.BACKBONE.NAME, f"ResNet-{cfg.MODEL.RESNETS.DEPTH}")
    return f"{name.replace('efficientnet_lite', 'EfficientNet-Lite')}-FPN, {cfg.INPUT.MIN_SIZE_TEST} px"


def _measured(frame: pd.DataFrame) -> List[str]:
    """The columns with numbers of ours."""
    start = list(frame).index("seeds")
    return [c for c in list(frame)[start:-1] if not c.startswith("paper ")]


def _difference(row: pd.Series, metric: str) -> str:
    low, high = row[f"d{metric} low"], row[f"d{metric} high"]
    digits = _digits((high - low) / 2)
    interval = "" if pd.isna(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return _number(row[f"d{metric}"], sign="+") + interval


def _digits(spread: float) -> int:
    """After the point: where a number is known to ten points or worse, tenths of its spread say nothing."""
    return 0 if spread >= 10 else 1


def _number(value: float, std: float = NAN, sign: str = "") -> str:
    if pd.isna(value):
        return "–"
    return f"{round(value, 1) + 0.0:{sign}.1f}" + ("" if pd.isna(std) else f" ± {std:.{_digits(std)}f}")
