"""What is sent to the evaluation servers, and Cityscapes' own average precision."""

import copy
import json
import re
import sys
import zipfile
from pathlib import Path

import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as scripts
import cv2
import numpy as np
import pytest
from conftest import complaint, contents, rle, write_image
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from bmask.study import submission

NAMES = ["frankfurt_000000_000294", "frankfurt_000001_007973", "lindau_000012_000019"]
IMAGES = [
    {"image_id": i, "file_name": f"/data/leftImg8bit/val/{n.split('_')[0]}/{n}_leftImg8bit.png"}
    for i, n in enumerate(NAMES)
]


def road() -> np.ndarray:
    return np.full((64, 128), 7, np.uint16)


def street() -> np.ndarray:
    ids = road()
    ids[:8] = 0  # unlabelled
    ids[10:30, 10:30] = 24000
    ids[10:30, 40:60] = 24001
    ids[40:60, 10:40] = 26000
    ids[40:60, 60:100] = 33  # bicycles in a group
    return ids


@pytest.fixture
def truth(tmp_path):
    """A street and an empty road in one city, a car in the other; only people, cars and a bicycle group."""
    car = road()
    car[20:40, 50:80] = 26000
    return write_truth(tmp_path / "gtFine/val", [street(), road(), car])


def write_truth(gt_root: Path, all_ids: list[np.ndarray]) -> Path:
    for name, ids in zip(NAMES, all_ids):
        write_image(gt_root / name.split("_")[0] / f"{name}_gtFine_instanceIds.png", ids)
    return gt_root


