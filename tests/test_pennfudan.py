"""Penn-Fudan, the second test set of what is trained on photographs of persons."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import complaint, contents, rle, write_image, zipped
from PIL import Image
from pycocotools import mask as rle_tools

from bmask.study.cli import main
from bmask.study.config import identity, resolve
from bmask.study.datasets import pennfudan, prepare
from bmask.study.datasets.check import check_coco


def labels(*persons, size=(20, 24)):
    """A mask file's labels: person k + 1 in each of the slices."""
    found = np.zeros(size, np.uint8)
    for number, place in enumerate(persons, start=1):
        found[place] = number
    return found


# The first image is smaller than the wanted size and stays so; of the second every other row and column is left.
SMALL = {
    "FudanPed00001": labels(np.s_[2:9, 1:5], np.s_[2:9, 5:11], size=(16, 24)),
    "PennPed00002": labels(np.s_[3:18, 20:24]),
}


@pytest.fixture
def authors(tmp_path, monkeypatch):
    """A folder as PennFudanPed.zip unpacks: one mask of grey levels, one of places in a palette."""
    monkeypatch.setattr(pennfudan, "SIDE", 20)
    root = tmp_path / "unpacked/PennFudanPed"
    for k, (stem, persons) in enumerate(SMALL.items(), start=1):
        persons = persons.repeat(k, 0).repeat(k, 1)
        write_image(root / f"PNGImages/{stem}.png", np.full((*persons.shape, 3), 90 * k, np.uint8))
        persons[2, 2] |= k == 2  # a quarter of a pixel that is left
        mask = Image.fromarray(persons)
        if k == 2:
            mask.putpalette([0, 0, 0, 255, 0, 0])
        (root / "PedMasks").mkdir(exist_ok=True)
        mask.save(root / f"PedMasks/{stem}_mask.png")
        (root / "Annotation").mkdir(exist_ok=True)
        (root / f"Annotation/{stem}.txt").write_text("not needed")
    return root.parent


@pytest.fixture
def prepared(tmp_path):
    """The same images in COCO format, split, with other ids."""
    for split, (stem, persons) in zip(("val", "train"), SMALL.items()):
        write_image(tmp_path / f"prepared/images/{stem}.jpg", np.full((*persons.shape, 3), 100, np.uint8))
        masks = [rle(persons == number) for number in range(1, persons.max() + 1)]
        known = {"image_id": 7, "category_id": 1, "iscrowd": 0}
        content = {
            "images": [{"id": 7, "file_name": f"{stem}.jpg", "height": len(persons), "width": 24}],
            "annotations": [
                {"id": k, **known, "bbox": rle_tools.toBbox(mask).tolist(), "area": 0.5, "segmentation": mask}
                for k, mask in enumerate(masks, start=70)
            ],
            "categories": [{"id": 1, "name": "person"}],
        }
        (tmp_path / f"prepared/instances_{split}.json").write_text(json.dumps(content))
    return tmp_path / "prepared"


def test_masks_are_exact_and_images_scaled(authors, tmp_path):
    pennfudan.convert(authors, tmp_path / "out")
    content = check_coco(tmp_path / "out/instances.json", tmp_path / "out/images", open_images=True)
    assert [image["file_name"] for image in content["images"]] == [f"{stem}.jpg" for stem in SMALL]
    assert [a["image_id"] for a in content["annotations"]] == [1, 1, 2]
    wanted = [persons == number for persons in SMALL.values() for number in range(1, persons.max() + 1)]
    for annotation, mask in zip(content["annotations"], wanted):
        assert (rle_tools.decode(annotation["segmentation"]) == mask).all()
    assert content["annotations"][2]["bbox"] == [20, 3, 4, 15] and content["annotations"][2]["area"] == 60
    for k, (stem, persons) in enumerate(SMALL.items(), start=1):
        image = cv2.imread(str(tmp_path / f"out/images/{stem}.jpg"))
        assert image.shape == (*persons.shape, 3) and abs(image.mean() - 90 * k) < 2


def test_the_zip_its_folder_and_a_prepared_folder_give_the_same(authors, prepared, tmp_path):
    for name, source in {"one": authors, "two": authors / "PennFudanPed", "three": zipped(authors)}.items():
        pennfudan.convert(source, tmp_path / name)
    pennfudan.convert(prepared, tmp_path / "four")
    pennfudan.convert(tmp_path / "four", tmp_path / "five")  # what was prepared here, taken elsewhere
    one, two, three, four, five = (contents(tmp_path / name) for name in ("one", "two", "three", "four", "five"))
    assert one == two == three and four == five and one.keys() == four.keys()
    assert one["instances.json"] == four["instances.json"]
    assert four["images/PennPed00002.jpg"] == (prepared / "images/PennPed00002.jpg").read_bytes()


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


