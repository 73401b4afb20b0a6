"""Cityscapes in its own layout, converted to COCO format: what a user may rely on."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import complaint, contents, write_image
from pycocotools import mask as rle_tools

from bmask.study.datasets import Split, cityscapes
from bmask.study.datasets.check import check_coco
from bmask.study.datasets.coco import category_ids

CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
CATEGORIES = list(zip((24, 25, 26, 27, 28, 31, 32, 33), CLASSES))
CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt", "lindau"), "test": ("berlin", "bonn")}


def street() -> np.ndarray:
    """Every kind of value in one 64 x 128 image of ids; there is no truck, bus, train or motorcycle."""
    ids = np.full((64, 128), 7, np.uint16)  # road
    ids[:8] = 23  # sky
    ids[58:] = 1  # ego vehicle
    ids[10:30, 5:15] = 24000
    ids[12:32, 15:25] = 24001  # touches the one before
    ids[10:20, 40:60] = 24  # people in a group
    ids[40:50, 0:30], ids[40:50, 10:20], ids[43:46, 127] = 26002, 17, 26002  # a car: a pole before it, and a bit
    ids[50, 60] = 25007  # one pixel
    ids[40:48, 70:90] = 33  # bicycles in a group
    ids[20:30, 70:90], ids[20:30, 95:110] = 29000, 30  # a caravan and trailers, which are not evaluated
    return ids


@pytest.fixture
def root(tmp_path):
    """Two cities a split: in the first one a street, in the second one an image of nothing but road."""
    for split, cities in CITIES.items():
        for city, ids in zip(cities, (street(), np.full((64, 128), 7, np.uint16))):
            name = f"{split}/{city}/{city}_000003_000019"
            write_image(tmp_path / f"root/leftImg8bit/{name}_leftImg8bit.png", np.zeros((64, 128, 3), np.uint8))
            if split != "test":
                write_image(tmp_path / f"root/gtFine/{name}_gtFine_instanceIds.png", ids)
                write_image(tmp_path / f"root/gtFine/{name}_gtFine_labelIds.png", np.zeros((64, 128), np.uint8))
    return tmp_path / "root"


@pytest.mark.parametrize("split", ["train", "val"])
def test_converted_files_pass_the_data_check_and_hold_single_instances_and_groups_alone(root, tmp_path, split):
    cityscapes.convert(root, tmp_path / "out")
    data = check_coco(tmp_path / f"out/instances_{split}.json", root / "leftImg8bit" / split)
    assert data["images"] == [
        {"id": k, "file_name": f"{city}/{city}_000003_000019_leftImg8bit.png", "height": 64, "width": 128}
        for k, city in enumerate(CITIES[split], 1)
    ]
    assert [(c["id"], c["name"]) for c in data["categories"]] == CATEGORIES
    assert category_ids(data) == [category for category, _ in CATEGORIES]
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4, 5, 6]
    found = [(a["image_id"], a["category_id"], a["iscrowd"]) for a in data["annotations"]]
    assert found == [(1, 24, 1), (1, 33, 1), (1, 24, 0), (1, 24, 0), (1, 25, 0), (1, 26, 0)]


def test_masks_boxes_and_areas_are_those_of_the_id_image(root, tmp_path):
    cityscapes.convert(root, tmp_path / "out")
    annotations = json.loads((tmp_path / "out/instances_train.json").read_text())["annotations"]
    for annotation, instance_id in zip(annotations, (24, 33, 24000, 24001, 25007, 26002), strict=True):
        mask = street() == instance_id
        assert (rle_tools.decode(annotation["segmentation"]) == mask).all()
        assert annotation["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert annotation["bbox"] == box
    assert annotations[4]["bbox"] == [60, 50, 1, 1]


def test_detectron2_loads_them_with_classes_counted_from_0(root, tmp_path):
    cityscapes.convert(root, tmp_path / "out")
    first, second = Split(tmp_path / "out/instances_val.json", root / "leftImg8bit/val").load()
    found = [(a["category_id"], a["iscrowd"]) for a in first["annotations"]]
    assert found == [(0, 1), (7, 1), (0, 0), (0, 0), (1, 0), (2, 0)]
    assert second["annotations"] == [] and Path(second["file_name"]).is_file()


def test_the_same_data_elsewhere_are_the_same_bytes(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy/of it")
    for source, target in ((root, "one"), (tmp_path / "copy/of it", "two")):
        cityscapes.convert(source, tmp_path / target)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}


def test_an_existing_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "out").mkdir()
    cityscapes.convert(tmp_path / "none", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_conversion_leaves_nothing_behind(root, tmp_path, monkeypatch):
    whole, calls = cityscapes._instances, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # the last image of the second split
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(cityscapes, "_instances", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cityscapes.convert(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_test_images_are_listed_without_annotations(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    names = [str(root / f"leftImg8bit/test/{city}/{city}_000003_000019_leftImg8bit.png") for city in CITIES["test"]]
    expected = [{"file_name": name, "image_id": k, "height": 64, "width": 128} for k, name in enumerate(names)]
    assert cityscapes.test_images(Path("root")) == expected


@pytest.mark.parametrize(
    "gone", ["", "leftImg8bit", "gtFine", "leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"]
)
def test_a_folder_that_is_missing_is_one_sentence(root, tmp_path, gone):
    shutil.rmtree(root / gone)
    complaint(lambda: cityscapes.convert(root, tmp_path / "out"), f"no folder {root / gone};")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_images_is_one_sentence(root, tmp_path, split):
    for path in (root / "leftImg8bit" / split).glob("*/*.png"):
        path.rename(path.with_name("other.png"))
    complaint(lambda: cityscapes.convert(root, tmp_path / "out"), str(root / "leftImg8bit" / split), "holds no")


def test_an_image_without_its_annotation_is_one_sentence(root, tmp_path):
    truth = root / "gtFine/val/lindau/lindau_000003_000019_gtFine_instanceIds.png"
    truth.unlink()
    complaint(lambda: cityscapes.convert(root, tmp_path / "out"), "_leftImg8bit.png has no", str(truth))


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


NOISE = np.random.default_rng(0).integers(0, 2**16, (64, 128), dtype=np.uint16)  # takes several chunks
BROKEN = {
    "an empty file": b"",
    "no PNG": b"<html>",
    "cut off": png(street())[:-60],
    "broken between its chunks": b"\xff\xff\xff\xff".join(png(NOISE).rsplit(b"IDAT", 1)),
    "a header of 12 bytes": png(street()).replace(b"\x0dIHDR", b"\x0cIHDR"),
    "of 8 bits": png(np.zeros((64, 128), np.uint8)),
    "in colour": png(np.zeros((64, 128, 3), np.uint8)),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_an_annotation_that_cannot_be_read_is_one_sentence(root, tmp_path, flaw):
    truth = root / "gtFine/train/bochum/bochum_000003_000019_gtFine_instanceIds.png"
    truth.write_bytes(BROKEN[flaw])
    complaint(lambda: cityscapes.convert(root, tmp_path / "out"), str(truth), "readable PNG of 16-bit")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("flaw", ["an empty file", "no PNG", "a header of 12 bytes"])
def test_an_image_that_cannot_be_read_is_one_sentence(root, tmp_path, split, flaw):
    city = CITIES[split][1]
    image = root / f"leftImg8bit/{split}/{city}/{city}_000003_000019_leftImg8bit.png"
    image.write_bytes(BROKEN[flaw])
    read = {"train": lambda: cityscapes.convert(root, tmp_path / "out")}
    complaint(read.get(split, lambda: cityscapes.test_images(root)), str(image), "no readable PNG")


def test_an_annotation_of_another_size_is_one_sentence(root, tmp_path):
    truth = root / "gtFine/val/lindau/lindau_000003_000019_gtFine_instanceIds.png"
    write_image(truth, street()[:, :100])
    words = (str(truth), "100 x 64 pixels", "its image 128 x 64")
    complaint(lambda: cityscapes.convert(root, tmp_path / "out"), *words)


def test_no_test_images_are_one_sentence(root):
    shutil.rmtree(root / "leftImg8bit/test")
    complaint(lambda: cityscapes.test_images(root), "no folder", str(root / "leftImg8bit/test"))
    (root / "leftImg8bit/test").mkdir()
    complaint(lambda: cityscapes.test_images(root), "holds no", str(root / "leftImg8bit/test"))


def test_without_cityscapesscripts_it_is_one_sentence(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", None)
    complaint(lambda: cityscapes.convert(root, tmp_path / "out"), "cityscapesScripts pyquaternion")
    assert len(cityscapes.test_images(root)) == 2  # which need no labels
