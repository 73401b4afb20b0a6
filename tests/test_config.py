"""Profiles, variants, seeds and names, as a user may write them."""

import shutil
import subprocess

import pytest
from conftest import complaint

from bmask.config import from_text
from bmask.errors import InputError
from bmask.study import config
from bmask.study.cli import main

SMOKE = f"_BASE_: {config.EXPERIMENTS}/profiles/smoke.yaml"


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Write a profile of one's own; what it gives resolves it."""
    monkeypatch.setattr(config, "OUTPUT", tmp_path)
    (tmp_path / "profiles").mkdir()

    def write(text, name="mine"):
        text = text if isinstance(text, bytes) else text.replace("SMOKE", SMOKE).encode()
        (tmp_path / "profiles" / f"{name}.yaml").write_bytes(text)
        return lambda: config.resolve("bmask_rcnn", name)

    return write


def test_a_profile_of_your_own_is_resolved(profile):
    assert profile("SMOKE\nSOLVER: {MAX_ITER: 7}\n")().SOLVER.MAX_ITER == 7


@pytest.mark.parametrize(
    "variant,head", [("bmask_rcnn_two_fusion_blocks", "FusionBlocksHead"), ("bmask_rcnn_refined", "RefinedMasksHead")]
)
def test_the_configuration_of_a_record_of_before_has_the_head_that_was_a_switch(variant, head):
    cfg = config.resolve(variant, "smoke")
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == head
    before = cfg.dump().replace(head, "BoundaryPreservingHead")  # whole, as records had it
    models = [config._flat(x.MODEL) for x in (from_text(before), from_text(config.to_text(cfg)), cfg)]
    assert models[0] == models[1] == models[2]


@pytest.mark.parametrize(
    "text",
    [
        "SMOKE\nSEED: !!python/object/apply:os.mkdir [{0}/ran]",
        'SMOKE\nSOLVER: {{MAX_ITER: !!python/object/apply:eval [\'__import__("os").mkdir("{0}/ran")\']}}',
    ],
)
def test_no_code_is_run_by_loading_a_profile_or_what_it_builds_on(profile, tmp_path, text):
    load = profile(text.format(tmp_path))
    complaint(load, "mine.yaml", "could not determine a constructor")
    complaint(profile("_BASE_: mine.yaml\n", "next"), "next.yaml", "mine.yaml")
    complaint(lambda: from_text(text.removeprefix("SMOKE\n").format(tmp_path), "record.json"), "record.json")
    assert not (tmp_path / "ran").exists()


def test_the_name_of_a_profile_says_how_it_is_changed():
    before, after = (config.resolve("mask_rcnn", f"cpu{more}") for more in ("", "-heldout-1.5x-lr0.002-batch8"))
    assert (before.STUDY.HELD_OUT, after.STUDY.HELD_OUT) == (False, True)
    rate, batch, length = 0.002, 8, 1.5 * before.SOLVER.MAX_ITER
    factor = batch / before.SOLVER.IMS_PER_BATCH
    assert after.SOLVER.BASE_LR == pytest.approx(rate * factor) and after.SOLVER.IMS_PER_BATCH == batch
    assert after.SOLVER.MAX_ITER == round(length / factor)
    for name in ("cpu-heldout-batch8", "cpu-heldout-samedetector-batch8"):
        assert config.same_detector(name) == "cpu-heldout-samedetector-batch8"
    assert config.same_detector("cpu") == config.same_detector("cpu-samedetector") == "cpu-samedetector"


