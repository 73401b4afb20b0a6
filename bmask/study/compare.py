"""Models compared by their records: a metric, its draws of test images, and the interval of a difference."""

from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from ..errors import InputError
from . import stats
from .runs import Run

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
    # of masks in true boxes; see bmask.study.true_boxes
    "IoU": ("true_boxes", "IoU"),
    "IoU75": ("true_boxes", "IoU75"),
    "F": ("true_boxes", "F"),
    "overlap": ("true_boxes", "overlap"),
    "finer": ("true_boxes", "finer"),
    # on a second test set
    "AP_second": ("segm_second", "AP"),
    "IoU_second": ("true_boxes_second", "IoU"),
    "F_second": ("true_boxes_second", "F"),
}


def records(shown: Sequence[Run]) -> Dict[str, Dict[int, Dict]]:
    """The records of runs, by variant and seed. Raises InputError where one is missing or of a failed run."""
    found = {}
    for run in shown:
        record = run.record()
        if record is None:
            raise InputError(
                f"{run.name} has not been run; `python -m bmask run --variant {run.variant} --profile {run.profile} "
                f"--seeds {run.seed}` does it"
            )
        if "failed" in record:
            raise InputError(f"{run.name} has failed ({record['failed']}); there is nothing to draw")
        found.setdefault(run.variant, {})[run.seed] = record
    return found


def without_failed(by_seed: Dict[int, Optional[Dict]]) -> Dict[int, Dict]:
    """The records with metrics, by seed."""
    return {seed: record for seed, record in by_seed.items() if record and "failed" not in record}


def same_data(compared: Sequence[Dict], metric: str) -> bool:
    """Whether all of the records are of runs with the same data, as far as the metric is of them."""
    keys = ["data_fingerprint"] + (["second_fingerprint"] if "_second" in metric else [])
    return len({tuple(record.get(key) for key in keys) for record in compared}) <= 1


def value(record: Dict, metric: str) -> float:
    """A metric of a record, or the difference of two, such as "AP75 - AP50"; NaN where there is none."""
    first, *rest = (record["metrics"].get(kind, {}).get(key) for kind, key in _fields(metric))
    return float("nan") if first is None or None in rest else first - sum(rest)


def resamples(by_seed: Dict[int, Dict], metric: str) -> Dict[int, Optional[np.ndarray]]:
    """The same on the draws of test images that records hold, by seed; None where there are none."""

    def drawn(record):
        parts = [record["metrics"].get(kind, {}).get("bootstrap", {}).get(key) for kind, key in _fields(metric)]
        if any(part is None for part in parts):
            return None
        first, *rest = np.array(parts, dtype=float)
        return first - sum(rest)

    return {seed: drawn(record) for seed, record in by_seed.items()}


def _fields(metric: str) -> Sequence[Tuple[str, str]]:
    return [METRICS[part] for part in metric.split(" - ")]


def interval(ours: Dict[int, Dict], base: Dict[int, Dict], metric: str) -> Tuple[float, float]:
    """The ends of the interval of the difference of two models, from their records by seed; see :func:`contrast`.

    Two NaN where there is none, and where records are of other data.
    """
    if not same_data([side[s] for s in ours.keys() & base.keys() for side in (ours, base)], metric):
        return float("nan"), float("nan")
    return contrast([(1, ours), (-1, base)], metric).interval


def contrast(terms: Sequence[Tuple[int, Dict[int, Dict]]], metric: str) -> stats.Estimate:
    """A sum of models with signs, such as the difference of two, in points of the metric.

    Args:
        terms: for each model its sign, and its records by seed. Seeds that not all models have are left out.
        metric: as :func:`value` takes it.

    Returns:
        Without an error where there is no common seed or a record has no resamples, and where the models are one.
    """
    seeds = sorted(set.intersection(*(set(by_seed) for _, by_seed in terms)))
    values = [sum(sign * value(by_seed[s], metric) for sign, by_seed in terms) for s in seeds]
    drawn = [(sign, resamples(by_seed, metric)) for sign, by_seed in terms]
    known = all(by_seed[s] is not None for _, by_seed in drawn for s in seeds)
    sums = [sum(sign * by_seed[s] for sign, by_seed in drawn) for s in seeds] if known else []
    return stats.estimate(values, sums) if np.any(sums) else stats.Estimate(float(np.mean(values or np.nan)))
