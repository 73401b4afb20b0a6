"""The command line: what it shows and what it refuses."""

import pytest

from bmask.study import runs
from bmask.study.cli import app, main


def test_help_groups_the_commands_and_gives_each_one_line(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    _, description, *rest = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert description == "A reproducible study of BMask R-CNN."
    assert [line.split("  ")[0] for line in rest] == [
        *("Reproduce", "reproduce", "run", "table", "figure", "curves", "predictions", "report"),
        *("Your data", "check-data", "train", "predict", "export"),
        *("Weights", "evaluate", "submission"),
        *("Servers", "work"),
        *("Maintenance", "verify", "prepare-nuclei", "prepare-coco-person", "prepare-pennfudan"),
    ]


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        ("", "no command is given: `python -m bmask --help` lists them"),
        ("rnu", "there is no command 'rnu': did you mean 'run'; known are reproduce, "),
        ("run --tabel 3", "there is no option '--tabel': did you mean '--table'; known are --table, "),
        ("run --table 3 --variant bmask_rcnn", "run takes a --table or a --variant, one of them"),
        ("table 3 4", "'4' is one too many: see `python -m bmask table --help`"),
        ("reproduce", "ITEMS is missing: see `python -m bmask reproduce --help`"),
        ("reproduce 3 --slurm", "--slurm needs a value: "),
        ("train --train images --val images val.json", "--train needs two values: "),
        ("train --train images train.json", "--val is missing: "),
        ("work bmask_rcnn --seed 1.5", "--seed is '1.5', not a whole number: "),
        ("predict a.png --weights b --out c --min-score half", "--min-score is 'half', not a number: "),
        ("submission kaggle", "SERVER is 'kaggle', not coco or cityscapes: "),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_sentence(arguments, sentence, capsys):
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"bmask: {sentence}") and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize("slurm", ["--slurm mem=3G time=9", "--slurm=mem=3G --reuse --slurm time=9"])
def test_what_jobs_are_submitted_with_follows_one_flag_or_several(slurm):
    _, given, _ = app.parse_args(["reproduce", "3", "sobel", "--seeds", "0,1", *slurm.split()])
    assert given.arguments["items"] == ("3", "sobel") and given.arguments["how"].slurm == ("mem=3G", "time=9")


def test_verify_says_where_it_looked_for_shipped_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "results")
    assert main(["verify"]) == 2
    said = f"there are no shipped results in {tmp_path}/results; `git checkout results` brings them back"
    assert capsys.readouterr().err == f"bmask: {said}\n"
