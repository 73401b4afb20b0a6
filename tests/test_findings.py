import json
import re

import numpy as np
import pytest

from bmask.study import compare, config, files, findings, runs, tables
from bmask.study.findings import Claim, Comparison


def publish(variant, seed, gain, spread=0.2, data="a data set", profile="smoke"):
    """A record whose resamples lie around a mean that all models share."""
    noise = np.random.default_rng(seed).normal(30, 3, 500)
    own = np.random.default_rng([seed, *variant.encode()]).normal(gain, spread, 500)
    values = {name: 30 + gain for name in ("AP", "AP50", "AP75")}
    metrics = {"segm": {**values, "bootstrap": {name: list(noise + own) for name in values}}}
    record = {"metrics": metrics, "data_fingerprint": data}
    files.write_bytes(runs.Run(variant, profile, seed).published, json.dumps(record).encode())


def find(text, metric="AP"):
    return Comparison(text).find("smoke", metric)


def claim(*texts, metrics=("AP",)):
    return Claim("a claim", tables.named("3"), metrics, [Comparison(text) for text in texts])


def judged(monkeypatch, *made):
    monkeypatch.setattr(findings, "claims", lambda: list(made))
    return findings.judge("smoke")


def test_a_verdict_is_what_is_left_after_the_correction(output, monkeypatch):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        publish("bmask_rcnn", seed, 2)
        publish("sobel_mask_head", seed, -3)
        publish("bmask_rcnn_m2b", seed, 2.0, spread=2)
        publish("bmask_rcnn_b2m", seed, 1.52 + 0.08 * seed)
    (difference, seeds) = find("bmask_rcnn vs mask_rcnn")
    low, high = difference.interval
    assert difference.mean == 2 and seeds == [0, 1, 2] and 1 < low < 2 < high < 3
    gains, less, alike = "bmask_rcnn vs mask_rcnn", "sobel_mask_head vs mask_rcnn", "bmask_rcnn vs bmask_rcnn_m2b"
    both, one_below = claim(gains, alike), claim(gains, less, gains)
    said = judged(monkeypatch, claim(gains), claim(less), claim(alike), both, one_below, claim("bmask_rcnn vs no_such"))
    assert [j.verdict for (j,) in said.values()] == ["holds", "opposite", "open", "open", "opposite", "no verdict"]
    # A claim holds where all of its comparisons do, so counts as the likeliest; the opposite counts one of three.
    assert said[both][0].raw == find(alike)[0].p and said[one_below][0].raw == 3 * find(less)[0].p
    # 0.4 above, give or take 0.08: a p value of 0.013. Sure enough alone, not among five others.
    weak = claim("bmask_rcnn vs bmask_rcnn_b2m")
    others = [claim("bmask_rcnn vs bmask_rcnn_m2b") for _ in range(5)]
    assert judged(monkeypatch, weak)[weak][0].verdict == "holds"
    assert judged(monkeypatch, weak, *others)[weak][0].verdict == "open"


def test_another_second_test_set_tells_no_difference_on_it():
    first, second = ({"data_fingerprint": "a", "second_fingerprint": k} for k in "bc")
    assert findings.compare.same_data([first, second], "AP") and not findings.compare.same_data(
        [first, second], "IoU_second"
    )


def test_what_is_judged_in_true_boxes_is_corrected_apart(output, monkeypatch):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        publish("bmask_rcnn", seed, 2)
    one, other = claim("bmask_rcnn vs mask_rcnn", metrics=("AP", "AP50")), claim("bmask_rcnn vs mask_rcnn")
    said = judged(monkeypatch, one, other)
    assert [j.p for j in said[one]] == pytest.approx([2 * said[one][0].raw, said[one][0].raw])


def test_one_model_has_a_difference_and_no_verdict(output, monkeypatch):
    for seed in (0, 1, 2):
        publish("bmask_rcnn", seed, 2)
        twin = runs.Run("bmask_rcnn_p2p5_28", "smoke", seed)
        files.write_bytes(twin.published, runs.Run("bmask_rcnn", "smoke", seed).published.read_bytes())
    same = claim("bmask_rcnn vs bmask_rcnn_p2p5_28")
    (said,) = judged(monkeypatch, same)[same]
    assert said.found[0][0].mean == 0 and said.verdict == "no verdict"
    assert find("bmask_rcnn vs bmask_rcnn_b2m") is None