def detection(image: int, label: int, rows: tuple, columns: tuple, score: float = 0.5, **more) -> dict:
    mask = np.zeros((64, 128), np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    box = [float(columns[0]), float(rows[0]), float(columns[1] - columns[0]), float(rows[1] - rows[0])]
    found = {"image_id": image, "category_id": label, "bbox": box, "score": score, "segmentation": rle(mask)}
    return {**found, **more}


def perfect() -> list[dict]:
    return [
        detection(0, 24, (10, 30), (10, 30), 0.9),
        detection(0, 24, (10, 30), (40, 60), 0.8),
        detection(0, 26, (40, 60), (10, 40), 0.7),
        detection(2, 26, (20, 40), (50, 80), 1e-05),
    ]


def unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


# --- COCO


def test_the_coco_zip_holds_one_json_with_the_documented_fields_and_no_others(tmp_path):
    submission.coco_zip(perfect(), tmp_path / f"{submission.COCO_NAME}.zip")
    (name,) = contents(unpack(tmp_path / "detections_test-dev2017_bmask_results.zip", tmp_path / "unpacked"))
    assert name == "detections_test-dev2017_bmask_results.json"
    entries = json.loads((tmp_path / "unpacked" / name).read_text())
    assert len(entries) == 4
    for entry, made in zip(entries, perfect()):
        types = {key: type(value) for key, value in entry.items()}
        assert types == {"image_id": int, "category_id": int, "segmentation": dict, "score": float}
        assert entry == {key: made[key] for key in types}
        assert {key: type(value) for key, value in entry["segmentation"].items()} == {"size": list, "counts": str}


def test_pycocotools_loads_the_coco_json_as_the_server_does(tmp_path):
    submission.coco_zip(perfect(), tmp_path / "a.zip")
    truth = COCO()
    truth.dataset = {"images": [{"id": i} for i in range(3)], "categories": [], "annotations": []}
    truth.createIndex()
    loaded = truth.loadRes(str(unpack(tmp_path / "a.zip", tmp_path / "b") / f"{submission.COCO_NAME}.json"))
    assert [loaded.anns[k]["area"] for k in sorted(loaded.anns)] == [400, 400, 600, 600]
    assert list(loaded.anns[1]["bbox"]) == perfect()[0]["bbox"]


def test_the_mask_score_is_sent_where_there_is_one(tmp_path):
    scored, unscored = detection(0, 1, (0, 5), (0, 5), 0.9, mask_score=0.25), detection(0, 1, (0, 5), (0, 5), 0.75)
    detections = [scored, unscored]
    submission.coco_zip(detections, tmp_path / "a.zip")
    (content,) = contents(unpack(tmp_path / "a.zip", tmp_path / "b")).values()
    assert [entry["score"] for entry in json.loads(content)] == [0.25, 0.75]
    submission.write_cityscapes(detections, IMAGES[:1], tmp_path / "c")
    lines = (tmp_path / f"c/{NAMES[0]}_leftImg8bit_pred.txt").read_text().splitlines()
    assert [line.split(" ")[2] for line in lines] == ["0.25", "0.75"]


def test_no_detections_are_an_empty_list(tmp_path):
    submission.coco_zip([], tmp_path / "a.zip")
    assert list(contents(unpack(tmp_path / "a.zip", tmp_path / "b")).values()) == [b"[]"]


# --- Cityscapes


def test_every_image_has_a_text_file_whose_lines_name_a_mask_a_label_and_a_score(tmp_path):
    submission.write_cityscapes(perfect(), IMAGES, tmp_path / "results")
    texts = sorted(path.name for path in (tmp_path / "results").glob("*.txt"))
    assert texts == [f"{name}_leftImg8bit_pred.txt" for name in NAMES]
    seen = set(texts)
    for image, text in enumerate(texts):
        made = [d for d in perfect() if d["image_id"] == image]
        lines = (tmp_path / "results" / text).read_text().splitlines()
        for line, d in zip(lines, made, strict=True):
            assert re.fullmatch(r"\S+\.png \d+ \d+(\.\d+)?(e-\d+)?", line)
            name, label, score = line.split(" ")
            assert "/" not in name and name not in seen
            seen.add(name)
            assert (int(label), float(score)) == (d["category_id"], d["score"])
            mask = cv2.imread(str(tmp_path / "results" / name), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint8 and (mask == 255 * rle_tools.decode(d["segmentation"])).all()
    assert set(contents(tmp_path / "results")) == seen


def test_detections_of_other_images_are_left_out(tmp_path):
    submission.write_cityscapes(perfect(), IMAGES[1:2], tmp_path)
    assert contents(tmp_path) == {f"{NAMES[1]}_leftImg8bit_pred.txt": b""}


def test_the_cityscapes_zip_holds_the_same_files_at_its_top_level(tmp_path):
    submission.write_cityscapes(perfect(), IMAGES, tmp_path / "results")
    submission.cityscapes_zip(perfect(), IMAGES, tmp_path / "a.zip")
    assert contents(unpack(tmp_path / "a.zip", tmp_path / "unpacked")) == contents(tmp_path / "results")


def evaluate_img_lists(folder: Path, truth: Path) -> dict:
    """The averages as detectron2's CityscapesInstanceEvaluator has them computed."""
    args = copy.copy(scripts.args)
    args.predictionPath, args.predictionWalk = str(folder), None
    args.JSONOutput, args.colorized = False, False
    args.gtInstancesFile = str(folder / "none.json")
    truths = [str(path) for path in sorted(truth.glob("*/*_gtFine_instanceIds.png"))]
    predicted = [scripts.getPrediction(path, args) for path in truths]
    return scripts.evaluateImgLists(predicted, truths, args)["averages"]


def test_cityscapesscripts_takes_the_unpacked_zip_and_measures_the_same(truth, tmp_path, monkeypatch):
    detections = [
        *perfect()[1:],
        detection(0, 24, (12, 30), (8, 27), 0.6),
        detection(0, 24, (12, 40), (8, 27), 0.95),
        detection(2, 33, (20, 40), (50, 80), 0.3),
    ]
    submission.cityscapes_zip(detections, IMAGES, tmp_path / "a.zip")
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # without these it fails with numpy 2.4
    monkeypatch.setattr(scripts, "writeDict2JSON", lambda *_: None)
    theirs = evaluate_img_lists(unpack(tmp_path / "a.zip", tmp_path / "unpacked"), truth)
    ours = submission.cityscapes_average_precision(detections, IMAGES, truth)
    assert 0 < ours["AP"] < ours["AP50"] < 100
    assert (ours["AP"], ours["AP50"]) == (100 * theirs["allAp"], 100 * theirs["allAp50%"])
    assert set(ours["per_class"]) == set(theirs["classes"])
    for name, value in ours["per_class"].items():
        assert (value is None) == np.isnan(theirs["classes"][name]["ap"])
        assert value is None or value == 100 * theirs["classes"][name]["ap"]


def test_perfect_detections_have_an_ap_of_100_and_absent_classes_none(truth):
    result = submission.cityscapes_average_precision(perfect(), IMAGES, truth)
    absent = dict.fromkeys(["rider", "truck", "bus", "train", "motorcycle", "bicycle"])
    assert result == {"AP": 100, "AP50": 100, "per_class": {"person": 100, "car": 100, **absent}}
    assert list(result["per_class"])[:3] == ["person", "rider", "car"]


def test_a_mask_shifted_by_a_fifth_counts_up_to_an_iou_of_two_thirds(truth):
    """16 of 20 columns shared: IoU 16 / 24, above 0.50, 0.55, 0.60 and 0.65, of ten thresholds."""
    first, second, *cars = perfect()
    shifted = [detection(0, 24, (10, 30), (14, 34), 0.9), detection(0, 24, (10, 30), (36, 56), 0.8)]
    result = submission.cityscapes_average_precision(shifted + cars, IMAGES, truth)
    assert result["per_class"]["person"] == pytest.approx(40)
    assert result["AP"] == pytest.approx((40 + 100) / 2)
    assert result["AP50"] == pytest.approx(100)


@pytest.mark.parametrize(("mask_scores", "ap"), [((), 25), ((0.9, 0.1), 100)])
def test_a_false_positive_that_ranks_first_by_its_mask_score_or_score_leaves_a_quarter(truth, mask_scores, ap):
    """Recall 1 at precision 1/2, before it 0 at 0: cityscapesScripts makes 1/2 x 1/2 of it, COCO 1/2."""
    found = [detection(2, 26, (20, 40), (50, 80), 0.5), detection(2, 26, (45, 60), (90, 120), 0.9)]
    for one, score in zip(found, mask_scores):
        one["mask_score"] = score
    result = submission.cityscapes_average_precision(found, IMAGES[2:], truth)
    assert result["per_class"]["car"] == pytest.approx(ap)


def test_detections_on_groups_and_unlabelled_pixels_are_ignored(tmp_path):
    ids = street()
    ids[40:60, 110:125] = 33000
    bicycle = detection(0, 33, (40, 60), (110, 125), 0.5)
    ignored = [detection(0, 33, (45, 55), (60, 90), 0.9), detection(0, 33, (0, 8), (60, 90), 0.8)]
    truth = write_truth(tmp_path, [ids])
    result = submission.cityscapes_average_precision([bicycle, *ignored], IMAGES[:1], truth)
    assert result["per_class"]["bicycle"] == 100


@pytest.mark.parametrize(
    ("found", "image", "ap"), [([], 0, 0), ([detection(0, 26, (0, 8), (60, 90))], 0, 0), ([], 1, None)]
)
def test_no_detection_or_none_but_ignored_ones_are_an_ap_of_0_and_none_without_objects(truth, found, image, ap):
    """For ignored ones alone cityscapesScripts' own code ends with an IndexError."""
    result = submission.cityscapes_average_precision(found, IMAGES[image : image + 1], truth)
    assert (result["AP"], result["AP50"], result["per_class"]["car"]) == (ap, ap, ap)
    assert image == 0 or set(result["per_class"].values()) == {None}


def test_the_evaluation_prints_nothing_and_leaves_nothing(truth, tmp_path, monkeypatch, capfd, recwarn):
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = (dict(vars(scripts.args)), hasattr(np, "in1d"))
    submission.cityscapes_average_precision([], IMAGES[1:2], truth)
    submission.cityscapes_average_precision(perfect(), IMAGES, truth)
    assert (dict(vars(scripts.args)), hasattr(np, "in1d")) == before
    assert capfd.readouterr() == ("", "") and not list(recwarn)
    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()]


# --- whole or not there


@pytest.mark.parametrize("write", ["coco_zip", "cityscapes_zip"])
def test_zips_are_whole_or_not_there_and_the_same_bytes_each_time(tmp_path, monkeypatch, write):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    images = [] if write == "coco_zip" else [IMAGES]
    for name in ("a.zip", "b.zip"):
        getattr(submission, write)(perfect(), *images, tmp_path / "out" / name)
    first, second = ((tmp_path / "out" / name).read_bytes() for name in ("a.zip", "b.zip"))
    assert first == second

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="no space left"):
        getattr(submission, write)([], *images, tmp_path / "out/a.zip")
    assert contents(tmp_path) == {"out/a.zip": first, "out/b.zip": second}


# --- wrong input


def test_an_image_without_annotation_is_one_sentence(truth):
    gone = truth / "lindau" / f"{NAMES[2]}_gtFine_instanceIds.png"
    gone.unlink()
    call = lambda: submission.cityscapes_average_precision(perfect(), IMAGES, truth)  # noqa: E731
    complaint(call, str(gone), IMAGES[2]["file_name"])


def test_without_cityscapesscripts_it_is_one_sentence(truth, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cityscapesscripts")]:
        monkeypatch.setitem(sys.modules, name, None)
    call = lambda: submission.cityscapes_average_precision(perfect(), IMAGES, truth)  # noqa: E731
    complaint(call, "cityscapesScripts pyquaternion")
