import json
import subprocess

import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE, complaint, contents

from bmask.errors import InputError
from bmask.study import compare, config, cost, files, items, report, reproduce, runs, tables
from bmask.study.cli import main
from bmask.study.figures import gains

METRIC = {"AP": 30.0, "AP50": 50.0, "AP75": 31.0, "APs": 1.0, "APm": 2.0, "APl": None, "per_iou": {}, "per_class": {}}
TABLE = tables.named("3")


def publish(
    variant, seed, mask_ap, box_ap=40.0, data="a data set", resamples=None, profile="smoke", further={}, **more
):
    run = runs.Run(variant, profile, seed)
    metrics = {**further}
    metrics |= {"segm": {**METRIC, "AP": mask_ap}, "bbox": {**METRIC, "AP": box_ap}, "boundary": METRIC}
    if resamples is not None:
        metrics["segm"]["bootstrap"] = {"AP": list(resamples)}
    made = {"device_name": "a laptop", "git_commit": "0123abc", "data_fingerprint": data}
    made |= {"variant": variant, "seconds_per_iteration": 2.0, **more}
    files.write_bytes(run.published, json.dumps({"metrics": metrics, **made}).encode())


@pytest.fixture
def records(output):
    """Two seeds of each row but one; the third row has failed for seed 1."""
    rows = TABLE.variants
    for seed in (0, 1):
        for k, variant in enumerate(rows[:4]):
            publish(variant, seed, 20 + k + 2 * seed * (k > 0) + 10 * seed, box_ap=40 + k)
    files.write_bytes(runs.Run(rows[2], "smoke", 1).published, b'{"failed": "iteration 7: loss_boundary not finite"}')
    return rows


def test_a_table_is_means_and_differences_paired_by_seed_beside_the_papers(records):
    frame = TABLE.frame("smoke", [0, 1])
    assert list(frame["variant"]) == records and list(frame["seeds"]) == [2, 2, 1, 2, 0]
    first, second, third, _, last = (row for _, row in frame.iterrows())
    assert (first["AP"], first["AP std"]) == (25.0, pytest.approx(50**0.5))
    # 21 - 20 and 33 - 30
    assert (second["dAP"], second["dAP std"]) == (2.0, pytest.approx(2**0.5))
    # One seed is left, and is compared with the same seed of the first row.
    assert third["dAP"] == 2.0 and third["APb"] == 42.0
    assert (last["paper AP"], last["paper dAP"]) == (34.7, 1.5)
    assert third["note"] == "seed 1: failed, iteration 7: loss_boundary not finite"
    assert last["note"] == "seed 0: not run; seed 1: not run"


def shown(seeds, table=TABLE):
    """The cells of each line of the table that is written."""
    text = table.to_markdown("smoke", table.frames("smoke", seeds))
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"], text


def test_the_text_shows_both_and_says_what_is_missing(records):
    lines, text = shown([0, 1])
    assert lines[0] == ["", "", "AP", "AP75", "ΔAP", "ΔAP75"]
    assert lines[2] == ["Mask R-CNN", "here", "25.0 ± 7.1", "31.0 ± 0.0", "", ""]
    assert lines[3] == ["", "paper", "33.2", "34.9", "", ""]
    assert lines[4][:5] == ["+ boundary", "here", "27.0 ± 8.5", "31.0 ± 0.0", "+2.0"]
    assert lines[5] == ["", "paper", "33.9", "35.8", "+0.7", "+0.9"]
    assert "- + fusions, seed 1: failed, iteration 7: loss_boundary not finite" in text
    assert lines[-2][:3] == ["+ RoI strategy", "here", "–"] and "seed 0: not run; seed 1: not run" in text


def test_what_is_published_has_the_seeds_that_were_asked_for(records):
    with runs.as_shipped(runs.results()):
        for seeds, words in {(0,): "shipped: seed 0;", (0, 1): "shipped: seeds 0, 1;"}.items():
            (path,) = TABLE.write("smoke", list(seeds))
            assert words in path.read_text()


