import json
import subprocess
import sys

import nbformat
import pytest

from bmask import config, figures, files, runs, tables
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


def publish(variant, seed, mask_ap, box_ap=40.0, data="a data set"):
    run = runs.Run(variant, "smoke", seed)
    metrics = {"segm": {**METRIC, "AP": mask_ap}, "bbox": {**METRIC, "AP": box_ap}, "boundary": METRIC}
    made = {"device_name": "a laptop", "git_commit": "0123abc", "data_fingerprint": data}
    files.write_bytes(run.published, json.dumps({"metrics": metrics, **made}).encode())


@pytest.fixture
def records(output):
    """Two seeds of each row but one; the third row has failed for seed 1."""
    rows = tables.spec("3")["rows"]
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
    rows = tables.spec("3")["rows"]
    publish(rows[0], 0, 20.0)
    text = tables.to_markdown("3", "smoke", tables.table("3", "smoke", [0]))
    assert (
        "Made on a laptop, at commit 0123abc, from data a data set." in text and "different data" not in text
    )
    publish(rows[1], 0, 21.0, data="another")
    assert "different data" in tables.to_markdown("3", "smoke", tables.table("3", "smoke", [0]))


def test_the_figure_draws_our_differences_and_the_papers(records):
    frame = tables.table("3", "smoke", [0, 1])
    figure = figures.component_gains(frame, tables.spec("3"))
    assert [panel.get_title() for panel in figure.axes] == ["AP", "AP50", "AP75", "APb"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[0] == "Mask R-CNN" and labels[4] == "boundary + fusions + bce dice + roi strategy"
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
        (["--variant", "bmask_rcn"], "did you mean 'bmask_rcnn'"),
        (
            ["--table", "3", "--profile", "nuclei", "--data", "/does/not/exist"],
            "there is no data folder /does/not/exist",
        ),
        (["--table", "3", "--profile", "nuclei", "--data", "{}"], "instances_train.json"),
    ],
)
def test_wrong_input_on_the_command_line_is_one_sentence_and_status_2(tmp_path, bmask, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    process = bmask("run", *(a.format(empty) for a in arguments), output=tmp_path / "output")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    (line,) = [x for x in err.splitlines() if x.startswith("bmask: ")]
    assert message in line and "Traceback" not in err and out == ""
    assert not (tmp_path / "output").exists()


def test_table_3_at_smoke_through_papermill(tmp_path, bmask, monkeypatch):
    """The notebook, by hand, as the README has it; then the command line finds nothing left to do."""
    monkeypatch.setenv("BMASK_OUTPUT", str(tmp_path))
    notebook = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "notebooks/table3_components.ipynb", str(notebook)]
    command += ["-p", "profile", "smoke", "-p", "seeds", "0", "-p", "device", "cpu", "--no-progress-bar"]
    subprocess.run(command, check=True, timeout=300)
    results = tmp_path / "results" / "smoke"
    assert {p.name for p in results.glob("table3.*")} == {"table3.csv", "table3.md", "table3.png"}
    assert len(list((results / "runs").glob("*.json"))) == 5
    text = (results / "table3.md").read_text()
    assert "not run" not in text and "failed" not in text and "(34.7)" in text
    outputs = [o for cell in nbformat.read(notebook, 4).cells for o in cell.get("outputs", [])]
    assert any("text/markdown" in o.get("data", {}) for o in outputs)
    assert any("image/png" in o.get("data", {}) for o in outputs)
    process = bmask("run", "--table", "3", "--profile", "smoke", "--device", "cpu")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "runs done" not in err


def test_the_notebooks_have_parameters_and_no_outputs_in_git():
    for path in (config.EXPERIMENTS.parent / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        assert [c for c in cells if "parameters" in c.metadata.get("tags", [])], path
        assert not [c for c in cells if c.get("outputs")], path
