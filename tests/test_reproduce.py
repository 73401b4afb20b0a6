"""The commands of the README, at ``smoke``: every table, figure and notebook, and the report of them."""

import json
import shutil
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser

import nbformat
import pytest
from conftest import PATIENCE
from IPython.core.interactiveshell import InteractiveShell

from bmask.errors import InputError, Stopped
from bmask.study import config, cost, figures, findings, items, launch, report, reproduce, runs, tables
from bmask.study.figures.boundary_losses import explore
from bmask.study.files import write_bytes
from bmask.study.launch import work


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every run at ``smoke``, made in this process, which is quicker than one for each."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUT", folder)
        patch.setattr(runs, "SHIPPED", folder / "shipped")
        for variant in config.available("variant"):
            assert work.work(runs.Run(variant, "smoke", 0), runs.Options(device="cpu")) == 0
    return folder


def test_table_3_at_smoke_through_papermill(tmp_path, bmask, monkeypatch):
    """The notebook, by hand, as the README has it, where nothing is shipped; then nothing is left to be done."""
    monkeypatch.setenv("BMASK_OUTPUT", str(tmp_path))
    notebook = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "notebooks/table3_components.ipynb", str(notebook)]
    command += ["-p", "profile", "smoke", "-p", "seeds", "0", "-p", "device", "cpu", "--no-progress-bar"]
    subprocess.run(command, check=True, timeout=PATIENCE)
    results = tmp_path / "results/local/smoke"
    assert {p.name for p in results.glob("table3.*")} == {"table3.csv", "table3.md", "table3.png"}
    assert len(list((results / "runs").glob("*.json"))) == 5
    text = (results / "table3.md").read_text()
    assert "not run" not in text and "failed" not in text and "| paper | 34.7 " in text
    assert_shown(notebook)
    process = bmask("run", "--table", "3", "--profile", "smoke", "--device", "cpu")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "runs done" not in err


def assert_shown(notebook):
    outputs = [o for cell in nbformat.read(notebook, 4).cells for o in cell.get("outputs", [])]
    assert any("text/markdown" in o.get("data", {}) for o in outputs)
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_everything_at_smoke_with_one_command(everything, bmask):
    """What `make reproduce-all` does, but for the training: every table, figure and notebook, and one page."""
    process = bmask("reproduce", "all", "--profile", "smoke", "--device", "cpu", output=everything)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.startswith(f"{len(config.available('variant'))} runs, 0 of them to be made\n")
    results = everything / "results/local/smoke"
    page = (results / "README.md").read_text()
    for item in report.wanted(["all"], "smoke"):
        written = item.written(results)
        assert written
        for path in written:
            assert path.with_suffix(".png").stat().st_size > 4_000
            drawn = ("curves", "figure1", "figure5", "figure6_numbers", "figure6_thickness", "figure7a")
            without_pictures = path.stem in drawn
            assert path.with_suffix(".svg").exists() == without_pictures
            text = path.read_text()
            assert "not run" not in text and "failed" not in text and text.splitlines()[-1] in page
        assert_shown(results / item.notebook)
        assert f"## {item.heading_in('smoke')}\n" in page and f"({item.notebook})" in page
    measured = json.loads((results / "cost.json").read_text())["systems"]
    assert tuple(measured) == cost.SYSTEMS == tuple(tables.named("8").variants)
    assert measured["mask_rcnn"]["ratio"] == 1 and all(m["peak_memory_mib"] > 100 for m in measured.values())
    assert "| 0.95   |" in (results / "table8.md").read_text()
    for path in results.glob("*.ipynb"):
        assert str(everything) not in path.read_text() and str(runs.REPOSITORY) not in path.read_text()
        shown = [o["text"] for c in nbformat.read(path, 4).cells for o in c.get("outputs", []) if "text" in o]
        assert not shown, f"{path.name} prints {shown}"
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*")}
    process = bmask("reproduce", "all", "--profile", "smoke", "--device", "cpu", output=everything)
    assert process.wait(timeout=PATIENCE) == 0
    assert {p: p.stat().st_mtime_ns for p in results.rglob("*")} == before


def test_refined_masks_take_the_weights_of_bmask_rcnn(everything, monkeypatch):
    monkeypatch.setattr(runs, "OUTPUT", everything)
    refined, bmask = runs.Run("bmask_rcnn_refined", "smoke", 0), runs.Run("bmask_rcnn", "smoke", 0)
    assert refined.trained_as == bmask and not (refined.folder / "checkpoint.pth").exists()
    assert refined.record()["losses"] == bmask.record()["losses"]
    assert refined.record()["metrics"]["bbox"] == bmask.record()["metrics"]["bbox"]