def test_there_is_no_verdict_from_records_of_different_data(output):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        publish("bmask_rcnn", seed, 2, data="another" if seed == 2 else "a data set")
    difference, _ = find("bmask_rcnn vs mask_rcnn")
    assert difference.mean == 2 and np.isnan(difference.p)
    low, _ = tables.named("3").frame("smoke", [0, 1, 2]).set_index("variant").loc["bmask_rcnn", ["dAP low", "dAP high"]]
    assert np.isnan(low)


def test_a_failed_seed_and_one_that_only_one_row_has_are_left_out(output, monkeypatch):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        if seed < 2:
            publish("bmask_rcnn", seed, 1)
    files.write_bytes(runs.Run("mask_rcnn", "smoke", 1).published, b'{"failed": "iteration 3: no", "a": 1}')
    assert find("bmask_rcnn vs mask_rcnn")[1] == [0]
    gains = claim("bmask_rcnn vs mask_rcnn")
    assert judged(monkeypatch, gains)[gains][0].verdict == "no verdict"  # of one seed


def test_a_seed_without_the_metric_is_left_out(output):
    for seed in (0, 1):
        publish("mask_rcnn", seed, 0)
        publish("bmask_rcnn", seed, 1)
    assert find("bmask_rcnn vs mask_rcnn", "overlap") is None


def test_one_variant_alone_is_compared_with_zero(output):
    for seed in (0, 1):
        publish("bmask_rcnn_coarse16", seed, -28)
    assert find("bmask_rcnn_coarse16")[0].mean == 2


def test_a_difference_of_differences_is_paired(output):
    """4 - 1 over 2 - 1: each seed moves all four rows alike, and so does each draw, which cancels."""
    gains = {"bmask_rcnn": 4, "mask_rcnn": 1, "bmask_rcnn_coarse16": 2, "mask_rcnn_coarse16": 1}
    for variant, gain in gains.items():
        for seed in (0, 1):
            publish(variant, seed, gain + 5 * seed, spread=0, data="coarse" if "coarse" in variant else "fine")
    comparison = "bmask_rcnn - mask_rcnn vs bmask_rcnn_coarse16 - mask_rcnn_coarse16"
    assert find(comparison)[0].interval == pytest.approx((2, 2))


def test_the_papers_numbers_come_from_its_tables():
    assert Comparison("bmask_rcnn vs mask_rcnn").paper("AP") == 1.5
    assert Comparison("bmask_rcnn vs mask_rcnn").paper("AP75 - AP50") == pytest.approx(2.3 - 0.7)
    assert Comparison("bmask_rcnn vs mask_rcnn_larger_head").paper("AP") == 1.0
    assert Comparison("bmask_rcnn vs mask_rcnn").paper("time") == 1.08  # 63.7 ms by 59.0 ms
    assert Comparison("bmask_rcnn_weighted_bce vs bmask_rcnn").paper("thickness") is None


def test_every_claim_compares_variants_that_there_are():
    known, comparisons = set(config.available("variant")), []
    for claim in findings.claims():
        for comparison in claim.comparisons:
            comparisons.append((claim.text, comparison))
            assert set(comparison.signs) <= known and comparison.words
        for metric in claim.metrics:
            assert metric in ("thickness", "time") or {*metric.split(" - ")} <= {*compare.METRICS}
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
    (found, _) = find("bmask_rcnn_weighted_bce vs bmask_rcnn", "thickness")
    assert found.interval == pytest.approx((0.5, 0.5))


def test_times_are_those_that_were_measured(output):
    systems = {"mask_rcnn": {"ratio": 1.0}, "mask_rcnn_larger_head": {"ratio": 1.2}, "bmask_rcnn": {"ratio": 1.5}}
    assert find("bmask_rcnn vs mask_rcnn", "time") is None
    files.write_bytes(runs.results("smoke") / "cost.json", json.dumps({"systems": systems}).encode())
    assert find("bmask_rcnn vs mask_rcnn_larger_head", "time")[0].mean == 1.25


