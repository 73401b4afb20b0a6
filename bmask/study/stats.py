"""Every interval of the study: percentile bootstrap, 95%, over images and seeds.

Test images are drawn anew, with replacement, as many as there are, the same draws for all models: so models are paired
image by image. Runs are paired by their seeds, and these are drawn anew as well. The interval is the middle 95% of the
means over 1,000 such draws. With few seeds it is too narrow: n drawn with replacement spread sqrt((n - 1) / n) times as
much as n new ones would, 0.82 times with three seeds; and with one seed it knows nothing of other seeds.
"""

from functools import cache
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

RESAMPLES = 1000
NONE = (float("nan"), float("nan"))


def means_of_draws(objects: Dict[str, Sequence], images: int) -> Dict[str, List[Optional[float]]]:
    """Means over objects on the draws of :func:`times`. An object is drawn with its image.

    Args:
        objects: of N objects, (N,), ``image``, the place of the image that each is in, and values by name, or None.
        images: how many there are to draw from.
    """
    drawn = times(images)
    found = {}
    for name in objects.keys() - {"image"}:
        values = np.array(objects[name], dtype=float)
        sums, numbers = (np.bincount(objects["image"], v, images) for v in (np.nan_to_num(values), ~np.isnan(values)))
        found[name] = [s / n if n else None for s, n in zip((drawn @ sums).tolist(), (drawn @ numbers).tolist())]
    return found


@cache
def times(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, images): how often each image is in each draw; the same draws for all models."""
    draws = np.random.default_rng(0).integers(images, size=(resamples, images))
    return np.stack([np.bincount(draw, minlength=images) for draw in draws])


def contrast(terms: Sequence[Tuple[int, Dict[int, Optional[np.ndarray]]]]) -> Tuple[float, float]:
    """The interval of a sum of models with signs, such as the difference of two.

    Args:
        terms: for each model its sign, and by seed its values on the draws of images, or None. Seeds that not
            all models have are left out.

    Returns:
        Its ends; two NaN without a common seed or without values, and where the models are one.
    """
    seeds = sorted(set.intersection(*(set(by_seed) for _, by_seed in terms)))
    rows = [[by_seed[s] for s in seeds] for _, by_seed in terms]
    if not seeds or any(values is None for row in rows for values in row):
        return NONE
    sums = sum(sign * np.array(row, dtype=float) for (sign, _), row in zip(terms, rows))  # seed x draw
    if not sums.any():
        return NONE
    chosen = np.random.default_rng(0).integers(len(seeds), size=sums.shape)
    return _middle(np.take_along_axis(sums, chosen, axis=0).mean(axis=0))


def mean_of_objects(measured: Sequence[Tuple[np.ndarray, np.ndarray]]) -> Tuple[float, float, float]:
    """The mean over objects and seeds, and the ends of its interval. Objects are drawn with the image that they are in.

    Args:
        measured: for each seed the image of each object, (M,), the same for all, and a value, (M,), or NaN.
    """
    values = np.stack([value for _, value in measured])  # seed x object
    image = measured[0][0].astype(int)
    number = image.max() + 1
    sums = np.stack([np.bincount(image, np.nan_to_num(row), number) for row in values])
    counts = np.stack([np.bincount(image, ~np.isnan(row), number) for row in values])
    rng = np.random.default_rng(0)
    drawn = [
        np.ix_(rng.integers(len(values), size=len(values)), rng.integers(number, size=number)) for _ in range(RESAMPLES)
    ]
    with np.errstate(invalid="ignore"):  # a model without any boundary pixel has neither thickness nor precision
        ends = _middle([sums[d].sum() / counts[d].sum() for d in drawn]) if counts.any() else NONE
        return float(sums.sum() / counts.sum()), *ends


def _middle(means: Sequence[float]) -> Tuple[float, float]:
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)
