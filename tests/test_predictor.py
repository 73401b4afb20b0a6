import json

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

import bmask as package
from bmask import datasets, evaluate, runs
from bmask.__main__ import main
from bmask.errors import InputError
from bmask.images import read_image
from bmask.predictor import image_paths

RUN = runs.Run("bmask_rcnn", "smoke", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained run, its weights, and its validation images."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUT", folder)
        assert runs.work(RUN, runs.Options(device="cpu")) == 0
        return datasets.prepare(RUN.cfg, None, folder), RUN.folder / "checkpoint.pth"


@pytest.fixture(scope="module")
def images(made):
    return [read_image(path) for path in sorted(made[0].val.images.glob("*.png"))]


def test_three_lines_of_python_find_what_the_evaluation_finds(made, images):
    data, weights = made
    predictor = package.Predictor(weights, device="cpu")
    instances = predictor(images[0])
    cfg = runs.on_device(RUN.cfg, "cpu")
    model = evaluate.load_model(cfg, weights)
    dataset = sorted(data.val.load(), key=lambda x: x["image_id"])[:1]
    detections, _ = evaluate.detect(cfg, model, dataset, data.val.category_ids(), lambda *_: None)
    assert len(instances) == len(detections) > 0
    assert instances.scores.tolist() == pytest.approx([d["score"] for d in detections])
    masks = [COCO(str(data.val.json)).annToMask(d) for d in detections]
    assert (instances.pred_masks.numpy() == np.array(masks)).all()
    assert predictor.classes == ["star", "blob", "gear", "leaf"]


def test_a_batch_finds_what_single_images_do_each_at_its_own_size(made, images):
    predictor = package.Predictor(made[1], device="cpu", boundaries=True)
    for image, found in zip(images, predictor(images)):
        alone = predictor(image)
        assert torch.allclose(found.scores, alone.scores, atol=1e-5)
        assert found.pred_boundaries.shape == (len(found), 1, 28, 28)
    shapes = [found.image_size for found in predictor([images[0], cv2.resize(images[1], (128, 64))])]
    assert shapes == [(64, 64), (64, 128)]


def test_the_exported_model_finds_the_same_in_images_of_another_size(made, images, tmp_path):
    predictor = package.Predictor(made[1], device="cpu")
    path = tmp_path / "model.ts"
    predictor.export(path, images[0])
    traced = torch.jit.load(str(path))
    for image in (images[1], cv2.resize(images[2], (96, 64))):
        inputs = predictor.inputs(image)
        with torch.no_grad():
            expected = predictor.model.inference([inputs], do_postprocess=False)[0]
            boxes, classes, masks, scores, size = traced(inputs["image"])
        assert torch.allclose(boxes, expected.pred_boxes.tensor, atol=1e-4)
        assert torch.equal(classes, expected.pred_classes) and tuple(size) == inputs["image"].shape[1:]
        assert torch.allclose(masks, expected.pred_masks, atol=1e-5)
        assert torch.allclose(scores, expected.scores, atol=1e-5)


def test_predict_writes_overlays_boundaries_and_coco_and_skips_what_is_broken(made, images, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    for name, image in zip(("a/one.png", "b/one.png", "b/two.jpg"), images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image[:, :, ::-1])
    (folder / "b/broken.png").write_bytes((folder / "b/one.png").read_bytes()[:100])
    arguments = ["predict", folder / "a/one.png", folder / "b", folder / "b/*.jpg", "--weights", made[1]]
    arguments += ["--boundaries", "--min-score", "0", "--out", out, "--device", "cpu"]
    assert main([*map(str, arguments)]) == 1
    said, err = capsys.readouterr()
    assert "3 of 4 images" in said and "broken.png is no image that can be read" in err
    names = {path.name for path in out.iterdir()}
    assert {"one.png", "one_boundaries.png", "one_1.png", "two.png", "predictions.json"} <= names
    assert len(names) == 7
    assert cv2.imread(str(out / "one.png")).shape == (64, 64, 3)
    found = COCO(str(out / "predictions.json"))
    assert [image["file_name"].rsplit("/", 2)[1:] for image in found.imgs.values()] == [
        ["a", "one.png"],
        ["b", "one.png"],
        ["b", "two.jpg"],
    ]
    assert {a["category_id"] for a in found.anns.values()} <= {1, 2, 3, 4}
    for annotation in found.anns.values():
        assert found.annToMask(annotation).sum() == annotation["area"] and 0 <= annotation["score"] <= 1


def test_wrong_input_is_one_sentence(made, tmp_path):
    with pytest.raises(InputError, match="there are no weights"):
        package.Predictor(tmp_path / "none.pth")
    with pytest.raises(InputError, match="there is no image"):
        image_paths([str(tmp_path / "*.png")])
    (tmp_path / "checkpoint.pth").write_bytes(made[1].read_bytes())
    with pytest.raises(InputError, match="give one with --config"):
        package.Predictor(tmp_path / "checkpoint.pth")
    record = json.loads(made[1].with_name("record.json").read_text())
    record["config"] = record["config"].replace("SUPERVISION: boundary", "SUPERVISION: mask")
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="has not learned boundaries"):
        package.Predictor(tmp_path / "checkpoint.pth", device="cpu", boundaries=True)
