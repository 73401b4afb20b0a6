"""The paper's protocol (Sections 4, 4.1 and 4.3): in the configurations, and carried out on a few images."""

import json
import zipfile

import numpy as np
import pytest
import torch
from conftest import write_image
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from bmask.errors import InputError
from bmask.study import config, files, reproduce, runs, submission, tables
from bmask.study.launch import work

# Of Table 1, row by row: shorter side, longer side, backbone.
TABLE_1 = [
    (600, 1000, "ResNet-50"),
    (600, 1000, "ResNet-50"),
    (800, 1333, "ResNet-50"),
    (800, 1333, "ResNet-50"),
    (800, 1333, "ResNet-101"),
    (800, 1333, "ResNet-101"),
    (800, 1333, "HRNetV2-W32"),
    (800, 1333, "HRNetV2-W32"),
]
ABLATIONS = ("3", "4", "5", "6", "7", "8", "sobel")


def variants(*numbers):
    return list(dict.fromkeys(v for number in numbers for v in tables.named(number).variants))


@pytest.mark.parametrize("variant", variants("1", "2", *ABLATIONS, "release"))
def test_every_row_on_coco_has_the_papers_schedule(variant):
    solver = config.resolve(variant, "paper").SOLVER
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.MAX_ITER) == (0.02, 16, 90000)
    assert (solver.STEPS, solver.GAMMA) == ((60000, 80000), 0.1)
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.9, 0.0001)  # Mask R-CNN's
    study = config.resolve(variant, "paper").STUDY
    assert (study.DATASET, study.OPTIMIZER) == ("coco", "sgd")


@pytest.mark.parametrize("variant", variants("1", "2", *ABLATIONS, "release"))
def test_every_row_on_coco_starts_from_imagenet_with_frozen_batchnorm(variant):
    model = config.resolve(variant, "paper").MODEL
    assert model.RESNETS.NORM == "FrozenBN" and model.ROI_HEADS.NUM_CLASSES == 80
    if model.BACKBONE.NAME == "build_hrnetv2p_backbone":
        assert model.HRNET.PRETRAINED and model.HRNET.NAME == "hrnet_w32" and not model.WEIGHTS
    else:
        depth = 101 if "r101" in variant else 50
        assert model.RESNETS.DEPTH == depth
        assert model.WEIGHTS == f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl"


@pytest.mark.parametrize("row,expected", zip(tables.named("1").rows, TABLE_1))
def test_the_rows_of_table_1_have_their_input_and_backbone(row, expected):
    cfg = config.resolve(row.variant, "paper")
    short, long, backbone = expected
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((short,), long)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (short, long)
    hrnet = cfg.MODEL.BACKBONE.NAME == "build_hrnetv2p_backbone"
    assert ("HRNetV2-W32" if hrnet else f"ResNet-{cfg.MODEL.RESNETS.DEPTH}") == backbone
    assert (str(row.words["input_size"]), row.words["backbone"]) == (str(short), f"{backbone}-FPN")


@pytest.mark.parametrize("variant", variants(*ABLATIONS))
def test_ablations_have_the_smaller_input(variant):
    size = config.resolve(variant, "paper").INPUT
    assert (size.MIN_SIZE_TRAIN, size.MAX_SIZE_TRAIN) == ((600,), 1000)
    assert (size.MIN_SIZE_TEST, size.MAX_SIZE_TEST) == (600, 1000)


@pytest.mark.parametrize("variant", variants("1", "2", *ABLATIONS, "9"))
def test_boundary_heads_are_pooled_as_in_section_3_but_where_the_row_says_otherwise(variant):
    model = config.resolve(variant, "paper").MODEL
    assert model.ROI_MASK_HEAD.POOLER_RESOLUTION == 14
    assert tuple(model.ROI_HEADS.IN_FEATURES) == ("p2", "p3", "p4", "p5")
    if model.ROI_MASK_HEAD.NAME == "BoundaryPreservingHead":
        head = model.BOUNDARY_MASK_HEAD
        source = ("p2", "p3", "p4", "p5") if "p2p5" in variant else ("p2",)
        assert (tuple(head.IN_FEATURES), head.POOLER_RESOLUTION) == (source, 14 if "14" in variant else 28)
        assert (head.BCE_WEIGHT, head.DICE_SQUARED, head.THRESHOLD) == (1.0, True, 0.0)


