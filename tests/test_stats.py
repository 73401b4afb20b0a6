"""Intervals: against numbers worked by hand, and whether they cover a difference that is known."""

import numpy as np
import pytest

from bmask.study import stats


def test_an_interval_adds_what_other_images_and_other_seeds_would_change():
    """Seeds give 1, 2 and 3: variance 1, of their mean 1/3. On draws of images all move by 1 either way: variance 1."""
    drawn = np.array([1, 2, 3])[:, None] + np.array([-1.0, 1.0])
    # In all 4/3. Seeds have a quarter of it, with 2 degrees of freedom: 2 x 4^2 = 32 degrees. Student's t: 2.0369.
    half = 2.0369 * (4 / 3) ** 0.5
    assert stats.interval([1, 2, 3], drawn) == pytest.approx((2 - half, 2 + half), abs=1e-4)
    # Draws that move each seed by itself are in the variance of the seeds already. 2 degrees of freedom: 4.3027.
    own = np.array([[1, -1, -1, 1], [-1, 1, -1, 1], [-1, -1, 1, 1]]) * 3**0.5
    own -= own.mean(axis=1, keepdims=True)
    low, high = stats.interval([1, 2, 3], np.array([[1], [2], [3]]) + own - own.mean(axis=0))
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_of_one_seed_an_interval_knows_the_images_alone():
    assert stats.interval([5], [[4.0, 6.0]]) == pytest.approx((5 - 1.96, 5 + 1.96), abs=1e-3)
    assert np.isnan(stats.interval([], [])).all() and np.isnan(stats.interval([1], [[np.nan, np.nan]])).all()


@pytest.mark.parametrize(
    "seeds,of_seed,of_image,of_both", [(3, 1, 0.1, 0.1), (3, 1, 10, 3), (3, 0, 10, 3), (5, 1, 5, 3)]
)
def test_nineteen_of_twenty_intervals_cover_the_difference(seeds, of_seed, of_image, of_both):
    """Spread between seeds, between 100 images, and of what is each seed's own on an image; the difference is 0."""
    rng, trials, covered = np.random.default_rng(0), 1000, 0
    draws = stats.times(100)[:300] / 100
    for _ in range(trials):
        shared = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_image, (1, 100))
        values = shared + rng.normal(0, of_both, (seeds, 100))
        low, high = stats.interval(values.mean(axis=1), values @ draws.T)
        covered += low < 0 < high
    assert 0.93 <= covered / trials <= 0.97
