import json
import subprocess

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE

from bmask import config, cost, draw, figures, files, reproduce, runs, tables
from bmask.__main__ import main
from bmask.errors import InputError

METRIC = {
    "AP": 30.0,
    "AP50": 50.0,
    "AP75": 31.0,
    "APs": 1.0,
    "APm": 2.0,
    "APl": None,
    "per_iou": {},
    "per_class": {},
}


def publish(variant, seed, mask_ap, box_ap=40.0, data="a data set", resamples=None):
    run = runs.Run(variant, "smoke", seed)
    metrics = {"segm": {**METRIC, "AP": mask_ap}, "bbox": {**METRIC, "AP": box_ap}, "boundary": METRIC}
    if resamples is not None:
        metrics["segm"]["bootstrap"] = {"AP": list(resamples)}
    made = {"device_name": "a laptop", "git_commit": "0123abc", "data_fingerprint": data}
    made |= {"variant": variant, "seconds_per_iteration": 2.0}
    files.write_bytes(run.published, json.dumps({"metrics": metrics, **made}).encode())


@pytest.fixture
def records(output):
    """Two seeds of each row but one; the third row has failed for seed 1."""
    rows = [row.variant for row in tables.rows("3")]
    for seed in (0, 1):
        for k, variant in enumerate(rows[:4]):
            publish(variant, seed, 20 + k + 2 * seed * (k > 0) + 10 * seed, box_ap=40 + k)
    failed = runs.Run(rows[2], "smoke", 1)
    failed.published.unlink()
    files.write_bytes(failed.published, b'{"failed": "iteration 7: loss_boundary not finite"}')
    return rows


def test_a_table_is_means_and_differences_paired_by_seed_beside_the_papers(records):
    frame = tables.table("3", "smoke", [0, 1])
    assert list(frame["variant"]) == records
    assert list(frame["seeds"]) == [2, 2, 1, 2, 0]
    first, second, third = frame.iloc[0], frame.iloc[1], frame.iloc[2]
    assert (first["AP"], first["AP std"]) == (25.0, pytest.approx(50**0.5))
    # 21 - 20 and 33 - 30
    assert (second["dAP"], second["dAP std"]) == (2.0, pytest.approx(2**0.5))
    # One seed is left, and is compared with the same seed of the first row.
    assert third["dAP"] == 2.0 and third["APb"] == 42.0
    assert (frame.iloc[4]["paper AP"], frame.iloc[4]["paper dAP"]) == (34.7, 1.5)
    assert frame.iloc[2]["note"] == "seed 1: failed, iteration 7: loss_boundary not finite"
    assert frame.iloc[4]["note"] == "seed 0: not run; seed 1: not run"


def test_the_text_shows_both_and_says_what_is_missing(records):
    text = tables.to_markdown("3", "smoke", tables.table("3", "smoke", [0, 1]))
    assert "25.0 ± 7.1 (33.2)" in text and "+2.0 ± 1.4 (+0.7)" in text
    assert "failed, iteration 7: loss_boundary not finite" in text
    assert "– (34.7)" in text


def test_rows_that_have_seen_different_data_are_called_out(output):
    rows = [row.variant for row in tables.rows("3")]
    publish(rows[0], 0, 20.0)
    text = tables.to_markdown("3", "smoke", tables.table("3", "smoke", [0]))
    assert (
        "Made on a laptop, at commit 0123abc, from data a data set." in text and "different data" not in text
    )
    publish(rows[1], 0, 21.0, data="another")
    assert "different data" in tables.to_markdown("3", "smoke", tables.table("3", "smoke", [0]))


def test_the_figure_draws_our_differences_and_the_papers(records):
    frame = tables.table("3", "smoke", [0, 1])
    figure = draw.gains(frame, tables.rows("3"), "Table 3", tables.spec("3")["metrics"])
    assert [panel.get_title() for panel in figure.axes] == ["AP", "AP50", "AP75", "APb"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[0] == "none" and labels[4] == "boundary, fusions, bce dice, roi strategy"
    assert "m2b twice, b2m twice" in draw._labels(tables.rows("6"))
    assert draw._labels(tables.rows("sobel"))[:2] == ["Mask R-CNN", "Sobel mask head"]
    lines = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].lines}
    assert lines["paper"] == [0.0, 0.7, 1.0, 1.2, 1.5]


