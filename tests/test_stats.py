"""Intervals: against numbers worked by hand, and whether they cover a difference that is known."""

import numpy as np
import pytest

from bmask.study import stats


def test_an_interval_adds_what_other_images_and_other_seeds_would_change():
    """Seeds give 1, 2 and 3: variance 1, of their mean 1/3. On draws of images all move by 1 either way: variance 1."""
    drawn = np.array([1, 2, 3])[:, None] + np.array([-1.0, 1.0])
    # In all 4/3. Seeds have a quarter of it, with 2 degrees of freedom: 2 x 4^2 = 32 degrees. Student's t: 2.0369.
    half = 2.0369 * (4 / 3) ** 0.5
    assert stats.estimate([1, 2, 3], drawn).interval == pytest.approx((2 - half, 2 + half), abs=1e-4)
    # Draws that move each seed by itself are in the variance of the seeds already. 2 degrees of freedom: 4.3027.
    own = np.array([[1, -1, -1, 1], [-1, 1, -1, 1], [-1, -1, 1, 1]]) * 3**0.5
    own -= own.mean(axis=1, keepdims=True)
    found = stats.estimate([1, 2, 3], np.array([[1], [2], [3]]) + own - own.mean(axis=0))
    assert found.interval == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_of_one_seed_an_interval_knows_the_images_alone():
    assert stats.estimate([5], [[4.0, 6.0]]).interval == pytest.approx((5 - 1.96, 5 + 1.96), abs=1e-3)
    assert stats.estimate([1.96], [[0.96, 2.96]]).p == pytest.approx(0.05, abs=1e-4)
    assert np.isnan(stats.estimate([], []).interval).all() and np.isnan(stats.estimate([], []).p)
    assert np.isnan(stats.estimate([1], [[np.nan, np.nan]]).p)


def test_p_is_the_level_of_the_interval_that_ends_at_zero():
    """Of images a variance of 4/9, of 3 seeds 1/9. At 5% sqrt(1.9600^2 x 4/9 + 4.3027^2 x 1/9) = 1.9402."""
    assert stats.Estimate(1.9402, 4 / 9, 1 / 9, 2).p == pytest.approx(0.05, abs=1e-5)
    assert stats.Estimate(-1.9402, 4 / 9, 1 / 9, 2).p == pytest.approx(0.05, abs=1e-5)
    assert stats.Estimate(4.3027, 0, 1, 2).p == pytest.approx(0.05, abs=1e-5)
    assert stats.Estimate(0, 1, 1, 2).p == 1 and stats.Estimate(5, 0, 0, 2).p == 0 and stats.Estimate(0, 0, 0, 2).p == 1


def test_holms_correction():
    """Of 0.01, 0.02, 0.03 and 0.5, four of them: 4 x 0.01, 3 x 0.02, 2 x 0.03 and 0.5; none below one before it."""
    assert stats.holm([0.5, 0.01, np.nan, 0.03, 0.02]) == pytest.approx([0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True)
    assert stats.holm([0.02, 0.021]) == pytest.approx([0.04, 0.04]) and stats.holm([0.6, 0.7]) == pytest.approx([1, 1])


@pytest.mark.parametrize("seeds,of_seed,of_image,own", [(3, 1, 0.1, 0.1), (3, 1, 10, 3), (3, 0, 10, 3), (5, 1, 5, 3)])
def test_nineteen_of_twenty_intervals_cover_the_difference(seeds, of_seed, of_image, own):
    """`notebooks/statistics.ipynb` has more settings. p values may be too high, never too low, far out as well."""
    said = stats.simulate(seeds, of_seed, of_image, own, trials=1000)
    assert 0.93 <= said["covers"].mean() <= 0.97
    assert (said["p"] < 0.05).mean() <= 0.065 and (said["p"] < 0.005).mean() <= 0.01