# Of each ablation, what its rows change.
SWITCHES = {
    "4": {"SUPERVISION": ["none", "mask", "boundary"]},
    "5": {"IN_FEATURES": [("p2", "p3", "p4", "p5"), ("p2",)] * 2, "POOLER_RESOLUTION": [14, 14, 28, 28]},
    "6": {
        "M2B_FUSION": [False, True, False, True, True],
        "B2M_FUSION": [False, False, True, True, True],
        "NUM_FUSION_BLOCKS": [1, 1, 1, 1, 2],
    },
    "7": {"LOSS": ["bce", "weighted_bce", "dice", "dice_bce"]},
}


@pytest.mark.parametrize("number", SWITCHES)
def test_an_ablation_changes_what_it_is_about_and_nothing_else(number):
    paper = config.resolve("bmask_rcnn", "paper")
    for k, variant in enumerate(variants(number)):
        cfg = config.resolve(variant, "paper").clone()
        cfg.defrost()
        head = cfg.MODEL.BOUNDARY_MASK_HEAD
        for key, values in SWITCHES[number].items():
            value = head[key]
            assert (tuple(value) if isinstance(value, list) else value) == values[k]
            head[key] = paper.MODEL.BOUNDARY_MASK_HEAD[key]
        assert config.identity(cfg) == config.identity(paper)


@pytest.mark.parametrize("variant", variants("9"))
def test_cityscapes_has_the_protocol_of_section_4_3(variant):
    cfg = config.resolve(variant, "paper_cityscapes")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.005, 4)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.GAMMA) == (48000, (36000,), 0.1)
    size = cfg.INPUT
    assert (size.MIN_SIZE_TRAIN, size.MIN_SIZE_TRAIN_SAMPLING) == ((800, 1024), "range")
    assert (size.MIN_SIZE_TEST, size.MAX_SIZE_TEST, size.MAX_SIZE_TRAIN) == (1024, 2048, 2048)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RESNETS.DEPTH) == (8, 50)
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN" and cfg.MODEL.WEIGHTS.endswith("MSRA/R-50.pkl")
    assert (cfg.STUDY.DATASET, cfg.STUDY.OPTIMIZER) == ("cityscapes", "sgd")


def test_the_linear_scaling_rule_adjusts_rate_iterations_and_steps_together():
    solver = config.resolve("bmask_rcnn", "paper-batch4").SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (4, 0.005)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (360000, (240000, 320000), 4000)
    assert config.identity(config.resolve("bmask_rcnn", "paper-batch16")) == config.identity(
        config.resolve("bmask_rcnn", "paper")
    )


# --- carried out: two iterations on a few images. They are long and narrow, so that the paper's sizes, which bound
# the longer side, leave little to compute.


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """COCO 2017 as it is unpacked: 80 categories with gaps between their ids, polygons, an RLE crowd."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    categories = [{"id": k + k // 10 + 1, "name": f"category {k}"} for k in range(80)]
    for split in ("train2017", "val2017", "test2017"):
        images, annotations = [], []
        for k in range(3):
            images.append({"id": 100 + k, "file_name": f"{100 + k:012d}.jpg", "height": 40, "width": 400})
            write_image(root / split / images[-1]["file_name"], rng.integers(0, 256, (40, 400, 3)).astype(np.uint8))
            for left in (20, 200):
                entry = {"id": len(annotations) + 1, "image_id": 100 + k, "category_id": categories[17 + k]["id"]}
                entry |= {"bbox": [left, 5, 60, 30], "area": 1500, "iscrowd": 0}
                polygon = [left, 5, left + 60, 8, left + 50, 35, left + 5, 30]
                annotations.append({**entry, "segmentation": [polygon]})
        runs_of_crowd = {"size": [40, 400], "counts": [8000, 800, 7200]}
        crowd = {**annotations[0], "id": 99, "iscrowd": 1, "segmentation": runs_of_crowd}
        content = {"images": images, "categories": categories}
        if split == "test2017":
            files.write_bytes(root / "annotations/image_info_test-dev2017.json", json.dumps(content).encode())
        else:
            content["annotations"] = annotations + [crowd]
            files.write_bytes(root / f"annotations/instances_{split}.json", json.dumps(content).encode())
    return root


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """Cityscapes as it is unpacked, one city a split: people, a car, a group of bicycles."""
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    ids = np.full((16, 256), 7, np.uint16)
    ids[2:14, 20:40], ids[3:15, 60:80], ids[5:14, 120:180], ids[8:15, 200:230] = 24000, 24001, 26000, 33
    for split, city in (("train", "aachen"), ("val", "lindau"), ("test", "bonn")):
        for k in range(2):
            name = f"{split}/{city}/{city}_{k:06d}_000019"
            picture = rng.integers(0, 256, (16, 256, 3)).astype(np.uint8)
            write_image(root / "leftImg8bit" / f"{name}_leftImg8bit.png", picture)
            write_image(root / "gtFine" / f"{name}_gtFine_instanceIds.png", ids)
    return root


def two_iterations(variant, profile, folder):
    """The row's run as it is, but for the weights of ImageNet, the batch and the number of iterations."""
    run = runs.Run(variant, profile, 0)
    cfg = config.scale_batch(run.cfg, 1)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.DATALOADER.NUM_WORKERS = 2, 0, 0
    cfg.SOLVER.BASE_LR = 1e-5  # without the weights of ImageNet more would be too much
    cfg.MODEL.DEVICE, cfg.MODEL.HRNET.PRETRAINED = "cpu", False
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg)
    for module in model.backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.3)  # frozen, it does not tame random weights
    cfg.MODEL.WEIGHTS = str(folder / f"{variant}.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    cfg.freeze()
    run.__dict__["cfg"] = cfg
    return run


def carry_out(run, data):
    assert work.work(run, runs.Options(device="cpu", data=str(data))) == 0
    record = run.record()
    state = torch.load(run.folder / "checkpoint.pth", weights_only=True)
    assert state["iteration"] == 2 and len(state["losses"]) == 1
    terms = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "iteration"}
    further = {"bmask": "loss_boundary", "scoring": "loss_mask_iou", "pointrend": "loss_mask_point"}
    assert set(record["losses"]) == terms | {name for part, name in further.items() if part in run.variant}
    assert len(record["metrics"]["segm"]["per_iou"]) == 10
    return record