class Page(HTMLParser):
    """What a page links to and shows, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.references, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        self.references += [(tag, attributes[key]) for key in ("href", "src") if attributes.get(key)]


@pytest.fixture(scope="module")
def site(everything):
    """The report of everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUT", everything)
        patch.setattr(runs, "SHIPPED", everything / "shipped")
        reproduce.make(report.wanted(["all"], "smoke"), "smoke", [0], runs.Options(device="cpu"))
        # As if it were shipped: one profile of each kind.
        shutil.copytree(runs.results(), everything / "shipped", dirs_exist_ok=True)
        return report.build(everything / "report").parent


def test_every_link_of_the_report_resolves_and_nothing_comes_from_the_network(site):
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    assert len(pages) > len(report.wanted(["all"], "smoke"))
    for path, page in pages.items():
        for tag, reference in page.references:
            link = urllib.parse.urlsplit(reference)
            if link.scheme in ("http", "https"):
                assert tag == "a", f"{path.name} loads {reference}"
            elif link.scheme != "data":
                target = (path.parent / urllib.parse.unquote(link.path)).resolve() if link.path else path
                assert target.exists(), f"{path.name}: {reference}"
                assert not link.fragment or link.fragment in pages[target].anchors, f"{path.name}: {reference}"


@pytest.mark.parametrize("folder", ["smoke", "local/smoke"])
def test_a_figure_of_the_report_leads_to_notebook_configuration_record_and_commit(site, folder):
    page = Page(site / folder / "figure6.html")
    links = [reference for tag, reference in page.references if tag == "a"]
    run = runs.Run("bmask_rcnn_dice", "smoke", 0)
    for end in (f"{run.name}.json", f"{run.name}.yaml"):
        assert [link for link in links if link.endswith(end)]
    assert [link for link in links if "commits.html#commit-" in link]
    assert "notebooks/figure6_boundary_losses.html" in links


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium")
@pytest.mark.parametrize(
    "page", ["index", "smoke/README", "local/smoke/table3", "smoke/figure6", "smoke/notebooks/table3_components"]
)
def test_the_report_opens_from_the_disk_without_a_console_message(site, tmp_path, page):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,844", "--dump-dom"]
    opened = subprocess.run([*command, f"file://{site / page}.html"], capture_output=True, text=True, timeout=PATIENCE)
    assert "CONSOLE" not in opened.stderr, opened.stderr
    assert "</html>" in opened.stdout and "BMask R-CNN" in opened.stdout


