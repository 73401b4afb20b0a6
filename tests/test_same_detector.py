"""The same-detector protocol: mask heads that are compared without the detector's noise, and trained at once."""

import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE, Stop, complaint, stop_at
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from bmask import losses
from bmask.errors import InputError
from bmask.study import cli, config, datasets, launch, runs, same_detector, tables, train
from bmask.study.launch import work

PROFILE = "smoke-samedetector"
CPU = runs.Options(device="cpu")
HEADS = ["mask_rcnn", "bmask_rcnn", "mask_rcnn_larger_head", "sobel_mask_head", "point_rend"]
PAIR = runs.Together("mask_rcnn bmask_rcnn", PROFILE, 0)


def configured(head, cascade):
    cfg = runs.on_device(config.resolve("mask_rcnn" if head == "point_rend" else head, PROFILE), "cpu")
    if head == "point_rend":  # as a head alone: detectron2's project trains its boxes otherwise as well
        cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = "PointRendMaskHead", ""
        cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON, cfg.MODEL.POINT_HEAD.NUM_CLASSES = True, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cascade:
        cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "CascadeROIHeads", True
    return cfg


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return datasets.prepare(PAIR.cfg, None, tmp_path_factory.mktemp("data")).train.load()


@pytest.fixture(scope="module", params=[False, True], ids=["standard", "cascade"])
def at_once(request, images, tmp_path_factory):
    """The folder of a training of all heads at once, with those of the heads, and how a head is configured."""
    folder = tmp_path_factory.mktemp("together")
    heads = {head: configured(head, request.param) for head in HEADS}
    for head in HEADS:
        (folder / head).mkdir()
    train.train(heads["mask_rcnn"], images, folder, lambda *_: None, None, heads=heads)
    same_detector.hand_out(folder / "checkpoint.pth", {head: folder / head for head in HEADS})
    return folder, heads


def left_in(folder):
    """Weights and losses of a finished training."""
    saved = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert saved["iteration"] == 6 and "optimizer" not in saved
    return saved["model"], saved["losses"]


def same(left, right):
    (weights, terms), (others, other_terms) = left, right
    return (
        terms == other_terms and weights.keys() == others.keys() and all(weights[k].equal(others[k]) for k in weights)
    )


@pytest.mark.parametrize("head", HEADS)
def test_a_head_trained_with_others_is_that_trained_alone_to_the_digit(head, at_once, images, tmp_path):
    folder, heads = at_once
    train.train(heads[head], images, tmp_path, lambda *_: None, None)
    assert same(left_in(tmp_path), left_in(folder / head))


def test_without_the_protocol_the_detector_depends_on_its_mask_head(images, tmp_path):
    detectors = set()
    for protocol in ("smoke", PROFILE):
        for variant in ("mask_rcnn", "bmask_rcnn"):
            (tmp_path / protocol / variant).mkdir(parents=True)
            cfg = runs.on_device(config.resolve(variant, protocol), "cpu")
            cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER = 0, 2
            train.train(cfg, images, tmp_path / protocol / variant, lambda *_: None, None)
            saved = torch.load(tmp_path / protocol / variant / "checkpoint.pth", weights_only=True)
            detectors.add(same_detector.fingerprint(SimpleNamespace(state_dict=lambda: saved["model"])))
    assert len(detectors) == 3


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cascade", [False, True])
def test_no_gradient_of_a_mask_head_reaches_the_detector(head, cascade, images):
    cfg = configured(head, cascade)
    seed_all_rng(0)
    model = build_model(cfg)
    same_detector.detach(model)
    with EventStorage():
        found = model(next(iter(train.train_loader(cfg, images, 0, 0, 1))))
    sum(loss for term, loss in found.items() if "mask" in term or "boundary" in term).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned and all(name.startswith("roi_heads.mask_head.") for name in learned)
    detector, *heads = same_detector.learners(model)
    assert heads == [model.roi_heads.mask_head]
    split = [id(p) for part in (detector, *heads) for p in part.parameters()]
    assert len(split) == len(set(split)) and set(split) == {id(p) for p in model.parameters()}


def test_stopped_at_any_iteration_a_training_of_several_heads_goes_on_to_the_same_digits(at_once, images, tmp_path):
    folder, heads = at_once
    arguments = (heads["mask_rcnn"], images, tmp_path)
    for iteration in (1, 3, 4):
        with pytest.raises(Stop):
            train.train(*arguments, stop_at(iteration), None, heads=heads)
    train.train(*arguments, stop_at(None), None, heads=heads)
    assert same(left_in(tmp_path), left_in(folder))


def test_detectors_that_do_not_start_alike_are_not_trained_as_one():
    models = {}
    for name in ("a", "b"):  # the second without the seed
        models[name] = build_model(configured("mask_rcnn", False))
    complaint(lambda: same_detector.join(models), "the detectors of a, b")