@pytest.mark.parametrize(
    "text,what",
    [
        ("", "no keys"),
        ("- a\n", "no keys"),
        ("words", "no keys"),
        (b"\x00\x01", "#x0000"),
        ("SMOKE\nSOLVER: [1,\n b: }", "line 3"),
        ("SMOKE\nSOLVER: {MAX_ITER: abc}", "SOLVER.MAX_ITER"),
        ("SMOKE\nSOLVER: {MAX_ITER: }", "SOLVER.MAX_ITER is None"),
        ("SMOKE\nSOLVER: {STEPS: [a]}", "SOLVER.STEPS is ['a']"),
        ("SMOKE\nINPUT: {MIN_SIZE_TRAIN: [null]}", "INPUT.MIN_SIZE_TRAIN"),
        ("SMOKE\nMODEL: {FOO: 1}", "MODEL.FOO"),
        ("SMOKE\nMODEL: 5", "MODEL"),
        ("SMOKE\nMODEL:", "MODEL"),
        ("_BASE_: mine.yaml", "recursion"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml"),
        ("_BASE_: 5", "int"),
        ("SMOKE\nSOLVER: {STEPS: &a [*a]}", "ircular"),
    ],
)
def test_a_profile_that_does_not_fit_is_one_sentence_that_names_it(profile, text, what):
    complaint(profile(text), "profiles/mine.yaml", what)


@pytest.mark.parametrize("text", ["SMOKE\nSOLVER: {MAX_ITER: 0}", "SMOKE\nSOLVER: {IMS_PER_BATCH: -1}"])
def test_a_training_has_an_iteration_and_an_image(profile, text):
    complaint(profile(text), "the profile mine has", "give it 1 or more of both")
    with pytest.raises(InputError, match="smoke-batch99999999 has 0 iterations"):
        config.resolve("bmask_rcnn", "smoke-batch99999999")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "smoke/../x", "smoke.yaml", ".", ""])
def test_no_profile_or_variant_lies_outside_its_folder(name, tmp_path, capsys):
    for command in (["table", "3", "--profile", name], ["work", name], ["work", "mask_rcnn", "--profile", name]):
        assert main(command) == 2
        assert f"{name!r}: did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    "seeds,expected",
    [
        ("0", [0]),
        ("0, 1", [0, 1]),
        (" 2,0,2 ", [0, 2]),
        (7, [7]),
        ([1, 0], [0, 1]),
        ((3,), [3]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_seeds_are_whole_numbers_with_commas_between(seeds, expected):
    assert config.parse_seeds(seeds) == expected


@pytest.mark.parametrize(
    "seeds", ["-1", "", "0,,1", "0 1", "1.5", "one", "4294967296", "9" * 5000, -1, 1.0, True, None, [], [0, -1]]
)
def test_what_is_no_seed_is_refused(seeds):
    complaint(lambda: config.parse_seeds(seeds), "SEEDS is", "from 0 to 4294967295")


def test_a_run_has_a_seed_too(capsys):
    for seed in ("-1", str(2**32)):
        assert main(["work", "bmask_rcnn", "--profile", "smoke", "--seed", seed]) == 2
        assert f"SEED is {seed}; give a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine", "cells_2", "2024-batches", "Zellen-ä"])
def test_names_that_folders_can_have(name):
    config.check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../../x",
        "lab/mine",
        "a b",
        "a.b",
        "-x",
        "cells-batch8",
        "x-batch",
        "cells-samedetector",
        "cpu",
        "CPU",
        "local",
        None,
    ],
)
def test_names_that_lie_elsewhere_or_mean_something_else_are_refused(name):
    complaint(lambda: config.check_name(name), repr(name).strip("'"), "--name")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("value", ["0, 1", "-1,2", "it's", 'a "b" `id` ; id & #', ""])
def test_make_hands_on_each_variable_as_one_argument(tmp_path, value):
    names = {"SEEDS": "seeds", "PROFILE": "profile", "VARIANT": "variant", "SEED": "seed", "DATA": "data"}
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    python.chmod(0o755)
    for target in ("reproduce-table-3", "submission-coco"):
        command = ["make", "-s", "-o", "setup", target, f"VENV={tmp_path}", *(f"{name}={value}" for name in names)]
        said = subprocess.run(command, cwd=config.REPOSITORY, capture_output=True, text=True, check=True).stdout
        arguments = said.split("\0")
        flags = [flag for flag in names.values() if any(a.startswith(f"--{flag}=") for a in arguments)]
        assert "profile" in flags and len(flags) == (4 if value else 3) - (target == "reproduce-table-3")
        assert {f"--{flag}={value}" for flag in flags} <= set(arguments)


@pytest.mark.parametrize("variant", config.available("variant"))
def test_the_text_of_a_configuration_is_what_differs_from_the_defaults_and_gives_it_back(variant):
    cfg = config.resolve(variant, "paper")
    text = config.to_text(cfg)
    assert "BASE_LR: 0.02" in text and "CUDNN_BENCHMARK" not in text
    assert {**from_text(text), "STUDY": cfg.STUDY} == cfg