def test_what_was_made_here_stands_above_what_is_shipped_and_is_never_mixed_with_it(records, output):
    before = contents(made := runs.results("smoke") / "runs")
    with runs.as_shipped(runs.shipped()):
        for variant in records[:2]:
            publish(variant, 0, 12.5 if variant == "mask_rcnn" else 13.0)
        TABLE.write("smoke", [0])
    shipped = contents(runs.shipped())
    assert contents(made) == before
    lines, text = shown([0, 1])
    assert [line[1] for line in lines[2:8]] == ["here", "shipped", "paper"] * 2
    assert [line[0] for line in lines[2:8]] == ["Mask R-CNN", "", "", "+ boundary", "", ""]
    assert [line[2] for line in lines[2:8]] == ["25.0 ± 7.1", "12.5", "33.2", "27.0 ± 8.5", "13.0", "33.9"]
    assert lines[6][4] == "+0.5" and "here: seeds 0, 1;" in text and "shipped: seed 0;" in text
    (path,) = TABLE.write("smoke", [0, 1])
    assert path == output / "results/local/smoke/table3.md"
    frame = pd.read_csv(path.with_suffix(".csv"))
    assert frame.loc[1, ["AP", "shipped AP", "shipped dAP"]].tolist() == [27.0, 13.0, 0.5]
    assert contents(runs.shipped()) == shipped


def test_masks_in_true_boxes_and_a_second_test_set_have_tables_of_their_own(output):
    def values(iou):
        return {"IoU": iou, "IoU75": 50.0, "F": 70.0}

    for k, variant in enumerate(TABLE.variants[:2]):
        publish(variant, 0, 20.0 + k, further={"true_boxes": values(60.0 + 2 * k)})
    lines, text = shown([0])
    assert ["", "", "IoU", "> 0.75", "F", "ΔIoU", "ΔF"] in lines and "second test set" not in text
    assert ["+ boundary", "here", "62.0", "50.0", "70.0", "+2.0", "+0.0"] in lines
    for k, variant in enumerate(TABLE.variants[:2]):
        second = {"true_boxes_second": values(50.0 + 5 * k), "segm_second": {**METRIC, "AP": 10.0 + k}}
        publish(variant, 0, 20.0 + k, further=second)
    lines, text = shown([0])
    assert ["+ boundary", "here", "11.0", "55.0", "70.0", "+1.0", "+5.0"] in lines
    assert TABLE.frame("smoke", [0]).loc[1, "dIoU_second"] == 5.0


def test_the_same_detector_stands_beside_and_is_said_to_be_none_where_it_is_not(output):
    for k, variant in enumerate(TABLE.variants[:2]):
        publish(variant, 0, 20.0 + 9 * k)
        publish(variant, 0, 18.0 + k, profile="smoke-samedetector", detector="0a")
    lines, text = shown([0])
    assert lines[5][:3] == ["+ boundary", "here", "29.0"]
    assert lines[6] == ["", "same detector", "19.0", "31.0", "+1.0", "+0.0"]
    assert "different detectors" not in text
    publish(TABLE.variants[1], 0, 19.0, profile="smoke-samedetector", detector="1b")
    assert "**Rows with seed 0 have different detectors" in shown([0])[1]
    own = TABLE.frames("smoke-samedetector", [0])
    assert list(own) == ["here"] and "No mask head's gradient" in tables.setting("smoke-samedetector")


def test_a_table_without_a_record_is_not_written(records, output):
    (path,) = TABLE.write("smoke", [0])
    before = path.read_bytes()
    complaint(lambda: TABLE.write("smoke", [5]), "Table 3", "smoke", "make reproduce-table-3")
    assert path.read_bytes() == before and items.made("smoke") == {"3": [0]}


@pytest.mark.parametrize("path", sorted((runs.REPOSITORY / "results").glob("*/*.md")), ids=str)
def test_no_shipped_table_is_wider_than_100_characters(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    assert path.name == "README.md" or lines and max(map(len, lines)) <= tables.WIDTH


def test_rows_that_have_seen_different_data_are_called_out(output):
    rows = TABLE.variants
    publish(rows[0], 0, 20.0)
    _, text = shown([0])
    assert "here: seed 0; made on a laptop, at commit 0123abc, from data a data set." in " ".join(text.split())
    assert "different data" not in text
    publish(rows[1], 0, 21.0, data="another")
    assert "The rows have seen different data" in shown([0])[1]


def test_the_figure_draws_our_differences_and_the_papers(records):
    figure = gains.chart(TABLE.frames("smoke", [0, 1]), TABLE.rows, "Table 3", TABLE.metrics)
    assert [panel.get_title() for panel in figure.axes] == ["AP", "AP50", "AP75", "box AP"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["+ boundary", "+ fusions", "+ Dice-BCE", "+ RoI strategy"]
    lines = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].lines}
    assert lines["the paper"] == [0.7, 1.0, 1.2, 1.5] and "here, 1 or 2 seeds" in lines
    assert len({panel.get_xlim() for panel in figure.axes}) == 1


