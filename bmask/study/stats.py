"""Every interval of the study: 95%, of a mean over images and seeds; ``docs/statistics.md`` explains them.

Test images are drawn anew, with replacement, as many as there are, 1,000 times, the same draws for all models: so
models are paired image by image. Runs are paired by their seeds.
"""

from functools import cache
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import norm as normal
from scipy.stats import t as student

RESAMPLES = 1000


def by_image(objects: Dict[str, np.ndarray], images: int) -> Dict[str, np.ndarray]:
    """What there is of objects in each image: (2, images), by name, the sum of a value and how many have one.

    Args:
        objects: of N objects, (N,), ``image``, the place of the image that each is in, and values by name, or NaN.
    """
    return {
        name: np.stack([np.bincount(objects["image"], v, images) for v in (np.nan_to_num(values), ~np.isnan(values))])
        for name, values in objects.items()
        if name != "image"
    }


def means_of_draws(found: Dict[str, ArrayLike]) -> Dict[str, List[Optional[float]]]:
    """Means over the objects of :func:`by_image` on the draws of :func:`times`: an object is drawn with its image."""
    drawn = {name: np.array(values) @ times(len(values[0])).T for name, values in found.items()}
    return {name: [s / n if n else None for s, n in zip(*sums.tolist())] for name, sums in drawn.items()}


@cache
def times(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, images): how often each image is in each draw; the same draws for all models."""
    draws = np.random.default_rng(0).integers(images, size=(resamples, images))
    return np.stack([np.bincount(draw, minlength=images) for draw in draws])


class Estimate(NamedTuple):
    """A mean over seeds and its variance: what other images would change, and what other seeds would.

    of_images: NaN where nothing is known. freedom: the degrees of freedom of of_seeds.
    """

    mean: float
    of_images: float = float("nan")
    of_seeds: float = 0.0
    freedom: float = float("inf")

    @property
    def interval(self) -> Tuple[float, float]:
        """The ends of the 95% interval: Student's t, with Satterthwaite's degrees of freedom. Two NaN if unknown."""
        variance = self.of_images + self.of_seeds
        freedom = self.freedom * (variance / self.of_seeds) ** 2 if self.of_seeds else np.inf
        half = student.ppf(0.975, freedom) * np.sqrt(variance)
        return float(self.mean - half), float(self.mean + half)

    @property
    def p(self) -> float:
        """How likely a mean at least as far from zero is where the true one is zero; NaN if unknown.

        The level of the interval that ends at zero, where half its width is sqrt(z^2 of_images + t^2 of_seeds), with a
        normal and a Student's t quantile. Far out, where a correction for many tests looks, Satterthwaite's freedom is
        too high. This interval errs on the careful side: at 95% it is often too wide.
        """
        if np.isnan(self.of_images):
            return float("nan")

        def beyond(log):
            z, t = normal.isf(np.exp(log) / 2), student.isf(np.exp(log) / 2, self.freedom)
            return z**2 * self.of_images + t**2 * self.of_seeds - self.mean**2

        least = -200  # exp(-200) is 1e-87
        return float(np.exp(brentq(beyond, least, 0))) if beyond(least) > 0 else float(self.mean == 0)


def estimate(measured: Sequence[float], drawn: Sequence[Sequence[float]]) -> Estimate:
    """The mean over seeds, with its variance.

    Other images would move all seeds alike: what the draws say of the mean, less what is each seed's own in it. Other
    seeds would give other values: their variance, by their number. Of one seed only images are known.

    Args:
        measured: (S,), of each seed, on the images as they are.
        drawn: (S, draws), the same on the draws of images; NaN where a draw has no value.

    Returns:
        Without a variance where there is no seed, or where a seed has no value on any draw.
    """
    measured, drawn = np.array(measured, dtype=float), np.array(drawn, dtype=float)
    seeds = len(measured)
    mean = float(measured.mean()) if seeds else float("nan")
    if np.isnan(mean) or np.isnan(drawn).all(axis=-1).any():
        return Estimate(mean)
    of_mean = float(np.nanvar(drawn.mean(axis=0)))
    if seeds == 1:
        return Estimate(mean, of_mean)
    own = max(0.0, (float(np.nanvar(drawn, axis=1).mean()) - of_mean) * seeds / (seeds - 1))
    return Estimate(mean, max(0.0, of_mean - own / seeds), float(measured.var(ddof=1)) / seeds, seeds - 1)


def mean_of_objects(measured: Sequence[Tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """The mean over objects and seeds. Objects are drawn with the image that they are in.

    Args:
        measured: for each seed the image of each object, (M,), and a value, (M,), or NaN.
    """
    number = max(int(image.max()) for image, _ in measured) + 1
    drawn = [means_of_draws(by_image({"image": image.astype(int), "": v}, number))[""] for image, v in measured]
    values = np.stack([value for _, value in measured])
    if np.isnan(values).all(axis=1).any():  # a model without any boundary pixel has neither thickness nor precision
        return Estimate(float("nan") if np.isnan(values).all() else float(np.nanmean(values)))
    return estimate(np.nanmean(values, axis=1), drawn)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's correction of p values: where m are tested at once, the smallest counts m times, the next m - 1 times.

    An adjusted value is no smaller than those before it, and 1 at most. NaN stays NaN, and is not counted.
    """
    p = np.array(p, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return p


def simulate(
    seeds: int, of_seed: float, of_image: float, own: float, images: int = 100, trials: int = 1500, draws: int = 300
) -> Dict[str, np.ndarray]:
    """What is said of made-up records whose true mean is known to be zero.

    Args:
        of_seed, of_image, own: standard deviations, between seeds, between images, and of what is a seed's own on an
            image.

    Returns:
        Of each trial, (trials,): whether the 95% interval ``covers`` zero, and ``p``.
    """
    rng, drawn, found = np.random.default_rng(0), times(images)[:draws] / images, []
    for _ in range(trials):
        shared = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_image, (1, images))
        values = shared + rng.normal(0, own, (seeds, images))
        found.append(estimate(values.mean(axis=1), values @ drawn.T))
    return {"covers": np.array([e.interval[0] < 0 < e.interval[1] for e in found]), "p": np.array([e.p for e in found])}