def test_the_notebooks_have_parameters_and_no_outputs_in_git():
    for path in (config.EXPERIMENTS.parent / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        assert [c for c in cells if "parameters" in c.metadata.get("tags", [])], path
        assert not [c for c in cells if c.get("outputs")], path


def test_results_are_what_their_records_give_and_any_change_is_found(site, everything, monkeypatch):
    monkeypatch.setattr(runs, "SHIPPED", everything / "shipped")
    with runs.as_shipped(everything / "shipped"):
        for item, seeds in report.made("smoke").items():
            item.write("smoke", seeds)
        report.write_page("smoke")
        findings.write()
    assert report.differences() == []
    table = everything / "shipped/smoke/table3.csv"
    before = table.read_bytes()
    table.write_bytes(before.replace(b"33.2", b"33.3"))
    (everything / "shipped/smoke/stray.md").write_text("by hand")
    try:
        assert report.differences() == [
            "smoke/stray.md is not made from any record",
            "smoke/table3.csv is not what the records give",
        ]
    finally:
        table.write_bytes(before)
        (everything / "shipped/smoke/stray.md").unlink()


def test_runs_made_here_are_compared_with_the_shipped_ones_in_a_line(site, everything, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHIPPED", everything / "shipped")
    monkeypatch.setattr(runs, "OUTPUT", tmp_path)
    assert report.against_shipped() == []
    shutil.copytree(everything / "results", tmp_path / "results")
    number = len(config.available("variant"))
    same = f"smoke: of {number} runs made here that are shipped as well {number} have the same digits"
    assert report.against_shipped() == [same]
    run = runs.Run("mask_rcnn", "smoke", 0)
    record = run.record()
    record["metrics"]["segm"]["AP"] += 1.5
    run.published.write_bytes(runs.as_json(record))
    (line,) = report.against_shipped()
    assert line == same.replace(f"well {number}", f"well {number - 1}") + (
        f"; the others differ by up to 1.5 AP ({run.name})"
    )
    run.published.write_bytes(runs.as_json({**record, "metrics": {}, "failed": "iteration 1: no"}))
    assert report.against_shipped()[0].endswith(f"; of {run.name} one has failed")


SHIPPED = {
    report.named(name).notebook
    for profile in runs.profiles(runs.shipped())
    for name in items.made(profile, runs.shipped(profile))
}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_notebook_that_is_opened_and_run_shows_what_is_shipped_and_trains_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "OUTPUT", tmp_path)
    cells = [
        c.source
        for c in nbformat.read(config.EXPERIMENTS.parent / "notebooks" / name, 4).cells
        if c.cell_type == "code"
    ]
    names = {}
    for source in cells[:-1] if "explore" in cells[-1] else cells:
        exec(source, names)
    assert names["train"] is False and names["shown"]
    assert all(runs.shipped(names["profile"]) in path.parents and path.exists() for path in names["shown"])
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_what_was_made_here_where_something_was(site, everything, monkeypatch):
    monkeypatch.setattr(runs, "SHIPPED", everything / "shipped")
    monkeypatch.setattr(runs, "OUTPUT", everything)
    (shown,) = reproduce.show("3", "smoke", "5", False)
    assert shown == everything / "results/local/smoke/table3.md"
    monkeypatch.setattr(runs, "OUTPUT", everything / "empty")
    assert reproduce.show("3", "smoke", "5", False) == [everything / "shipped/smoke/table3.md"]


def test_figure_6_is_looked_into_as_it_is_shipped_when_its_runs_were_made_here_for_a_table(
    site, everything, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "SHIPPED", everything / "shipped")
    monkeypatch.setattr(runs, "OUTPUT", tmp_path)
    run = runs.Run("bmask_rcnn", "smoke", 0)
    made = runs.as_json({**run.record(), "made": "here"})
    write_bytes(run.published, made)
    top, *_ = explore(figures.named("6"), "smoke").children
    assert top.children[0].children[0].max == 3  # of four images
    assert run.published.read_bytes() == made and not runs.PUBLISH


def test_a_figure_whose_run_has_failed_leaves_nothing(output, monkeypatch):
    monkeypatch.setattr(reproduce.launch, "ensure", lambda runs, options: False)
    assert not reproduce.reproduce([report.named("figure-2")], "smoke", [0], runs.Options())
    assert not list(output.rglob("*.*"))


@pytest.mark.parametrize("raised", [InputError("wrong; mend it"), KeyboardInterrupt()], ids=repr)
def test_a_notebook_ends_with_one_sentence_when_it_is_stopped_or_its_input_is_wrong(output, monkeypatch, raised):
    def fail(*_):
        raise raised

    monkeypatch.setattr(launch, "ensure", fail)
    shell, said = InteractiveShell(), []
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, error, lines: said.extend(lines))
    ran = shell.run_cell('from bmask.study.reproduce import show\nshow("3", "smoke", "0", True)')
    assert not ran.success and len(said) == 1 and "\n" not in said[0]
    assert said[0] == ("bmask: wrong; mend it" if isinstance(raised, InputError) else f"bmask: {Stopped()}")


@pytest.mark.parametrize(
    "name,parameters,shown",
    [
        ("boundary_and_losses", ["iterations", "4"], "image/png"),
        ("index", ["profile", "smoke"], "text/html"),
        ("own_data", ["device", "cpu"], "image/png"),
        ("predict", ["profile", "smoke", "-p", "min_score", "0", "-p", "device", "cpu"], "image/png"),
        ("released_weights", ["device", "cpu"], "text/html"),
        ("statistics", ["trials", "20", "-p", "draws", "50"], "image/png"),
    ],
)
def test_the_other_notebooks_run_as_they_are(everything, tmp_path, monkeypatch, name, parameters, shown):
    monkeypatch.setenv("BMASK_OUTPUT", str(everything))
    command = [sys.executable, "-m", "papermill", f"notebooks/{name}.ipynb", str(tmp_path / "out.ipynb")]
    subprocess.run([*command, "-p", *parameters, "--no-progress-bar"], check=True, timeout=PATIENCE)
    outputs = [o for c in nbformat.read(tmp_path / "out.ipynb", 4).cells for o in c.get("outputs", [])]
    assert shown in {kind for o in outputs for kind in o.get("data", {})}