def test_the_figure_of_table_8_has_the_gain_over_the_time(records):
    rows, ratios = tables.named("8").rows, {"mask_rcnn": 1.0, "mask_rcnn_larger_head": 1.25, "bmask_rcnn": 1.5}
    costs = {"here": {"systems": {variant: {"ratio": ratio} for variant, ratio in ratios.items()}}}
    figure = gains.against_time(tables.named("8").frames("smoke", [0, 1]), costs, rows, "Table 8")
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert lines["here"][0].tolist() == [1, 0] and lines["here"][:, 0].tolist() == [1, 1.25, 1.5]
    assert lines["the paper"][2] == pytest.approx([63.7 / 59, 1.5])


def test_the_figure_has_no_panel_of_what_no_record_has(records, monkeypatch):
    drawn, chart = [], gains.chart
    monkeypatch.setattr(gains, "chart", lambda *given: drawn.append(given[-1]) or chart(*given))
    TABLE.write("smoke", [0, 1])
    assert drawn == [["AP", "AP50", "AP75", "APb"]]  # without the IoU in true boxes


def test_writing_again_leaves_the_same_files_alone(records, output):
    (path,) = TABLE.write("smoke", [0, 1])
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.glob("table3*")}
    assert set(before) == {"table3.md", "table3.csv", "table3.png"}
    TABLE.write("smoke", [0, 1])
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.glob("table3*")} == before


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: report.named("figure-77"), "no figure '77': did you mean '7b'"),
        (lambda: report.named("33"), "no table '33': did you mean '3'"),
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
        (["--table", "3", "--profile", "cpu-batch0"], "did you mean 'cpu';"),
        (["--variant", "bmask_rcn"], "did you mean 'bmask_rcnn'"),
        (
            ["--table", "3", "--profile", "nuclei", "--data", "/does/not/exist"],
            "there is no data folder /does/not/exist",
        ),
        (["--table", "3", "--profile", "nuclei", "--data", "{}"], "instances_train.json"),
    ],
)
def test_wrong_input_on_the_command_line_is_one_sentence_and_status_2(output, capsys, arguments, message):
    empty = output / "empty"
    empty.mkdir()
    assert main(["run", *(a.format(empty) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("bmask: ") and message in line and out == ""
    assert list(output.iterdir()) == [empty]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            "table 9 --profile cpu",
            "the data of profile cpu say nothing of Table 9; take one of these: paper_cityscapes",
        ),
        ("figure precise --profile cpu", "say nothing of Coarse annotations"),
        ("curves bmask_rcnn --out curves", "--out curves is no .png or .svg"),
        ("report --out .", "is there already and is no report"),
        ("prepare-nuclei --out .", "is there already and is no prepared data set"),
    ],
)
def test_nothing_is_written_where_a_command_makes_no_sense(output, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(output)
    (output / "thesis.tex").touch()
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


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


def test_a_number_known_to_ten_points_or_worse_has_a_spread_without_tenths():
    def written(mean, low, high):
        return tables._difference(tables.pd.Series({"dAP": mean, "dAP low": low, "dAP high": high}), "AP")

    assert written(8.94, 6.56, 11.33) == "+8.9 [6.6, 11.3]" and written(-14.04, -45.71, 17.82) == "-14.0 [-46, 18]"
    assert tables._number(33.6, 0.54) == "33.6 ± 0.5" and tables._number(19.6, 12.4) == "19.6 ± 12"
    assert written(2.0, float("nan"), float("nan")) == "+2.0"


def by_variant(seeds, number="3"):
    return tables.named(number).frame("smoke", seeds).set_index("variant").loc


def test_intervals_are_paired_over_images_and_know_how_few_the_seeds_are(resampled):
    """What all models find hard about a resample, here 5 points, cancels; the two seeds, 1 and 3, do not: one degree of
    freedom, so 12.7 standard errors of 1."""
    low, high = by_variant([0, 1])["bmask_rcnn", ["dAP low", "dAP high"]]
    assert (low, high) == pytest.approx((2 - 12.7, 2 + 12.7), abs=0.1)
    of_one = by_variant([0])
    assert list(of_one["bmask_rcnn", ["dAP low", "dAP high"]]) == pytest.approx([0.804, 1.196], abs=0.03)  # 1.96 x 0.1
    assert pd.isna(of_one["mask_rcnn", "dAP low"]) and pd.isna(of_one["bmask_rcnn", "dAPb low"])


@pytest.mark.parametrize("made", [{"data": "another", "resamples": np.zeros(1000)}, {}], ids=["other data", "none"])
def test_intervals_of_records_from_other_data_or_without_resamples_are_not_made_up(resampled, made):
    publish("bmask_rcnn", 1, 23.0, **made)
    assert pd.isna(by_variant([0, 1])["bmask_rcnn", "dAP low"])


@pytest.mark.parametrize("table", tables.known().values(), ids=tables.known())
def test_every_row_of_the_papers_tables_is_there(table):
    """The paper's rows in its order, each run or marked as published; and a notebook of its own."""
    notebook = config.REPOSITORY / "notebooks" / table.notebook
    paper = pd.read_csv(config.EXPERIMENTS / "paper" / f"{notebook.stem}.csv")
    assert notebook.exists() and len(paper) == sum(bool(row.paper) for row in table.rows)
    assert {row.baseline for row in table.rows} <= {*table.variants} <= {*config.available("variant")}
    assert all(set(row.words) == set(table.rows[0].words) for row in table.rows)
    assert set(table.metrics) <= set(compare.METRICS)


def test_every_table_and_figure_has_a_make_target():
    text = subprocess.run(["make", "help"], cwd=runs.REPOSITORY, capture_output=True, text=True).stdout
    for name in [*(item.target for item in report.wanted(["all"], "cpu")), "all", "report"]:
        assert f"make {'' if name == 'report' else 'reproduce-'}{name} " in text


def test_every_variant_is_in_a_table_or_figure():
    shown = {run.variant for item in report.wanted(["all"], "cpu") for run in item.runs("cpu", [0])}
    assert shown == set(config.available("variant"))


def test_published_rows_have_the_papers_numbers_alone(output):
    publish("mask_rcnn_800_r101", 0, 20.0)
    lines, text = shown([0], tables.named("2"))
    cells, said = [line[:3] for line in lines], " ".join(text.split())
    assert ["MNC, R101", "paper", "24.6"] in cells
    at = cells.index(["Mask R-CNN*, R101", "here", "20.0"])
    assert cells[at + 1] == ["", "paper", "36.2"]
    assert "evaluation server" in said and "EfficientNet-Lite2-FPN, 85 px: Mask R-CNN*, R101; BMask R-CNN, R101" in said


def test_rows_are_compared_with_the_baseline_of_the_same_backbone(output):
    publish("mask_rcnn", 0, 10.0)
    publish("mask_rcnn_800_r101", 0, 20.0)
    publish("bmask_rcnn_800_r101", 0, 21.5)
    assert list(by_variant([0], "1")["bmask_rcnn_800_r101", ["dAP", "paper dAP"]]) == [1.5, 1.7]


def test_rows_of_ours_alone_have_no_number_of_the_papers(output):
    publish("bmask_rcnn_no_fusion", 0, 10.0)
    publish("bmask_rcnn_two_fusion_blocks", 0, 12.0)
    frame = tables.named("6").frame("smoke", [0])
    assert frame.iloc[4]["dAP"] == 2.0 and pd.isna(frame.iloc[4]["paper AP"])
    assert shown([0], tables.named("6"))[0][-1][:3] == ["both, twice", "here", "12.0"]


def test_the_linear_scaling_rule_says_so():
    text = tables.setting("paper-batch8")
    assert "8 images a batch, 180000 iterations, learning rate 0.01" in text
    assert "lowered after 120000 and 160000 (by the linear scaling rule)" in text


def test_the_plan_says_how_many_runs_and_how_long_from_the_speed_so_far(output, monkeypatch):
    options = runs.Options(device="cpu", jobs=2)
    wanted = list(dict.fromkeys(TABLE.runs("smoke", [0]) + tables.named("sobel").runs("smoke", [0])))
    assert reproduce.plan(wanted, options) == "8 runs, 8 of them to be made; none has been timed on this machine"
    monkeypatch.setattr(runs, "provenance", lambda _: {"device_name": "a laptop"})
    publish("mask_rcnn", 0, 20.0)
    # 2 s x 6 iterations x 7 runs (refined masks need no training) on 2 processes
    assert "8 of them to be made: about 1 minutes of training" in reproduce.plan(wanted, options)


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
