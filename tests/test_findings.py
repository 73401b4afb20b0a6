import json

import numpy as np
import pytest

from bmask.study import compare, config, files, findings, runs, stats, tables
from bmask.study.findings import Comparison


def publish(variant, seed, gain, spread=0.2, data="a data set"):
    """A record whose resamples lie around a mean that all models share."""
    noise = np.random.default_rng(seed).normal(30, 3, 500)
    own = np.random.default_rng([seed, *variant.encode()]).normal(gain, spread, 500)
    values = {name: 30 + gain for name in ("AP", "AP50", "AP75")}
    metrics = {"segm": {**values, "bootstrap": {name: list(noise + own) for name in values}}}
    record = {"metrics": metrics, "data_fingerprint": data}
    files.write_bytes(runs.Run(variant, "smoke", seed).published, json.dumps(record).encode())


def test_a_verdict_is_what_the_interval_says(output):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        publish("bmask_rcnn", seed, 2)
        publish("sobel_mask_head", seed, -3)
        publish("bmask_rcnn_m2b", seed, 2.0, spread=2)
    found = Comparison("bmask_rcnn vs mask_rcnn", "AP").find("smoke")
    assert found.difference == 2 and found.seeds == [0, 1, 2] and found.verdict == "reproduced"
    assert 1 < found.low < 2 < found.high < 3
    assert Comparison("sobel_mask_head vs mask_rcnn", "AP").find("smoke").verdict == "not reproduced"
    assert Comparison("bmask_rcnn vs bmask_rcnn_m2b", "AP").find("smoke").verdict == "undecided"
    twin = runs.Run("bmask_rcnn_p2p5_28", "smoke", 0)
    files.write_bytes(twin.published, runs.Run("bmask_rcnn", "smoke", 0).published.read_bytes())
    found = Comparison("bmask_rcnn vs bmask_rcnn_p2p5_28", "AP").find("smoke")
    assert found.verdict == "no verdict" and found.difference == 0
    assert Comparison("bmask_rcnn vs bmask_rcnn_b2m", "AP").find("smoke") is None


def test_there_is_no_verdict_from_records_of_different_data(output):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        publish("bmask_rcnn", seed, 2, data="another" if seed == 2 else "a data set")
    found = Comparison("bmask_rcnn vs mask_rcnn", "AP").find("smoke")
    assert found.difference == 2 and found.verdict == "no verdict"
    low, _ = tables.named("3").frame("smoke", [0, 1, 2]).set_index("variant").loc["bmask_rcnn", ["dAP low", "dAP high"]]
    assert np.isnan(low)


def test_a_failed_seed_and_one_that_only_one_row_has_are_left_out(output):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        if seed < 2:
            publish("bmask_rcnn", seed, 1)
    files.write_bytes(runs.Run("mask_rcnn", "smoke", 1).published, b'{"failed": "iteration 3: no", "a": 1}')
    assert Comparison("bmask_rcnn vs mask_rcnn", "AP").find("smoke").seeds == [0]


def test_a_difference_of_differences_is_paired(output):
    """4 - 1 over 2 - 1: each seed moves all four rows alike, and so does each draw, which cancels."""
    gains = {"bmask_rcnn": 4, "mask_rcnn": 1, "bmask_rcnn_coarse16": 2, "mask_rcnn_coarse16": 1}
    for variant, gain in gains.items():
        for seed in (0, 1):
            publish(variant, seed, gain + 5 * seed, spread=0, data="coarse" if "coarse" in variant else "fine")
    comparison = "bmask_rcnn - mask_rcnn vs bmask_rcnn_coarse16 - mask_rcnn_coarse16"
    found = Comparison(comparison, "AP").find("smoke")
    assert found.difference == 2 and found.low == found.high == pytest.approx(2)


def test_the_papers_numbers_come_from_its_tables():
    assert Comparison("bmask_rcnn vs mask_rcnn", "AP").paper == 1.5
    assert Comparison("bmask_rcnn vs mask_rcnn", "AP75 - AP50").paper == pytest.approx(2.3 - 0.7)
    assert Comparison("bmask_rcnn vs mask_rcnn_larger_head", "AP").paper == 1.0
    assert Comparison("bmask_rcnn_weighted_bce vs bmask_rcnn", "thickness").paper is None


def test_every_claim_compares_variants_that_there_are():
    known, comparisons = set(config.available("variant")), []
    for claim in findings.claims():
        for comparison in claim.comparisons:
            comparisons.append((claim.text, comparison))
            assert comparison.metric == "thickness" or {*comparison.metric.split(" - ")} <= {*compare.METRICS}
            assert set(comparison.signs) <= known
    assert len(set(comparisons)) == len(comparisons) >= 20


def test_thickness_is_paired_over_objects(output, monkeypatch):
    image = np.repeat(np.arange(20), 5)
    thin = np.random.default_rng(0).uniform(1, 3, 100)

    def load(run, parts):
        thick = 0.5 if run.variant == "bmask_rcnn_weighted_bce" else 0
        return type("Kept", (), {"quality": {"image": image, "thickness": thin + thick}})

    monkeypatch.setattr(findings.predictions, "load", load)
    for variant in ("bmask_rcnn_weighted_bce", "bmask_rcnn"):
        publish(variant, 0, 0)
    found = Comparison("bmask_rcnn_weighted_bce vs bmask_rcnn", "thickness").find("smoke")
    assert found.difference == pytest.approx(0.5) and found.low == pytest.approx(0.5)


def test_the_page_says_what_differs_first_and_has_a_row_for_each_comparison(output):
    publish("mask_rcnn", 0, 0)
    publish("bmask_rcnn", 0, 2)
    tables.named("3").note_made("smoke", [0])
    local = findings.write()
    assert local == output / "results/local/README.md" and "What surprised" not in local.read_text()
    with runs.as_shipped(runs.results()):
        text = findings.write().read_text()
    assert text.index("What differs") < text.index("| claim |") < text.index("What surprised")
    assert "- `smoke`: Data `shapes`" in text
    rows = [line for line in text.splitlines() if " over " in line and line.startswith("|")]
    assert len(rows) == sum(len(claim.comparisons) for claim in findings.claims())
    assert "+1.5 | +2.0 [" in text and "**no verdict** (1 seed) |" in text
    assert stats.mean_of_objects([(np.array([0, 1]), np.array([1.0, 3.0]))])[0] == 2
