import contextlib
import copy
import io
import json

import faster_coco_eval
import numpy as np
import pytest
import torch
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bmask.boundary import boundary_targets
from bmask.study.evaluate import average_precision, boundary_quality, calibration


def encode(mask):
    rle = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Random blocks on 12 images, of three classes and all COCO sizes, some crowds, and detections near and far."""
    rng = np.random.default_rng(0)
    images = [{"id": k + 1, "height": 160, "width": 200, "file_name": f"{k}.png"} for k in range(12)]
    annotations, detections = [], []
    for image in images:
        for _ in range(rng.integers(0, 9)):
            height, width = rng.integers(4, 130, 2)
            y, x = rng.integers(0, 160 - height), rng.integers(0, 200 - width)
            mask = np.zeros((160, 200), bool)
            mask[y : y + height, x : x + width] = True
            mask[y : y + height // 3, x : x + width // 3] = False
            category = int(rng.integers(1, 4))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "segmentation": encode(mask),
                    "bbox": [int(v) for v in (x, y, width, height)],
                    "area": int(mask.sum()),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = np.roll(mask, rng.integers(-6, 7, 2), (0, 1))
                detections.append(
                    {
                        "image_id": image["id"],
                        "category_id": category if rng.random() < 0.9 else int(rng.integers(1, 4)),
                        "segmentation": encode(moved),
                        "bbox": [float(v) for v in rle_tools.toBbox(encode(moved))],
                        "score": float(rng.random()),
                    }
                )
    truth = tmp_path_factory.mktemp("truth") / "instances.json"
    categories = [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)]
    truth.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
    return truth, detections


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_is_that_of_pycocotools(scene, kind):
    truth, detections = scene
    ours = average_precision(truth, detections)[kind]
    if kind == "segm":
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(truth))
        evaluation = COCOeval(reference, reference.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [ours[n] for n in names] == pytest.approx(list(100 * evaluation.stats[:6]), abs=1e-9)
    assert 20 < ours["AP"] < 80  # the scene is neither trivial nor hopeless
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    assert list(ours["per_iou"]) == ["0.50", "0.55", "0.60", "0.65", "0.70", "0.75", "0.80", "0.85", "0.90", "0.95"]
    assert list(ours["per_iou"].values()) == pytest.approx(100 * precision.mean((1, 2)), abs=1e-9)
    assert list(ours["per_class"].values()) == pytest.approx(100 * precision.mean((0, 1)), abs=1e-9)


def test_boundary_ap_is_100_for_the_truth_itself_and_strict_about_a_shift(scene):
    truth, _ = scene
    annotations = [a for a in json.loads(truth.read_text())["annotations"] if not a["iscrowd"]]
    perfect = [
        {k: a[k] for k in ("image_id", "category_id", "segmentation", "bbox")} | {"score": 1.0} for a in annotations
    ]
    assert average_precision(truth, perfect)["boundary"]["AP"] == pytest.approx(100)
    shifted = []
    for d in perfect:
        mask = np.roll(rle_tools.decode(d["segmentation"]), 3, axis=1)
        shifted.append({**d, "segmentation": encode(mask)})
    result = average_precision(truth, shifted)
    assert result["boundary"]["AP"] < result["segm"]["AP"] - 10


def test_boundary_ap_is_that_of_the_library_which_computes_every_boundary(scene):
    truth, detections = scene
    found = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    reference = faster_coco_eval.COCO(str(truth))
    evaluation = faster_coco_eval.COCOeval_faster(reference, reference.loadRes(found), "boundary", print_function=print)
    evaluation.run()
    ours = average_precision(truth, detections, kinds=["boundary"])["boundary"]
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [ours[n] for n in names] == pytest.approx(list(100 * np.array(evaluation.stats[:6])), abs=1e-9)
    assert 5 < ours["AP"] < 80


def test_areas_that_are_missing_are_those_of_the_masks(scene, tmp_path):
    truth, detections = scene
    content = json.loads(truth.read_text())
    for annotation in content["annotations"]:
        del annotation["area"]
    (tmp_path / "without.json").write_text(json.dumps(content))
    ours = average_precision(tmp_path / "without.json", detections, resamples=0)
    assert ours == average_precision(truth, detections, resamples=0)
    assert len({ours["segm"][name] for name in ("APs", "APm", "APl")}) == 3


def test_the_ids_of_annotations_do_not_matter(scene, tmp_path):
    truth, detections = scene
    content = json.loads(truth.read_text())
    for annotation in content["annotations"]:
        annotation["id"] = str(annotation["id"] - 3)
    (tmp_path / "renumbered.json").write_text(json.dumps(content))
    given = copy.deepcopy(detections)
    assert average_precision(tmp_path / "renumbered.json", detections) == average_precision(truth, detections)
    assert detections == given  # nor is what is measured changed


def test_no_detection_is_an_ap_of_zero(scene):
    result = average_precision(scene[0], [])
    assert result["segm"]["AP"] == result["bbox"]["AP"] == result["boundary"]["AP"] == 0


def test_detections_beyond_the_limit_do_not_count(scene):
    truth, detections = scene
    one = average_precision(truth, detections, max_dets=1)["segm"]["AP"]
    assert one < average_precision(truth, detections)["segm"]["AP"]


def test_resamples_are_ap_on_images_drawn_anew(scene, tmp_path):
    """Against pycocotools on a data set in which each image stands as often as it was drawn."""
    truth, detections = scene
    told = []
    ours = average_precision(truth, detections, resamples=3, report=told.append)
    assert told[:3] == ["AP of boxes", "AP of boxes on resamples", "AP of masks"]
    content = json.loads(truth.read_text())
    ids = sorted(image["id"] for image in content["images"])
    draws = np.random.default_rng(0).integers(len(ids), size=(3, len(ids)))
    for k, draw in enumerate(draws):
        images, annotations, found = [], [], []
        for number, drawn in enumerate(ids[i] for i in draw):
            images.append({**next(x for x in content["images"] if x["id"] == drawn), "id": number})
            for a in (x for x in content["annotations"] if x["image_id"] == drawn):
                annotations.append({**a, "image_id": number, "id": len(annotations) + 1})
            found += [{**d, "image_id": number} for d in detections if d["image_id"] == drawn]
        path = tmp_path / "drawn.json"
        path.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
        for kind in ("bbox", "segm"):
            with contextlib.redirect_stdout(io.StringIO()):
                reference = COCO(str(path))
                evaluation = COCOeval(reference, reference.loadRes(copy.deepcopy(found)), kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            resample = [ours[kind]["bootstrap"][name][k] for name in ("AP", "AP50", "AP75")]
            assert resample == pytest.approx(list(100 * evaluation.stats[:3]), abs=1e-9)


def test_models_on_the_same_images_share_their_resamples(scene):
    truth, detections = scene
    all_of_them = average_precision(truth, detections, resamples=20)["segm"]["bootstrap"]["AP"]
    most = average_precision(truth, detections[3:], resamples=20)["segm"]["bootstrap"]["AP"]
    assert np.corrcoef(all_of_them, most)[0, 1] > 0.9


def test_mask_scores_rank_masks_and_not_boxes(scene):
    truth, detections = scene
    scored = [{**d, "mask_score": 1 - d["score"]} for d in detections]
    turned = [{**d, "score": 1 - d["score"]} for d in detections]
    ours, plain, other = (average_precision(truth, d) for d in (scored, detections, turned))
    assert ours["bbox"] == plain["bbox"]
    assert ours["segm"] == other["segm"] != plain["segm"]
    assert ours["boundary"] == other["boundary"]


def ring(inner, outer, shift=0, side=28):
    """A square boundary: pixels at a distance of ``inner`` to ``outer`` from the middle."""
    x, y = torch.arange(side) - 13.5 - shift, torch.arange(side) - 13.5
    distance = torch.maximum(x.abs()[None, :], y.abs()[:, None])
    return ((distance > inner) & (distance < outer)).float()


def test_the_quality_of_boundaries_in_hand_worked_cases():
    truth = ring(8, 9)  # 18 x 18 pixels, one thick
    predicted = torch.stack([truth, ring(7, 10), ring(8, 9, shift=1), ring(8, 9, shift=2), 0.5 * truth])
    quality = boundary_quality(predicted, truth.expand(5, -1, -1))
    # A ring of one pixel has 68 pixels and 72 + 64 sides; one of three has 204, and 80 + 56.
    assert quality["thickness"][:2].tolist() == pytest.approx([68 / 68, 204 / 68])
    # What is at most one pixel away meets. Shifted by two, 17 of 18 pixels above and below do, and 2 of the
    # near column, next to the rows.
    assert quality["precision"][:3].tolist() == [1, 1, 1] and quality["recall"][:3].tolist() == [1, 1, 1]
    assert quality["precision"][3] == pytest.approx(36 / 68) == quality["recall"][3]
    assert quality["thickness"][4].isnan() and quality["precision"][4].isnan() and quality["recall"][4] == 0
    exact = boundary_quality(predicted, truth.expand(5, -1, -1), tolerance=0)
    assert exact["recall"][:2].tolist() == [1, 1] and exact["precision"][1] == pytest.approx(68 / 204)


def test_boundary_targets_have_a_thickness_of_about_one_in_any_direction():
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    shapes = torch.stack([x.abs() + y.abs() < 12, (x**2 + y**2) < 144, (x.abs() < 9) & (y.abs() < 5)])
    targets = boundary_targets(shapes)
    assert boundary_quality(targets, targets)["thickness"].tolist() == pytest.approx([1, 1, 1], abs=0.1)


def test_calibration_counts_pixels_by_their_probability():
    probabilities = torch.tensor([[[0.0, 0.05, 0.95], [1.0, 0.55, 0.52]]])
    targets = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]])
    found = calibration(probabilities, targets)
    assert found.shape == (10, 3) and found[:, 0].sum() == 6
    assert found[0].tolist() == pytest.approx([2, 0.05, 1]) and found[9].tolist() == pytest.approx([2, 1.95, 2])
    assert found[5].tolist() == pytest.approx([2, 1.07, 1])