def test_writing_again_leaves_the_same_files_alone(records, output):
    path = tables.write("3", "smoke", [0, 1])
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.glob("table3*")}
    assert set(before) == {"table3.md", "table3.csv", "table3.png"}
    tables.write("3", "smoke", [0, 1])
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.glob("table3*")} == before


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: tables.spec("33"), "no table '33': did you mean '3'"),
        (lambda: config.resolve("bmask_rcn", "cpu"), "no variant 'bmask_rcn': did you mean 'bmask_rcnn'"),
        (lambda: config.resolve("mask_rcnn", "cpus"), "no profile 'cpus': did you mean 'cpu'"),
        (lambda: config.parse_seeds("0,x"), "SEEDS is '0,x'"),
    ],
)
def test_an_unknown_name_is_one_sentence_with_the_nearest(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--table", "3", "--data", "{}"], "this profile makes its own data"),
        (["--table", "33"], "did you mean '3'"),
        (["--table", "3", "--profile", "cpu-batch0"], "did you mean 'cpu'"),
        (["--variant", "bmask_rcn"], "did you mean 'bmask_rcnn'"),
        (
            ["--table", "3", "--profile", "nuclei", "--data", "/does/not/exist"],
            "there is no data folder /does/not/exist",
        ),
        (["--table", "3", "--profile", "nuclei", "--data", "{}"], "instances_train.json"),
    ],
)
def test_wrong_input_on_the_command_line_is_one_sentence_and_status_2(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(runs, "OUTPUT", tmp_path / "output")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["run", *(a.format(empty) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("bmask: ") and message in line and out == ""
    assert not (tmp_path / "output").exists()


def test_wrong_input_ends_the_process_with_status_2_and_no_stack_trace(bmask):
    process = bmask("reproduce", "33")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and out == ""
    assert err.startswith("bmask: there is no table '33': did you mean '3'") and err.count("\n") == 1


@pytest.fixture
def resampled(output):
    """Two rows of Table 3 with two seeds: the gain is 1 on most resamples for one seed, and 3 for the other."""
    noise = np.random.default_rng(0).normal(0, 5, 1000).round(2)
    for seed, gain in ((0, 1.0), (1, 3.0)):
        own = np.random.default_rng(seed + 1).normal(gain, 0.1, 1000).round(2)
        publish("mask_rcnn", seed, 20.0, resamples=20 + noise)
        publish("bmask_rcnn", seed, 20.0 + gain, resamples=20 + noise + own)
    return output


def test_intervals_are_paired_over_images_and_draw_the_seeds(resampled):
    """What all models find hard about a resample, here 5 points, cancels; the two seeds, 1 and 3, do not."""
    frame = tables.table("3", "smoke", [0, 1]).set_index("variant")
    low, high = frame.loc["bmask_rcnn", ["dAP low", "dAP high"]]
    assert 0.7 < low < 1.0 and 3.0 < high < 3.3
    frame = tables.table("3", "smoke", [0]).set_index("variant")
    low, high = frame.loc["bmask_rcnn", ["dAP low", "dAP high"]]
    assert (low, high) == (pytest.approx(1 - 1.96 * 0.1, abs=0.03), pytest.approx(1 + 1.96 * 0.1, abs=0.03))
    assert pd.isna(frame.loc["mask_rcnn", "dAP low"]) and pd.isna(frame.loc["bmask_rcnn", "dAPb low"])


def test_a_difference_whose_interval_is_beyond_zero_is_marked(resampled):
    text = tables.to_markdown("3", "smoke", tables.table("3", "smoke", [0, 1]))
    (cell,) = [c.strip() for c in text.split("|") if "+2.0 ± 1.4 [" in c]
    assert cell.endswith("]* (+1.5)") and "* where zero is outside" in text
    publish("bmask_rcnn", 1, 20.0, resamples=np.linspace(19, 21, 1000))
    text = tables.to_markdown("3", "smoke", tables.table("3", "smoke", [0, 1]))
    assert "]*" not in text and "paired over images and seeds" in text


def test_intervals_of_records_from_other_data_or_without_resamples_are_not_made_up(resampled):
    publish("bmask_rcnn", 1, 23.0, data="another", resamples=np.zeros(1000))
    assert pd.isna(tables.table("3", "smoke", [0, 1]).set_index("variant").loc["bmask_rcnn", "dAP low"])
    publish("bmask_rcnn", 1, 23.0)
    assert pd.isna(tables.table("3", "smoke", [0, 1]).set_index("variant").loc["bmask_rcnn", "dAP low"])


@pytest.mark.parametrize("number", tables.specs())
def test_every_row_of_the_papers_tables_is_there(number):
    """The paper's rows in its order, each run or marked as published; and a notebook of its own."""
    info = tables.spec(number)
    paper = pd.read_csv(config.EXPERIMENTS / "paper" / info["paper"])
    rows = tables.rows(number)
    assert len(rows) == len(paper) + len(info.get("more", {}))
    assert {row.variant for row in rows} <= {*config.available("variant"), tables.PUBLISHED}
    assert {row.baseline for row in rows} <= {row.variant for row in rows} - {tables.PUBLISHED}
    assert all(set(row.words) == set(rows[0].words) for row in rows)
    assert set(info["metrics"]) <= set(tables.METRICS)
    assert (config.EXPERIMENTS.parent / "notebooks" / tables.notebook(number)).exists()


def test_every_table_and_figure_has_a_make_target():
    text = subprocess.run(["make", "help"], cwd=runs.REPOSITORY, capture_output=True, text=True).stdout
    names = [f"table-{number}" if number.isdigit() else number for number in tables.specs()]
    for name in [*names, *(f"figure-{number}" for number in figures.specs()), "all", "report"]:
        assert f"make {'' if name == 'report' else 'reproduce-'}{name} " in text


def test_every_variant_is_in_a_table_or_figure():
    shown = {row.variant for number in tables.specs() for row in tables.rows(number)} - {tables.PUBLISHED}
    shown |= {variant for number in figures.specs() for variant in figures.variants(number, "cpu")}
    assert shown == set(config.available("variant"))


def test_published_rows_are_marked_and_never_mixed_with_ours(output):
    publish("mask_rcnn_800_r101", 0, 20.0)
    text = tables.to_markdown("2", "smoke", tables.table("2", "smoke", [0]))
    lines = {tuple(c.strip() for c in line.split("|")[1:5]) for line in text.splitlines() if "|" in line}
    assert ("MNC", "ResNet-101", "published", "– (24.6)") in lines
    assert ("Mask R-CNN*", "ResNet-101-FPN", "ResNet-34-FPN, 85 px", "20.0 (36.2)") in lines
    assert "evaluation server" in text


def test_rows_are_compared_with_the_baseline_of_the_same_backbone(output):
    publish("mask_rcnn", 0, 10.0)
    publish("mask_rcnn_800_r101", 0, 20.0)
    publish("bmask_rcnn_800_r101", 0, 21.5)
    frame = tables.table("1", "smoke", [0]).set_index("variant")
    assert frame.loc["bmask_rcnn_800_r101", "dAP"] == 1.5
    assert frame.loc["bmask_rcnn_800_r101", "paper dAP"] == 1.7


def test_rows_of_ours_alone_have_no_number_of_the_papers(output):
    publish("bmask_rcnn_no_fusion", 0, 10.0)
    publish("bmask_rcnn_two_fusion_blocks", 0, 12.0)
    frame = tables.table("6", "smoke", [0])
    assert frame.iloc[4]["dAP"] == 2.0 and pd.isna(frame.iloc[4]["paper AP"])
    assert "| twice | twice |" in " ".join(tables.to_markdown("6", "smoke", frame).split())


def test_the_linear_scaling_rule_says_so():
    text = tables.to_markdown("3", "paper-batch8", tables.table("3", "paper-batch8", [0]))
    assert "8 images a batch, 180000 iterations, learning rate 0.01" in text
    assert "lowered after 120000 and 160000 (by the linear scaling rule)" in text


def test_the_plan_says_how_many_runs_and_how_long_from_the_speed_so_far(output, monkeypatch):
    options = runs.Options(device="cpu", jobs=2)
    wanted = tables.table_runs("3", "smoke", [0]) + tables.table_runs("sobel", "smoke", [0])
    wanted = list(dict.fromkeys(wanted))
    assert (
        reproduce.plan(wanted, options) == "7 runs, 7 of them to be made; none has been timed on this machine"
    )
    monkeypatch.setattr(runs, "provenance", lambda _: {"device_name": "a laptop"})
    publish("mask_rcnn", 0, 20.0)
    # 2 s x 6 iterations x 6 runs (refined masks need no training) on 2 processes
    assert "7 of them to be made: about 1 minutes of training" in reproduce.plan(wanted, options)


def test_the_cost_is_measured_again_for_another_configuration_alone(output, monkeypatch):
    measured = []

    def measure(profile, device):
        measured.append(device)
        return {"runs": {v: runs.Run(v, profile, 0).name for v in cost.SYSTEMS}}

    monkeypatch.setattr(cost, "measure", measure)
    for _ in range(2):
        cost.ensure("smoke", runs.Options(device="cpu"))
    assert measured == ["cpu"]
    own = output / "runs" / "smoke" / "cost.json"
    own.write_text(own.read_text().replace("mask_rcnn-seed0-", "mask_rcnn-seed0-0"))
    cost.ensure("smoke", runs.Options(device="cpu"))
    assert len(measured) == 2
    own.unlink()
    cost.ensure("smoke", runs.Options(device="cpu", reuse=True))
    assert len(measured) == 2