def test_the_page_says_what_differs_first_and_has_a_row_for_each_comparison(output):
    for seed in (0, 1, 2):
        publish("mask_rcnn", seed, 0)
        publish("bmask_rcnn", seed, 2)
    tables.named("3").note_made("smoke", [0])
    local = findings.write()
    assert local == output / "results/local/README.md" and "What surprised" not in local.read_text()
    with runs.as_shipped(runs.results()):
        text = findings.write().read_text()
    assert text.index("fine-tunes ImageNet") < text.index("| paper |") < text.index("What surprised")
    assert "- `smoke`: Data `shapes`" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    claims = findings.claims()
    assert len(rows) == 2 + len(claims) + sum(len(claim.comparisons) for claim in claims)
    found = {row[0]: row[1:] for row in rows}
    assert found["| BMask R-CNN over Mask R-CNN"] == ["×1.08", "– |"]  # the last of this name: of times
    assert ["| BMask R-CNN over Mask R-CNN", "+1.5", "**+2.0**\u00a0≠ |"] in rows
    assert found["| **BMask R-CNN gains (Tables 1, 3)**"] == ["", "[holds](smoke/README.md) |"]
    assert "| + fusions: row 3 over row 2" in found
    numbers = findings.numbers("smoke")
    assert "| BMask R-CNN over Mask R-CNN | +1.5 | +2.0 [+1.9, +2.1], 3 seeds | – |" in numbers


def test_one_seed_has_numbers_on_the_page_and_no_verdict(output):
    publish("mask_rcnn", 0, 0)
    publish("bmask_rcnn", 0, 2)
    tables.named("3").note_made("smoke", [0])
    rows = [line for line in findings.write().read_text().splitlines() if line.startswith("|")]
    assert rows[0] == "| | paper | [smoke](smoke/README.md) |" and {row.count("|") for row in rows} == {4}
    assert "| BMask R-CNN over Mask R-CNN | +1.5 | +2.0 |" in rows and not any("holds" in row for row in rows)


def test_one_detector_has_a_table_of_its_own_with_what_was_measured(output):
    for profile in ("smoke", "smoke-samedetector"):
        for variant, mean in (("mask_rcnn", 0), ("bmask_rcnn", 2)):
            publish(variant, 0, mean, profile=profile)
        tables.named("3").note_made(profile, [0])
    joint, same = findings.write().read_text().split("### With the same detector")
    assert "- `smoke`:" in joint and "smoke-samedetector" not in joint and "Every backbone gains" in joint
    assert "[smoke](smoke-samedetector/README.md)" in same and "Every backbone gains" not in same
    assert "| BMask R-CNN over Mask R-CNN | +1.5 | +2.0 |" in same
    judged = {profile: findings.judge(profile) for profile in ("smoke", "cpu-samedetector")}
    assert "- `cpu-samedetector`:" in findings.text(judged)  # no other profile has its settings


def test_the_claims_of_the_ablations_are_drawn_beside_the_paper(output):
    made = [("smoke", 2, 1), ("smoke", 2, 2), ("smoke-samedetector", 3, 1), ("smoke-samedetector", 3, 2), ("cpu", 9, 1)]
    for profile, mean, seed in made:
        publish("mask_rcnn", seed, 0, profile=profile)
        publish("bmask_rcnn", seed, mean, profile=profile)
    judged = {profile: findings.judge(profile) for profile in ("cpu", "smoke", "smoke-samedetector")}
    frame = findings.frame(judged)
    assert set(frame["data"]) == {"generated shapes\nsmoke"}  # cpu has one seed, and so no verdict
    first = frame[frame["comparison"] == "BMask R-CNN over Mask R-CNN"].set_index("protocol")
    assert first["gain"].to_dict() == {"joint": 2, "same detector": 3} and set(first["paper"]) == {1.5}
    assert set(first["verdict"]) == {"holds"} and set(frame["verdict"]) == {"holds", ""}
    (panel,) = (figure := findings.gains.claims(frame)).axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    drawn = {line.get_label(): dict(zip(*line.get_data()[::-1])) for line in panel.lines[1:]}
    place = labels.index("BMask R-CNN over Mask R-CNN")
    at = {label: [x for y, x in points.items() if round(y) == place] for label, points in drawn.items()}
    assert at == {"joint": [2], "same detector": [3], "the paper": [1.5]}
    assert [text.get_text() for text in panel.texts if text.get_text()] == ["holds", "holds"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["joint", "same detector", "the paper"]
    assert findings.frame({"cpu": judged["cpu"]})["gain"].max() == 9
    (panel,) = findings.gains.claims(frame[frame["protocol"] == "same detector"]).axes
    assert panel.lines[1].get_marker() == "s"  # as where both protocols are drawn


def test_the_shipped_overviews_fit_a_screen_and_their_links_lead_somewhere():
    with runs.as_shipped():
        text = findings.text({profile: findings.judge(profile) for profile in runs.profiles(runs.shipped())})
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links and all((runs.shipped() / link).exists() for link in links)
    seen = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
    assert max(len(line) for line in seen.splitlines() if line.startswith("|")) <= 100
