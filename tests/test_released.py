"""Weights and configurations made elsewhere: read in full or refused, and never run."""

import io
import json
import os
import pickle
import shutil
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import complaint
from detectron2.modeling import build_model

from bmask import BoundaryPreservingHead, released
from bmask.study import config, evaluate, tables
from bmask.study.cli import main
from bmask.study.datasets import shapes

# As the authors' base file is, but for the last lines, which make the model small.
BASE = """
_BASE_: "../../../configs/Base-RCNN-FPN.yaml"
MODEL:
  MASK_ON: true
  ROI_HEADS:
    NAME: "BoundaryROIHeads"
    IN_FEATURES: ["p2", "p3", "p4", "p5"]
  ROI_BOX_HEAD:
    TRAIN_ON_PRED_BOXES: True
  ROI_MASK_HEAD:
    NAME: "BoundaryPreservingHead"
    NUM_CONV: 4
    POOLER_RESOLUTION: 14
  BOUNDARY_MASK_HEAD:
    POOLER_RESOLUTION: 28
    IN_FEATURES: ["p2"]
    NUM_CONV: 2
"""
SMALL = """
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN}
  FPN: {OUT_CHANNELS: 16}
INPUT: {MIN_SIZE_TEST: 64}
"""
BMASK = """
_BASE_: Base-BMask-R-CNN-FPN.yaml
MODEL:
  WEIGHTS: detectron2://ImageNetPretrained/MSRA/R-50.pkl
  ROI_HEADS: {NUM_CLASSES: 4, SCORE_THRESH_TEST: 0.0}
  ROI_BOX_HEAD: {FC_DIM: 16}
  ROI_MASK_HEAD: {CONV_DIM: 16}
TEST: {DETECTIONS_PER_IMAGE: 10}
"""
CASCADE = BMASK.replace("{NUM", "{NAME: CascadeBoundaryROIHeads, NUM").replace(
    "{FC", "{CLS_AGNOSTIC_BBOX_REG: True, FC"
)
MASK_RCNN = BMASK.replace("{NUM", "{NAME: StandardROIHeads, NUM").replace(
    "{CONV", "{NAME: MaskRCNNConvUpsampleHead, CONV"
)
HEAD_LAYERS = (
    *(f"mask_fcn{k}" for k in (1, 2, 3, 4)),
    *("mask_final_fusion", "downsample", "boundary_fcn1", "boundary_fcn2", "mask_to_boundary"),
    *("boundary_to_mask", "mask_deconv", "mask_predictor", "boundary_deconv", "boundary_predictor"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Configurations by name, as they lie in the authors' release."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "Base-BMask-R-CNN-FPN.yaml").write_text(BASE + SMALL)
    for name, text in {"bmask": BMASK, "cascade": CASCADE, "mask_rcnn": MASK_RCNN}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(folder, seed=0, num_train=0, num_val=3, image_size=64)
    return "--json", folder / "annotations/instances_val_fine.json", "--images", folder / "images/val"


def state_dict(config, seed=0):
    """Weights for a configuration, from detectron2 itself: masks that are neither empty nor full."""
    cfg = released.read_config(config).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(seed)
    state = build_model(cfg).state_dict()
    for name, x in state.items():
        if "predictor" in name and "mask_head" in name:
            x.copy_(torch.randn_like(x))
    return state


def save_pth(path, state, **beside):
    torch.save({"model": state, **beside}, path)
    return path


def zoo(state):
    arrays = {name: x.numpy() for name, x in state.items()}
    return {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": False}


def detect(model):
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        return model([{"image": image, "height": 64, "width": 64}])[0]["instances"]


def run(*arguments):
    return main(["evaluate", "--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize("config", ["bmask", "cascade"])
def test_released_weights_load_in_full_and_give_the_masks_of_our_own_configuration(folder, tmp_path, config):
    path = folder / f"{config}.yaml"
    state = state_dict(path)
    head = "roi_heads.mask_head."
    assert {k for k in state if k.startswith(head)} == {
        f"{head}{layer}.{x}" for layer in HEAD_LAYERS for x in ("weight", "bias")
    }
    weights = save_pth(tmp_path / "model_final.pth", state, optimizer={"state": {}}, iteration=89999)
    cfg, model, report = released.load(path, weights, device="cpu")
    assert report.complete and not model.training
    # running averages have no effect where nothing is normalised by them; the rest of the file is all there
    assert set(report.loaded) == {k for k in state if not k.endswith("num_batches_tracked")}
    assert cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE == "ROIAlignV2"
    assert isinstance(model.roi_heads.mask_head, BoundaryPreservingHead)

    ours = cfg.clone()
    ours.defrost()
    ours.MODEL.ROI_HEADS.NAME = "CascadeROIHeads" if config == "cascade" else "StandardROIHeads"
    ours.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    reference = build_model(ours).eval().to(memory_format=torch.channels_last)
    reference.load_state_dict(state)
    found, expected = detect(model), detect(reference)
    assert len(found) == 10 and 0 < found.pred_masks.float().mean() < 1
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.scores, expected.scores)


# What each released configuration sets beside the base file, by its row here.
RELEASED = {
    "bmask_rcnn_release": ("R-50", ""),
    "bmask_rcnn_release_r101": ("R-101", ""),
    "cascade_bmask_rcnn_release": ("R-50", "Cascade"),
    "cascade_bmask_rcnn_release_r101": ("R-101", "Cascade"),
}
SCHEDULE = """
_BASE_: Base-BMask-R-CNN-FPN.yaml
MODEL: {{WEIGHTS: detectron2://ImageNetPretrained/MSRA/{network}.pkl, RESNETS: {{DEPTH: {depth}}}{more}}}
INPUT: {{MIN_SIZE_TRAIN: [800]}}
DATASETS: {{TRAIN: [coco_2017_train], TEST: [coco_2017_val]}}
SOLVER: {{IMS_PER_BATCH: 16, BASE_LR: 0.02, STEPS: [60000, 80000], MAX_ITER: 90000}}
TEST: {{EVAL_PERIOD: 10000}}
OUTPUT_DIR: output/there
"""
MORE = (
    ", ROI_HEADS: {NAME: CascadeBoundaryROIHeads}, ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}"
    ", RPN: {POST_NMS_TOPK_TRAIN: 2000}"
)


@pytest.mark.parametrize("variant", RELEASED)
def test_a_row_of_the_release_is_the_released_configuration_key_by_key(tmp_path, variant):
    network, kind = RELEASED[variant]
    (tmp_path / "Base-BMask-R-CNN-FPN.yaml").write_text(BASE)
    text = SCHEDULE.format(network=network, depth=network[2:], more=MORE if kind else "")
    (tmp_path / "released.yaml").write_text(text)
    theirs = config._flat(released.read_config(tmp_path / "released.yaml"))
    ours = config._flat(config.resolve(variant, "paper"))
    assert theirs["INPUT.MAX_SIZE_TRAIN"] == 1333 and theirs["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] == 512
    differences = {k: (theirs[k], ours[k]) for k in theirs if theirs[k] != ours[k]}
    assert {k: pair for k, pair in differences.items() if not k.startswith("STUDY.")} == {
        # The head pools its own RoI features, so detectron2's RoI heads do, and RoIAlign is named in a key of the head.
        "MODEL.ROI_HEADS.NAME": (f"{kind}BoundaryROIHeads", f"{kind or 'Standard'}ROIHeads"),
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": (ours["MODEL.BOUNDARY_MASK_HEAD.POOLER_TYPE"], ""),
        # Not keys of the release: its code has these values.
        "MODEL.BOUNDARY_MASK_HEAD.DICE_SQUARED": (True, False),
        "MODEL.BOUNDARY_MASK_HEAD.THRESHOLD": (0.0, 0.1),
        # How a run is carried out.
        "SEED": (-1, 0),
        "SOLVER.CHECKPOINT_PERIOD": (5000, 2500),
        "TEST.EVAL_PERIOD": (10000, 15000),
        "OUTPUT_DIR": ("output/there", "./output"),
    }


# What else the model zoo's configurations say of the other rows.
ZOO = {
    "mask_rcnn_800": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade_mask_rcnn_800": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
}


@pytest.mark.parametrize("variant", ZOO)
def test_the_releases_baselines_are_the_model_zoos_but_for_the_input(variant):
    theirs = config._flat(released.read_config(ZOO[variant]))
    ours = config._flat(config.resolve(variant, "paper"))
    study = ("SEED", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")
    differences = {k for k in theirs if theirs[k] != ours[k] and not k.startswith("STUDY.")} - set(study)
    assert differences == {"INPUT.MIN_SIZE_TRAIN"} and ours["INPUT.MIN_SIZE_TRAIN"] == [800]


def test_every_row_of_the_release_is_compared_with_its_configuration():
    assert {*tables.named("release").variants} == {*RELEASED, *ZOO, "pointrend_800"}


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[bytes] = save_bytes


def python2(content):
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump(content)
    return stream.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


PICKLES = {
    "protocol 2, numpy 1": lambda x: pickle.dumps(x, 2).replace(b"cnumpy._core.", b"cnumpy.core."),
    "protocol 4": lambda x: pickle.dumps(x, 4),
    "protocol 5": lambda x: pickle.dumps(x, 5),
    "Python 2": python2,
}


@pytest.mark.parametrize("dumps", PICKLES.values(), ids=PICKLES)
def test_arrays_of_every_pickle_are_the_same(tmp_path, dumps):
    rng = np.random.default_rng(0)
    arrays = OrderedDict(
        a=rng.normal(size=(2, 3, 4)).astype(np.float32),
        fortran=np.asfortranarray(rng.normal(size=(3, 4))),
        permuted=rng.normal(size=(2, 3, 4)).transpose(0, 2, 1),
        swapped=rng.normal(size=5).astype(">f4"),
        count=np.array(7),
        scalar=np.float32(0.5),
        empty=np.zeros((0, 4), np.float16),
        flags=np.array([True, False]),
    )
    path = tmp_path / "model.pkl"
    path.write_bytes(dumps({"model": arrays, "__author__": "someone"}))
    found = released.read_checkpoint(path)
    assert found["__author__"] == "someone" and set(found["model"]) == set(arrays)
    for name, x in arrays.items():
        assert isinstance(found["model"][name], torch.Tensor)
        np.testing.assert_array_equal(found["model"][name].numpy(), x)


def test_model_zoo_weights_load(folder, tmp_path):
    path = folder / "mask_rcnn.yaml"
    state = state_dict(path)
    content = zoo(state)
    old = {"proposal_generator.anchor_generator.cell_anchors.0": np.zeros((3, 4), np.float32)}
    old |= {"pixel_mean": np.zeros((3, 1, 1), np.float32), "pixel_std": np.ones((3, 1, 1), np.float32)}
    content["model"] |= old
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))
    _, model, report = released.load(path, tmp_path / "model_final.pkl", device="cpu")
    assert report.complete
    for name, x in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(x, state[name])
    assert model.pixel_mean.any()  # the configuration's, not the file's


def test_a_bare_or_data_parallel_state_dict_loads(folder, tmp_path):
    path = folder / "mask_rcnn.yaml"
    state = state_dict(path)
    torch.save(state, tmp_path / "bare.pth", _use_new_zipfile_serialization=False)
    assert released.load(path, tmp_path / "bare.pth", device="cpu")[2].complete
    save_pth(tmp_path / "parallel.pth", {f"module.{k}": x for k, x in state.items()})
    assert released.load(path, tmp_path / "parallel.pth", device="cpu")[2].complete


def test_the_model_zoo_has_configurations_by_name():
    cfg = released.read_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    assert cfg.SOLVER.MAX_ITER == 270000 and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80


def test_a_partial_match_is_refused_in_one_sentence_or_accepted(folder, tmp_path, data, capsys):
    config = folder / "bmask.yaml"
    state = state_dict(config)
    missing = [k for k in state if "boundary_deconv" in k]
    for name in missing:
        del state[name]
    state["roi_heads.other.weight"] = torch.zeros(2)
    state["roi_heads.mask_head.mask_predictor.bias"] = torch.zeros(80)
    weights = save_pth(tmp_path / "part.pth", state)
    message = complaint(lambda: released.load(config, weights, device="cpu"), str(weights), "--partial")
    assert f"2 missing in the file ({', '.join(missing)})" in message
    assert "1 unexpected (roi_heads.other.weight)" in message
    assert "1 of wrong shape (roi_heads.mask_head.mask_predictor.bias: 80 in the file, 4 in the model)" in message

    arguments = ("--config", config, "--weights", weights, *data)
    assert run(*arguments) == 2
    assert capsys.readouterr().err == f"bmask: {message}\n"
    assert run(*arguments, "--partial") == 0
    output = capsys.readouterr()
    assert "| masks" in output.out and "1 unexpected (roi_heads.other.weight)" in output.err


def test_the_names_of_a_backbone_alone_are_matched_where_the_file_asks_for_it(folder, tmp_path):
    path, prefix = folder / "mask_rcnn.yaml", "backbone.bottom_up."
    state = state_dict(path)
    content = zoo({k[len(prefix) :]: x for k, x in state.items() if k.startswith(prefix)})
    weights = tmp_path / "R-18.pkl"
    weights.write_bytes(pickle.dumps({**content, "matching_heuristics": True}))
    complaint(lambda: released.load(path, weights, device="cpu"), "missing in the file (backbone.fpn")
    _, model, report = released.load(path, weights, partial=True, device="cpu")
    assert not report.unexpected and all(k.startswith(prefix) for k in report.loaded)
    assert all(torch.equal(model.state_dict()[k], state[k]) for k in report.loaded)
    content["model"] = {"weight": np.zeros((16, 16, 3, 3), np.float32)}
    weights.write_bytes(pickle.dumps({**content, "matching_heuristics": True}))
    complaint(lambda: released.load(path, weights, partial=True, device="cpu"), "R-18.pkl")


def test_weights_of_another_model_are_refused_even_as_a_part(folder, tmp_path):
    weights = save_pth(tmp_path / "other.pth", {"layer.weight": torch.zeros(2)})
    load = lambda: released.load(folder / "bmask.yaml", weights, partial=True, device="cpu")  # noqa: E731
    complaint(load, str(weights), "bmask.yaml")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", "-old.pth"])
def test_code_in_a_checkpoint_is_refused_and_not_run(folder, tmp_path, data, capsys, suffix):
    marker, weights = tmp_path / "ran", tmp_path / f"model{suffix}"
    content = {"model": {"a": torch.zeros(1)}, "__author__": Evil(marker)}
    if suffix == ".pkl":
        weights.write_bytes(pickle.dumps({**content, "model": {"a": np.zeros(1)}}))
    else:
        torch.save(content, weights, _use_new_zipfile_serialization=suffix == ".pth")
    assert run("--config", folder / "bmask.yaml", "--weights", weights, *data) == 2
    message = complaint(lambda: released.read_checkpoint(weights), str(weights), "posix.system")
    assert capsys.readouterr().err == f"bmask: {message}\n"
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # what would have happened


GLOBALS = [("builtins", "eval"), ("numpy", "load"), ("torch._utils", "_rebuild_tensor_v2"), ("numpy", "memmap")]


@pytest.mark.parametrize("module,name", GLOBALS)
def test_a_pickle_may_name_arrays_alone(tmp_path, module, name):
    path = tmp_path / "model.pkl"
    path.write_bytes(f"c{module}\n{name}\n.".encode())
    complaint(lambda: released.read_checkpoint(path), str(path), f"{module}.{name}")


WORTHLESS = {
    "cut.pkl": pickle.dumps({"model": {"a": np.zeros(99)}})[:-50],
    "objects.pkl": pickle.dumps({"model": {"a": np.array([None])}}),
    "fields.pkl": pickle.dumps({"model": {"a": np.zeros(1, "f4,f4")}}),
    "empty.pkl": b"",
    "no_array.pkl": pickle.dumps({"epoch": 3}),
    "a_list.pkl": pickle.dumps([1, 2]),
    "text.pth": b"<html>not found</html>",
}


@pytest.mark.parametrize("name", WORTHLESS)
def test_what_is_no_checkpoint_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WORTHLESS[name])
    complaint(lambda: released.read_checkpoint(path), str(path))


def test_a_missing_checkpoint_is_named(tmp_path):
    complaint(lambda: released.read_checkpoint(tmp_path / "none.pth"), "none.pth")


@pytest.mark.parametrize(
    "text,place",
    [
        ("MODEL: {BOUNDARY_MASK_HEAD: {WIDTH: 3}}", "MODEL.BOUNDARY_MASK_HEAD.WIDTH"),
        ("MODEL: {ROI_MASK_HEAD: {NUM_CONV: many}}", "NUM_CONV"),
        ("MODEL: {ROI_HEADS: !!python/object/apply:os.system ['touch ran']}", "os.system"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml"),
        ("_BASE_: ../configs/nowhere.yaml", "nowhere.yaml"),
        ("a list, not a mapping", "wrong.yaml"),
        ("MODEL: [", "wrong.yaml"),
        ("MODEL: {MASK_ON: False}", "MASK_ON"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path, monkeypatch, text, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(text)
    complaint(lambda: released.read_config(tmp_path / "wrong.yaml"), "wrong.yaml", place)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_that_is_not_there_or_is_code_is_named(tmp_path):
    complaint(lambda: released.read_config(tmp_path / "none.yaml"), "none.yaml")
    complaint(lambda: released.read_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"), "LSJ.py")


def test_a_model_that_cannot_be_built_is_named(folder, tmp_path):
    config = folder / "unknown_head.yaml"
    config.write_text(BMASK.replace("{CONV", "{NAME: NoSuchHead, CONV"))
    weights = save_pth(tmp_path / "model.pth", {"a": torch.zeros(1)})
    complaint(lambda: released.load(config, weights, device="cpu"), "unknown_head.yaml", "NoSuchHead")


def test_other_classes_than_the_data_has_are_refused(folder, tmp_path, data, capsys):
    config = folder / "seven.yaml"
    config.write_text(BMASK.replace("NUM_CLASSES: 4", "NUM_CLASSES: 7"))
    weights = save_pth(tmp_path / "model.pth", state_dict(config))
    assert run("--config", config, "--weights", weights, *data) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.splitlines()[-1] == (
        f"bmask: the model knows 7 classes and {data[1]} has 4; give the kind of data that it was trained on"
    )


def defective(data, tmp_path, defect):
    content, images = json.loads(data[1].read_text()), tmp_path / "images"
    shutil.copytree(data[3], images)
    annotation = content["annotations"][0]
    if defect == "cut":
        image = images / content["images"][2]["file_name"]
        image.write_bytes(image.read_bytes()[:200])
    elif defect == "NaN":
        annotation["segmentation"] = [[1, 1, 9, 1, 9, float("nan")]]
    elif defect == "corners":
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]
    else:
        annotation["bbox"] = []
    (tmp_path / "defective.json").write_text(json.dumps(content))
    return "--json", tmp_path / "defective.json", "--images", images


@pytest.mark.parametrize(
    ("defect", "words"),
    [("cut", "no image that can be read"), ("NaN", "finite"), ("corners", "corners"), ("bbox", "four")],
)
def test_data_are_looked_at_before_anything_is_detected(folder, tmp_path, data, capsys, monkeypatch, defect, words):
    monkeypatch.setattr(evaluate, "detect", lambda *_: pytest.fail("it was begun"))
    weights = save_pth(tmp_path / "model.pth", state_dict(folder / "bmask.yaml"))
    data = defective(data, tmp_path, defect)
    assert run("--config", folder / "bmask.yaml", "--weights", weights, *data) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bmask: ") and words in last


def test_what_can_be_read_is_measured_as_if_it_were_in_order(folder, tmp_path, data, capsys):
    content = json.loads(data[1].read_text())
    for annotation in content["annotations"]:
        annotation |= {"id": str(annotation["id"] - 1), "image_id": float(annotation["image_id"])}
        del annotation["area"], annotation["iscrowd"]
    (tmp_path / "other.json").write_bytes(json.dumps(content).encode("utf-16"))
    weights = save_pth(tmp_path / "model.pth", state_dict(folder / "bmask.yaml"))
    found = []
    for json_file in (data[1], tmp_path / "other.json"):
        given = ("--json", json_file, "--images", data[3], "--out", tmp_path / "metrics")
        assert run("--config", folder / "bmask.yaml", "--weights", weights, *given) == 0
        found.append(json.loads((tmp_path / "metrics").read_text())["metrics"])
    assert found[0] == found[1]


def test_an_output_that_is_a_folder_is_refused_before_the_work(folder, tmp_path, capsys):
    assert run("--config", "none.yaml", "--weights", "none.pth", "--out", tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_data_are_a_folder_or_a_file_with_images(tmp_path, monkeypatch):
    complaint(lambda: evaluate.find_data(None, tmp_path / "a.json", None), "--images")
    complaint(lambda: evaluate.find_data("coco", tmp_path / "a.json", tmp_path), "--data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco").mkdir()
    found = evaluate.find_data(None, None, None)
    assert found.json == tmp_path / "coco/annotations/instances_val2017.json"
    assert found == evaluate.find_data(str(tmp_path / "coco"), None, None)


def test_the_command_measures_boxes_masks_and_boundaries(folder, tmp_path, data, bmask):
    config, out = folder / "cascade.yaml", tmp_path / "metrics.json"
    weights = save_pth(tmp_path / "model_final.pth", state_dict(config))
    process = bmask("evaluate", "--config", config, "--weights", weights, *data, "--out", out)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    header, _, *rows = output.splitlines()
    assert header.replace("|", " ").split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [row.split()[1] for row in rows] == ["boxes", "masks", "boundaries"]
    assert " parameters loaded" in errors and "Traceback" not in errors
    found = json.loads(out.read_text())
    assert set(found["metrics"]) == {"bbox", "segm", "boundary"} and found["images"] == 3
    assert found["metrics"]["segm"]["AP"] is not None