@pytest.mark.parametrize(
    "kind,file,content,words",
    [
        ("PedMasks", "PennPed00002_mask.png", None, "has no mask of PennPed00002 in PedMasks"),
        ("PNGImages", "PennPed00002.png", None, "has no image of PennPed00002 in PNGImages"),
        ("PNGImages", "PennPed00002.png", b"", "PNGImages/PennPed00002.png"),
        ("PedMasks", "PennPed00002_mask.png", png(np.ones((9, 8), np.uint8)), "8 x 9 pixels, its image 48 x 40"),
        ("PedMasks", "PennPed00002_mask.png", png(np.ones((40, 48, 3), np.uint8)), "no readable PNG"),
        ("PNGImages", "dog.png", png(np.ones((9, 8, 3), np.uint8)), "has no mask of dog"),
    ],
)
def test_a_file_that_is_missing_or_another_one_is_one_sentence_and_nothing_is_left(
    authors, tmp_path, kind, file, content, words
):
    path = authors / "PennFudanPed" / kind / file
    path.unlink() if content is None else path.write_bytes(content)
    complaint(lambda: pennfudan.convert(authors, tmp_path / "out"), "unpacked", words)
    assert [path.name for path in tmp_path.iterdir()] == ["unpacked"]


def test_another_source_is_one_sentence(authors, prepared, tmp_path):
    (tmp_path / "cut.zip").write_bytes(zipped(authors).read_bytes()[:2000])
    (tmp_path / "others").mkdir()
    (prepared / "images/PennPed00002.jpg").rename(prepared / "images/dog.jpg")
    content = (prepared / "instances_train.json").read_text()
    for name, words in {"cut.zip": "complete zip", "others": "holds no PNGImages", "none": "does not exist"}.items():
        complaint(lambda: pennfudan.convert(tmp_path / name, tmp_path / "out"), name, words)
    complaint(lambda: pennfudan.convert(prepared, tmp_path / "out"), "PennPed00002.jpg")
    (prepared / "instances_train.json").write_text(content.replace("PennPed00002.jpg", "dog.jpg"))
    complaint(lambda: pennfudan.convert(prepared, tmp_path / "out"), "dog.jpg, which is no image of Penn-Fudan")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    complaint(lambda: pennfudan.convert(authors, tmp_path / "mine"), "mine is there already", "name another folder")


@pytest.mark.parametrize("named", [True, False])
def test_the_command_takes_a_source_or_downloads_it(authors, output, monkeypatch, capsys, named):
    archive = zipped(authors)
    monkeypatch.setattr(pennfudan, "URL", archive.as_uri())
    assert main(["prepare-pennfudan", *(["--source", str(archive)] if named else [])]) == 0
    assert "is tested on it as well" in capsys.readouterr().out
    assert (output / "data/pennfudan/instances.json").exists()
    assert (output / "data/pennfudan.zip").exists() != named


def test_what_is_trained_on_coco_person_is_tested_on_it_where_it_is_at_hand(prepared, tmp_path):
    """It changes neither the identity of a run nor the fingerprint of its data; no schedule is chosen on it."""
    cfg = resolve("mask_rcnn", "coco_person")
    before = prepare(cfg, prepared, tmp_path)
    assert before.val_second is None and before.second_fingerprint is None
    (tmp_path / "data/pennfudan").mkdir(parents=True)
    complaint(lambda: prepare(cfg, prepared, tmp_path), "data/pennfudan holds no instances.json", "--source")
    pennfudan.convert(prepared, tmp_path / "data/pennfudan")
    data = prepare(cfg, prepared, tmp_path)
    assert [len(record["annotations"]) for record in data.val_second.load()] == [2, 1]
    assert data.fingerprint == before.fingerprint != data.second_fingerprint
    assert prepare(resolve("mask_rcnn", "coco_person-heldout"), prepared, tmp_path).val_second is None
    without = cfg.clone()
    without.defrost()
    without.STUDY.SECOND_TEST = ""
    assert identity(without) == identity(cfg)
    assert prepare(without, prepared, tmp_path).val_second is None
    path = tmp_path / "data/pennfudan/instances.json"
    path.write_text(path.read_text().replace('"person"', '"pedestrian"'))
    complaint(lambda: prepare(cfg, prepared, tmp_path), "pennfudan/instances.json", "instances_val.json", "categories")


def test_the_prepared_170_photographs_are_taken_whole(tmp_path):
    folder = Path(__file__).resolve().parents[2] / "shared/data/pennfudan"
    if not folder.is_dir():
        pytest.skip(f"the prepared photographs are not at {folder}")
    pennfudan.convert(folder, tmp_path / "out")
    content = check_coco(tmp_path / "out/instances.json", tmp_path / "out/images", open_images=True)
    assert (len(content["images"]), len(content["annotations"])) == (170, 423)