@pytest.mark.parametrize("variant", variants("1"))
def test_the_rows_of_table_1_run_on_cocos_layout(variant, coco, output):
    record = carry_out(two_iterations(variant, "paper", output), coco)
    assert len(record["metrics"]["segm"]["per_class"]) == 80


def test_the_rows_of_table_9_run_on_cityscapes_layout_to_the_servers_zip(cityscapes, output):
    for variant in variants("9"):
        run = two_iterations(variant, "paper_cityscapes", output)
        metrics = carry_out(run, cityscapes)["metrics"]
        assert set(metrics["segm"]["per_class"]) == set(metrics["cityscapes"]["per_class"])
        assert 0 <= metrics["cityscapes"]["AP"] <= 100
    path = reproduce.submit("cityscapes", run, runs.Options(device="cpu", data=str(cityscapes)))
    with zipfile.ZipFile(path) as archive:
        texts = [name for name in archive.namelist() if name.endswith(".txt")]
    assert texts == [f"bonn_{k:06d}_000019_leftImg8bit_pred.txt" for k in range(2)]


def test_a_trained_run_becomes_what_cocos_server_takes(coco, output):
    run = two_iterations("mask_rcnn", "paper", output)
    options = runs.Options(device="cpu", data=str(coco))
    with pytest.raises(InputError, match="has not been trained here: `python -m bmask run"):
        reproduce.submit("coco", run, options)
    run.cfg.defrost()
    run.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    run.cfg.TEST.DETECTIONS_PER_IMAGE = 5
    carry_out(run, coco)
    path = reproduce.submit("coco", run, options)
    assert path.name == f"{submission.COCO_NAME}.zip"
    with zipfile.ZipFile(path) as archive:
        results = json.loads(archive.read(f"{submission.COCO_NAME}.json"))
    content = json.loads((coco / "annotations/image_info_test-dev2017.json").read_text())
    assert {r["image_id"] for r in results} == {image["id"] for image in content["images"]}
    assert {r["category_id"] for r in results} <= {c["id"] for c in content["categories"]}
    assert set(results[0]) == {"image_id", "category_id", "segmentation", "score"}


def test_missing_test_images_are_one_sentence(output, tmp_path):
    run = runs.Run("mask_rcnn", "paper", 0)
    files.write_bytes(run.own_record, b"{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no .*image_info_test-dev2017"):
        reproduce.submit("coco", run, runs.Options(device="cpu", data=str(tmp_path / "empty")))


def test_a_model_of_other_classes_than_the_servers_is_one_sentence(cityscapes, output):
    run = runs.Run("mask_rcnn", "paper", 0)
    files.write_bytes(run.own_record, b"{}")
    with pytest.raises(InputError, match="knows 80 classes and cityscapes has 8"):
        reproduce.submit("cityscapes", run, runs.Options(device="cpu", data=str(cityscapes)))
