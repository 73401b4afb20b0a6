import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes
from pycocotools.coco import COCO

from bmask.errors import InputError
from bmask.study import datasets, evaluate, predictions, runs
from bmask.study.launch import work
from bmask.study.predictions import PARTS
from bmask.study.true_boxes import SIDE

CPU = runs.Options(device="cpu")
RUN = runs.Run("bmask_rcnn_coarse08", "smoke", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and its predictions."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUT", folder)
        patch.setattr(predictions, "MIN_SCORE", 0.0)  # six iterations find nothing that they are sure of
        assert work.work(RUN, CPU) == 0
        predictions.ensure({RUN: PARTS[2:]}, CPU)
        predictions.ensure({RUN: PARTS[:2]}, CPU)  # beside what has been kept
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.setattr(runs, "OUTPUT", made)
    return made


def test_the_pictures_and_objects_are_those_of_the_validation_set(here):
    images = predictions.load_images([RUN])
    data = datasets.prepare(RUN.cfg, None, here)
    truth = COCO(str(data.val.json))
    assert len(images.pictures) == 4 and images.pictures[0].shape == (64, 64, 3)
    assert len(images.masks) == len(truth.anns) == len(images.boxes) == len(images.roi_masks)
    annotations = [a for k in sorted(truth.imgs) for a in truth.imgToAnns[k]]
    for annotation, mask, box, k in zip(annotations, images.masks, images.boxes, images.image_of):
        assert (mask == truth.annToMask(annotation)).all() and annotation["image_id"] == k + 1
        ys, xs = np.nonzero(mask)
        assert list(box) == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_detections_pasted_are_the_evaluated_ones(here):
    """The kept 28x28 masks, in their boxes, are the masks of the results file, up to rounding."""
    images, found = predictions.load_images([RUN]), predictions.load(RUN, ["found"])
    data = datasets.prepare(RUN.cfg, None, here)
    model = evaluate.load_model(runs.on_device(RUN.cfg, "cpu"), RUN.folder / "checkpoint.pth")
    dataset = sorted(data.val.load(), key=lambda image: image["image_id"])
    cfg = runs.on_device(RUN.cfg, "cpu")
    detections, _ = evaluate.detect(cfg, model, dataset, data.category_ids, lambda *_: None)
    assert len(detections) == len(found.found_masks) > 4
    reference = COCO(str(data.val.json)).loadRes(detections)
    masks = [reference.annToMask(a) for a in reference.dataset["annotations"]]
    boxes = Boxes(torch.from_numpy(found.found_boxes))
    pasted = paste_masks_in_image(torch.from_numpy(found.found_masks).float(), boxes, images.pictures[0].shape[:2])
    assert np.mean(pasted.numpy() == np.array(masks)) > 0.98


def test_predictions_in_true_boxes_and_their_quality(here):
    images, found = predictions.load_images([RUN]), predictions.load(RUN, PARTS)
    number = len(images.masks)
    assert found.masks.shape == found.boundaries.shape == found.annotated.shape == (number, SIDE, SIDE)
    assert 0 <= found.boundaries.min() < found.boundaries.max() <= 1
    assert set(found.quality) == {"image", "thickness", "precision", "recall"}
    assert (found.quality["image"] == images.image_of).all()  # all four validation images are kept
    assert found.calibration[:, 0].sum() == number * SIDE**2
    assert found.calibration[:, 2].sum() == images.roi_boundaries.sum()
    ious = [(a & m).sum() / (a | m).sum() for a, m in zip(found.annotated, images.roi_masks)]
    assert 0.75 < np.mean(ious) < 0.95


@pytest.mark.parametrize("levels", predictions.LEVELS.values())
def test_a_rounded_probability_stays_on_its_side_of_one_half(levels):
    above = np.nextafter(np.float32(0.5), np.float32(1))
    given = np.append(np.linspace(0, 1, 1001, dtype=np.float32), above)
    rounded = predictions._rounded(given, levels) / (levels - 1)
    assert ((rounded > 0.5) == (given > 0.5)).all() and np.abs(rounded - given).max() < 0.501 / (levels - 1)


def test_kept_predictions_are_not_made_again_and_belong_to_one_record(here, tmp_path, monkeypatch):
    path = predictions._path(RUN)
    before = path.stat().st_mtime_ns
    predictions.ensure({RUN: PARTS}, CPU)
    assert path.stat().st_mtime_ns == before
    record = json.loads(RUN.published.read_text())
    original = RUN.published.read_bytes()
    try:
        RUN.published.write_bytes(runs.as_json({**record, "seed": 1}))
        with pytest.raises(InputError, match="another training; `python -m bmask predictions --variant"):
            predictions.load(RUN, ())
    finally:
        RUN.published.write_bytes(original)
    assert predictions.load(RUN, PARTS).masks.shape[1:] == (SIDE, SIDE)


def test_shipped_predictions_are_read_where_none_were_made_here(here, tmp_path, monkeypatch):
    shutil.copytree(runs.results(), tmp_path / "shipped")
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(runs, "OUTPUT", tmp_path / "elsewhere")
    with np.load(here / "results/local/smoke/predictions" / f"{RUN.name}.npz") as stored:
        made = stored["masks"] / np.float32(predictions.LEVELS["masks"] - 1)
    assert made.any() and (predictions.load(RUN, PARTS).masks == made).all()
    assert len(predictions.load_images([RUN]).pictures) == 4


def test_predictions_of_a_run_that_was_not_trained_here_are_not_made_up(here, tmp_path, monkeypatch):
    other = runs.Run("bmask_rcnn", "smoke", 0)
    with pytest.raises(InputError, match="was not trained here"):
        predictions.ensure({other: PARTS}, CPU)


def test_first_images_without_objects_are_kept_like_others(here, monkeypatch):
    monkeypatch.setattr(predictions.true_boxes, "objects", lambda truth, image: [])
    data, path = datasets.prepare(RUN.cfg, None, here), predictions._path(RUN).with_name(predictions.IMAGES)
    before = path.read_bytes()
    path.unlink()
    try:
        credits = dict.fromkeys(range(1, 5), "")
        images = predictions._keep_images("smoke", data, data.val.load(), credits)
        assert len(images.pictures) == 4 and len(images.masks) == 0 and images.roi_masks.shape == (0, SIDE, SIDE)
        bar = SimpleNamespace(update=lambda: None)
        arrays = predictions._predict(RUN, ("masks", "boundaries"), data, data.val.load(), images, "cpu", bar)
        assert arrays["masks"].shape == arrays["boundaries"].shape == (0, SIDE, SIDE)
        with pytest.raises(InputError, match="the first 4 test images hold no object to draw"):
            predictions.load_all({RUN: ()})
    finally:
        path.write_bytes(before)


def test_figures_show_pictures_that_may_be_passed_on_and_say_whose_they_are():
    def credits(*images):
        return predictions._credits([{"id": k, **image} for k, image in enumerate(images)])

    free, other = {"flickr_url": "http://a", "license": 4}, {"flickr_url": "http://b", "license": 3}
    unnamed = {"flickr_url": "http://c"}
    assert credits(other, free, unnamed) == {1: "http://a (CC BY 2.0)"}
    assert credits({}, {"license": 3}) == {0: "", 1: ""}  # data of one's own
    assert credits(other, unnamed) == {0: "", 1: ""}  # none may: the results of a reader show them