def test_variants_of_one_detector_are_trained_at_once():
    def named(names, profile=PROFILE, seeds=(0,)):
        return [runs.Run(name, profile, seed) for seed in seeds for name in names]

    def found(wanted):
        return [{(run.variant, run.seed) for run in training.others} for training in runs.together(wanted)]

    heads = named(["mask_rcnn", "bmask_rcnn", "bmask_rcnn_two_fusion_blocks"], seeds=(0, 1))
    coarse = named(["mask_rcnn_coarse04", "bmask_rcnn_coarse04"])  # other data
    refined = named(["bmask_rcnn_refined"])  # with the weights of bmask_rcnn
    other_size, joint = named(["bmask_rcnn_800"]), named(["mask_rcnn", "bmask_rcnn"], "smoke")
    expected = [{(run.variant, run.seed) for run in of} for of in (heads[:3], heads[3:], coarse)]
    assert found(heads + refined + coarse + other_size + joint) == expected
    assert len(found(named(tables.named("3").variants))) == 1


def test_the_protocol_is_a_setting_of_its_own():
    cfg = config.resolve("bmask_rcnn", "smoke-2x-lr0.5-samedetector-batch4", 1)
    assert cfg.STUDY.SAME_DETECTOR and cfg.SOLVER.IMS_PER_BATCH == 4 and cfg.TEST.EVAL_PERIOD == 0
    assert config.identity(PAIR.cfg) != config.identity(config.resolve(PAIR.others[0].variant, "smoke"))
    sentence = "No mask head's gradient reaches the detector."
    assert tables.setting(PROFILE).endswith(sentence) and sentence not in tables.setting("smoke")


def test_what_cannot_be_trained_at_once_is_one_sentence(capsys):
    for variants, profile in ((["mask_rcnn", "mask_rcnn_coarse04"], PROFILE), (["mask_rcnn", "bmask_rcnn"], "smoke")):
        assert cli.main(["work", *variants, "--profile", profile]) == 2
        said = capsys.readouterr().err
        assert "differ in their mask heads alone" in said and variants[1] in said and said.count("\n") == 1


def test_killed_and_started_again_heads_end_as_if_they_had_not_been(output, bmask):
    command = ("work", "mask_rcnn", "bmask_rcnn", "--profile", PROFILE, "--device", "cpu")
    first = bmask(*command)
    deadline = time.monotonic() + PATIENCE
    while not (PAIR.folder / "checkpoint.pth").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not PAIR.done, "the training was over before it could be killed"
    assert work.work(PAIR, CPU) == 0
    left = [left_in(run.folder) for run in PAIR.others]
    assert PAIR.done and not (PAIR.folder / "checkpoint.pth").exists()  # the heads' own are enough
    for run in PAIR.others:
        os.remove(run.folder / "checkpoint.pth")
    assert work.work(PAIR, CPU) == 0
    assert all(map(same, left, [left_in(run.folder) for run in PAIR.others]))


def test_runs_of_the_protocol_are_trained_once_and_find_the_same_boxes(output, monkeypatch):
    started = []

    def start(_, run):
        started.append(run)
        status = work.work(run, CPU)
        return SimpleNamespace(poll=lambda: status, phase=lambda progress: "")

    monkeypatch.setattr(launch.Local, "start", start)
    wanted = [runs.Run(variant, PROFILE, 0) for variant in ("mask_rcnn", "bmask_rcnn", "bmask_rcnn_refined")]
    assert launch.ensure(wanted, CPU)
    assert started == [PAIR, wanted[1], wanted[0], wanted[2]]
    records = [run.record() for run in wanted]
    assert len({json.dumps(record["metrics"]["bbox"]) for record in records}) == 1
    assert len({record["detector"] for record in records}) == 1
    assert "loss_boundary" in records[1]["losses"] and "loss_boundary" not in records[0]["losses"]
    for name in ("runs", "results"):
        shutil.rmtree(output / name)
    assert launch.ensure(wanted[1:2], CPU) and started[4:] == wanted[1:2]  # alone
    for key in ("losses", "metrics", "detector", "config", "validation"):
        assert wanted[1].record()[key] == records[1][key]


def test_where_one_head_fails_each_is_trained_alone(output, monkeypatch, capsys):
    monkeypatch.setattr(losses, "boundary_loss", lambda logits, *_, **options: logits.sum() * float("nan"))
    assert work.work(PAIR, CPU) == work.FAILED
    assert "iteration 1: bmask_rcnn/loss_boundary not finite" in capsys.readouterr().out
    assert not PAIR.done and not list(output.glob("results/**/*.json"))
    started = []

    def begin(run):
        started.append(run)
        return SimpleNamespace(poll=lambda: work.FAILED if run == PAIR else 0, phase=lambda progress: "")

    launcher = SimpleNamespace(start=begin, stop=lambda workers: None, pause=0)
    assert launch.carry_out([*PAIR.others, PAIR], launcher, jobs=3)
    assert started[0] == PAIR and set(started[1:]) == set(PAIR.others)
    said = capsys.readouterr().err
    assert f"{PAIR.name} stopped with status {work.FAILED}" in said and "each head is trained alone" in said
    assert "2 of 2 runs done" in said and "/6 [" in said  # iterations, once


def test_the_data_of_a_training_of_several_heads_may_not_change(output):
    PAIR.folder.mkdir(parents=True)
    (PAIR.folder / "checkpoint.pth").touch()
    (PAIR.folder / "data_fingerprint").write_text("other")
    with pytest.raises(InputError, match="was trained on other data"):
        launch.ensure(PAIR.others, CPU)
