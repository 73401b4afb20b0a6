"""Masks in true boxes: against hand-worked cases, and kept object by object."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import rle, write_image
from detectron2.structures import Boxes, Instances

from bmask.study import config, datasets, files, runs, stats, true_boxes
from bmask.study.datasets import Split
from bmask.study.launch import work


def square(x: int, y: int, side: int) -> torch.Tensor:
    mask = torch.zeros(1, 28, 28, dtype=torch.bool)
    mask[0, y : y + side, x : x + side] = True
    return mask


@pytest.mark.parametrize(
    "mask,iou,f",
    [
        (square(10, 10, 4), 100, 100),
        (square(11, 10, 4), 60, 100),  # 12 of 20 pixels; each pixel of the boundary within one of the other's
        (square(13, 10, 4), 100 * 4 / 28, 100 * 6 / 12),  # one column of four in common; two of four columns within one
        (square(20, 20, 4), 0, 0),
        (square(0, 0, 0), 0, 0),
    ],
)
def test_iou_and_the_boundarys_f_score_of_a_square(mask, iou, f):
    found = true_boxes.compare(mask, square(10, 10, 4))
    assert (found["IoU"][0], found["F"][0]) == (pytest.approx(iou), pytest.approx(f))
    assert found["IoU75"][0] == 100 * (iou > 75)


def test_an_object_without_a_pixel_has_no_value():
    assert all(np.isnan(values).all() for values in true_boxes.compare(square(1, 1, 3), square(0, 0, 0)).values())
    assert true_boxes.means({"image": np.array([0]), "F": np.array([np.nan])}) == {"F": None}


class Oracle:
    """A model that knows the masks: they are what the RoI of the image, which is white in them, shows."""

    def inference(self, inputs, given, do_postprocess):
        (image,), (rois,) = inputs, given
        masks = (image["image"][0] > 127).numpy()
        shown = true_boxes.in_rois(np.stack([masks] * len(rois)), rois.pred_boxes.tensor.numpy())
        rois.pred_masks = torch.from_numpy(shown)[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)  # 56x56
        return [rois]


@pytest.fixture
def split(tmp_path):
    """Three images of 60x40 with two rectangles, none and one, and a crowd."""
    annotations = []
    for number, objects in ((3, [(4, 6, 20, 18), (30, 10, 25, 28)]), (5, []), (9, [(10, 10, 30, 20)])):
        picture = np.zeros((40, 60, 3), np.uint8)
        for x, y, width, height in objects:
            mask = np.zeros((40, 60), bool)
            mask[y : y + height, x : x + width] = True
            picture[mask] = 255
            annotation = {"image_id": number, "category_id": 1, "area": int(mask.sum()), "segmentation": rle(mask)}
            annotations.append({**annotation, "bbox": [x - 2, y - 2, width + 4, height + 4], "iscrowd": 0})
        write_image(tmp_path / f"{number}.png", picture)
    annotations.append({**annotations[0], "iscrowd": 1})
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    images = [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (9, 3, 5)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return Split(tmp_path / "truth.json", tmp_path)


def test_a_model_that_knows_the_masks_has_them_at_any_input_size(split):
    cfg = runs.on_device(config.resolve("mask_rcnn", "smoke"), "cpu")
    steps = []
    for size in (40, 80):
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = size, 2 * size
        found = true_boxes.measure(cfg, Oracle(), split.load(), split.json, lambda *step: steps.append(step))
        assert found["image"].tolist() == [0, 0, 2]
        assert (found["IoU"] > 93).all() and (found["F"] == 100).all()
    assert steps == 2 * [(1, 3), (2, 3), (3, 3)]


def test_masks_are_compared_with_annotations_as_coarse_as_those_of_the_training(split, tmp_path):
    """The annotations have the upper half of each rectangle: an IoU of a half, which masks have more or less than."""
    content = json.loads(split.json.read_text())
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        half = np.zeros((40, 60), bool)
        half[y + 2 : y + height // 2, x + 2 : x + width - 2] = True
        annotation["segmentation"] = rle(half)
    (tmp_path / "coarse.json").write_text(json.dumps(content))
    cfg = runs.on_device(config.resolve("mask_rcnn", "smoke"), "cpu")
    found = true_boxes.measure(cfg, Oracle(), split.load(), split.json, lambda *_: None, tmp_path / "coarse.json")
    assert found["finer"] == pytest.approx(found["IoU"] - 50, abs=4)


def test_overlaps_are_of_the_pixels_of_a_mask_that_others_have_as_well():
    boxes = [[0.0, 0, 10, 10], [8, 0, 18, 10], [10, 10, 20, 20], [18, 10, 28, 20], [30, 30, 40, 40]]
    masks = torch.ones(5, 1, 28, 28)
    masks[3] = 0  # meets the third box, and has no pixels
    found = true_boxes.overlaps(Instances((40, 40), pred_boxes=Boxes(torch.tensor(boxes)), pred_masks=masks))
    # Two of ten columns are in common. A box that only touches another, or that is alone, has no value.
    assert found[:4].tolist() == pytest.approx([20, 20, 0, 0]) and found[4].isnan()


def test_records_have_the_means_over_the_objects_of_the_images_drawn(output):
    run = runs.Run("mask_rcnn", "smoke", 0)
    objects = {"image": np.array([0, 0, 2]), "IoU": np.array([50.0, 70, 81]), "F": np.array([1.0, np.nan, 4])}
    by_image = stats.by_image(objects, 4)
    metrics = {"true_boxes": {**true_boxes.means(objects), "by_image": by_image}, "segm": {"AP": 1.0}}
    runs.keep(run, {"metrics": metrics})
    runs.publish(run)
    assert "by_image" not in run.published.read_text()
    record = run.record()
    assert record["metrics"]["true_boxes"]["by_image"] == {
        "IoU": [[120, 0, 81, 0], [2, 0, 1, 0]],
        "F": [[1, 0, 4, 0], [1, 0, 1, 0]],
    }
    drawn = [np.repeat(range(4), times) for times in stats.times(4)]
    for name, found in record["metrics"]["true_boxes"]["bootstrap"].items():
        for draw, mean in zip(drawn[:50], found):
            values = [v for image in draw for i, v in zip(objects["image"], objects[name]) if i == image and v == v]
            assert mean == (pytest.approx(np.mean(values)) if values else None)


def test_a_second_test_set_of_the_same_images_gives_the_same_numbers(output, monkeypatch):
    monkeypatch.setattr(config, "OUTPUT", output)
    base = f"_BASE_: {config.EXPERIMENTS}/profiles/smoke.yaml"
    files.write_bytes(output / "profiles/twice.yaml", f"{base}\nSTUDY: {{SECOND_TEST: again}}\n".encode())
    run = runs.Run("mask_rcnn", "twice", 0)
    val = datasets.prepare(run.cfg, None, output).val
    shutil.copytree(val.images, output / "data/again/images")
    shutil.copy(val.json, output / "data/again/instances.json")
    assert work.work(run, runs.Options("cpu")) == 0
    record = run.record()
    for kind in ("bbox", "segm", "boundary", "true_boxes"):
        assert record["metrics"][f"{kind}_second"] == record["metrics"][kind]
    assert record["second_fingerprint"] and record["metrics"]["true_boxes"]["images"] == 4
