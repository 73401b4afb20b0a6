"""Every interval of the study: 95%, of a mean over images and seeds; ``docs/statistics.md`` explains them.

Test images are drawn anew, with replacement, as many as there are, 1,000 times, the same draws for all models: so
models are paired image by image. Runs are paired by their seeds.
"""

from functools import cache
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from scipy.stats import t as student

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


def interval(measured: Sequence[float], drawn: Sequence[Sequence[float]]) -> Tuple[float, float]:
    """The interval of a mean over seeds: Student's t, with Satterthwaite's degrees of freedom.

    The variance of the mean has two parts. Other images would move all seeds alike: what the draws say of the mean,
    less what is each seed's own in it. Other seeds would give other values: their variance, by their number, with as
    many degrees of freedom less one. Of one seed the interval knows the images alone.

    Args:
        measured: (S,), of each seed, on the images as they are.
        drawn: (S, draws), the same on the draws of images; NaN where a draw has no value.

    Returns:
        Its ends; two NaN without a seed, or without a value on any draw or of a seed.
    """
    measured, drawn = np.array(measured, dtype=float), np.array(drawn, dtype=float)
    seeds = len(measured)
    if not seeds or np.isnan(measured).any() or np.isnan(drawn).all(axis=-1).any():
        return NONE
    of_mean = np.nanvar(drawn.mean(axis=0))
    if seeds == 1:
        variance, freedom = of_mean, np.inf
    else:
        own = max(0.0, (np.nanvar(drawn, axis=1).mean() - of_mean) * seeds / (seeds - 1))
        images, others = max(0.0, of_mean - own / seeds), measured.var(ddof=1) / seeds
        variance = images + others
        freedom = (seeds - 1) * (variance / others) ** 2 if others else np.inf
    half = student.ppf(0.975, freedom) * np.sqrt(variance)
    return float(measured.mean() - half), float(measured.mean() + half)


def mean_of_objects(measured: Sequence[Tuple[np.ndarray, np.ndarray]]) -> Tuple[float, float, float]:
    """The mean over objects and seeds, and the ends of its interval. Objects are drawn with the image that they are in.

    Args:
        measured: for each seed the image of each object, (M,), and a value, (M,), or NaN.
    """
    number = max(int(image.max()) for image, _ in measured) + 1
    drawn = [means_of_draws({"image": image.astype(int), "": value}, number)[""] for image, value in measured]
    values = np.stack([value for _, value in measured])
    if np.isnan(values).all(axis=1).any():  # a model without any boundary pixel has neither thickness nor precision
        return float(np.nanmean(values)) if not np.isnan(values).all() else NONE[0], *NONE
    means = np.nanmean(values, axis=1)
    return float(means.mean()), *interval(means, drawn)
