"""The embedded shapes, the data check and the nuclei: what a user may rely on."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import complaint, contents, rle, write_image, zipped
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from bmask.errors import InputError
from bmask.study import evaluate
from bmask.study.cli import main
from bmask.study.config import resolve
from bmask.study.datasets import Split, given, nuclei, prepare, shapes
from bmask.study.datasets.check import check_coco, survey
from bmask.study.datasets.coco import category_ids, fingerprint, read, truth
from bmask.study.files import whole_folder

SIZES = {"num_train": 12, "num_val": 4, "image_size": 128}
FILES = [f"instances_{split}_{grade}.json" for split in ("train", "val") for grade in ("fine", "coarse0.08")]


def generate(folder: Path, **options) -> None:
    """Pictures and both grades of annotation."""
    shapes.generate(folder, **options)
    for split in shapes.SPLITS:
        shapes.coarsen(folder, split, 0.08)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    generate(folder, seed=1, **SIZES)
    return folder


def load(folder: Path, name: str) -> dict:
    return json.loads((folder / "annotations" / name).read_text())


def masks_by_image(folder: Path, name: str) -> dict[int, list[np.ndarray]]:
    coco = COCO(str(folder / "annotations" / name))
    return {image: [coco.annToMask(a) for a in coco.imgToAnns[image]] for image in coco.imgs}


def test_a_fifth_of_the_training_images_is_held_out_to_test_on(tmp_path):
    whole, halves = (prepare(resolve("mask_rcnn", f"smoke{more}"), None, tmp_path) for more in ("", "-heldout"))
    images = [{image["image_id"]: image for image in split.load()} for split in (whole.train, halves.train, halves.val)]
    assert (len(images[0]), len(images[1]), len(images[2])) == (8, 6, 2)
    assert images[1] | images[2] == images[0] and whole.fingerprint != halves.fingerprint
    coarse = resolve("mask_rcnn_coarse08", "smoke-heldout")
    complaint(lambda: prepare(coarse, None, tmp_path), "NAME-heldout has no exact masks")


# --- the embedded shapes


@pytest.mark.parametrize("pictures_a_worker", [shapes.PICTURES_A_WORKER, 4])
def test_shapes_are_the_same_bytes_for_the_same_seed_with_other_threads_and_processes(
    made, tmp_path, monkeypatch, pictures_a_worker
):
    monkeypatch.setattr(shapes, "PICTURES_A_WORKER", pictures_a_worker)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        generate(tmp_path / "again", seed=1, **SIZES)
    finally:
        cv2.setNumThreads(threads)
    assert contents(tmp_path / "again") == contents(made)


def test_another_seed_makes_other_pictures(made, tmp_path):
    shapes.generate(tmp_path / "other", seed=2, num_train=2, num_val=0, image_size=128)
    ours, theirs = contents(made), contents(tmp_path / "other")
    assert all(theirs[f"images/train/{i:06d}.png"] != ours[f"images/train/{i:06d}.png"] for i in range(2))


def test_more_images_do_not_change_the_first_ones(made, tmp_path):
    generate(tmp_path / "fewer", seed=1, num_train=3, num_val=2, image_size=128)
    many, few = contents(made), contents(tmp_path / "fewer")
    assert all(many[name] == few[name] for name in few if name.endswith(".png"))
    for name in FILES:
        many, few = load(made, name), load(tmp_path / "fewer", name)
        for key in ("images", "annotations", "categories"):
            assert many[key][: len(few[key])] == few[key]


def test_train_and_val_share_no_picture(made):
    pictures = [content for name, content in contents(made).items() if name.endswith(".png")]
    assert len(set(pictures)) == len(pictures) == SIZES["num_train"] + SIZES["num_val"]


@pytest.mark.parametrize("size", [64, 128, 200])
def test_shapes_pass_the_data_check_at_any_size(size, tmp_path):
    generate(tmp_path / "set", seed=3, num_train=4, num_val=2, image_size=size)
    for name in FILES:
        data = check_coco(tmp_path / "set/annotations" / name, tmp_path / "set/images" / name.split("_")[1])
        assert [category["name"] for category in data["categories"]] == list(shapes.CLASSES)


def test_the_file_says_what_it_was_made_from(made):
    info = load(made, "instances_train_fine.json")["info"]
    assert (info["seed"], info["num_images"], info["image_size"]) == (1, 12, 128)


def test_fine_masks_of_one_image_do_not_overlap_and_show_at_least_40_pixels(made):
    for masks in masks_by_image(made, "instances_train_fine.json").values():
        assert np.sum(masks, axis=0).max() == 1 <= len(masks) <= 8
        assert min(mask.sum() for mask in masks) >= 40


def test_fine_and_coarse_describe_the_same_instances(made):
    for split in shapes.SPLITS:
        fine, coarse = (load(made, f"instances_{split}_{grade}.json") for grade in ("fine", "coarse0.08"))
        assert fine["images"] == coarse["images"]
        identity = [[(a["id"], a["image_id"], a["category_id"]) for a in d["annotations"]] for d in (fine, coarse)]
        assert identity[0] == identity[1]


def test_coarse_polygons_are_the_further_from_the_fine_masks_the_coarser_they_are(made):
    """Mean over instances of the IoU of the rasterised polygon with the exact mask; 0.85 measured for 0.08."""
    fine = masks_by_image(made, "instances_train_fine.json")
    means = []
    for coarseness in (0.02, 0.04, 0.08, 0.16):
        shapes.coarsen(made, "train", coarseness)
        coarse = masks_by_image(made, f"instances_train_coarse{coarseness:g}.json")
        pairs = [(f.astype(bool), c.astype(bool)) for i in fine for f, c in zip(fine[i], coarse[i])]
        means.append(np.mean([(f & c).sum() / (f | c).sum() for f, c in pairs]))
    assert 1 > means[0] > means[1] > means[2] > means[3] > 0.6
    assert means[2] == pytest.approx(0.85, abs=0.03)
    name = "annotations/instances_{}_{}.json"
    files = (made / name.format("train", grade) for grade in ("fine", "coarse0.16"))
    assert evaluate.annotation_iou(*files) == pytest.approx(means[3])


def test_training_on_coarse_annotations_is_measured_on_both(tmp_path):
    data = prepare(resolve("bmask_rcnn_coarse04", "smoke"), None, tmp_path)
    assert [split and split.json.stem for split in (data.train, data.val, data.val_coarse)] == [
        "instances_train_coarse0.04",
        "instances_val_fine",
        "instances_val_coarse0.04",
    ]


def test_real_images_have_no_exact_masks_to_make_coarse(tmp_path):
    with pytest.raises(InputError, match="PROFILE=cpu or gpu"):
        prepare(resolve("bmask_rcnn_coarse04", "nuclei"), tmp_path, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_bbox_and_area_belong_to_the_grades_own_mask(made, name):
    coco = COCO(str(made / "annotations" / name))
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        ys, xs = np.nonzero(mask)
        assert annotation["area"] == mask.sum()
        box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert annotation["bbox"] == box


def test_colour_does_not_tell_the_class():
    """Textures are drawn by a function that is not given the class: all classes have the same mean colour."""
    colours = {category: [] for category in range(4)}
    for index in range(60):
        picture, classes, masks = shapes._scene(5, "train", index, 64)
        for category, mask in zip(classes, masks):
            colours[category].append(picture[mask].mean() - picture.mean())
    for found in colours.values():
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))


def test_an_existing_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine.txt").write_text("mine")
    shapes.generate(tmp_path / "set", seed=1, **SIZES)
    assert list(contents(tmp_path)) == ["set/mine.txt"]


def test_an_interrupted_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    whole = shapes._scene

    def interrupted(seed, split, index, size):
        if index == 2:
            raise KeyboardInterrupt
        return whole(seed, split, index, size)

    monkeypatch.setattr(shapes, "_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "set", seed=1, **SIZES)
    assert not list(tmp_path.iterdir())


def test_the_loser_of_a_race_discards_its_copy(tmp_path):
    with whole_folder(tmp_path / "set") as draft:
        (draft / "who").write_text("second")
        (tmp_path / "set").mkdir()
        (tmp_path / "set/who").write_text("first")
    assert contents(tmp_path) == {"set/who": b"first"}


# --- the data check

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


def box(height=16, width=20, filled=True) -> dict:
    mask = np.zeros((height, width))
    mask[3:9, 4:11] = filled
    return rle(mask)


@pytest.fixture
def coco(tmp_path):
    """A sound file of two images: a polygon, a crowd as uncompressed RLE, and a compressed RLE."""
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "images" / name, np.zeros((16, 20, 3), np.uint8))
    crowd = {"size": [16, 20], "counts": [5, 10, 305]}
    found = [(7, 1, [SQUARE], 0), (8, 1, crowd, 1), (9, 2, box(), 0)]
    return {
        "images": [{"id": i, "file_name": n, "height": 16, "width": 20} for i, n in ((1, "a.png"), (2, "b.png"))],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": of, "category_id": 1, "bbox": [2, 2, 6, 6], "segmentation": s, "iscrowd": crowd}
            for i, of, s, crowd in found
        ],
    }


def write(tmp_path: Path, data) -> Path:
    (tmp_path / "instances.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return tmp_path / "instances.json"


def warned(coco, tmp_path: Path, *words: str):
    """What the survey found: no error, and a warning with all the words."""
    found = survey(write(tmp_path, coco), tmp_path / "images")
    assert not found.errors and any(all(word in warning for word in words) for warning in found.warnings)
    return found


def refused(coco, tmp_path: Path, *places: str) -> None:
    complaint(lambda: check_coco(write(tmp_path, coco), tmp_path / "images"), "instances.json", *places)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("drop", [False, True])
def test_a_sound_file_comes_back_as_it_was_written_without_a_warning(coco, tmp_path, drop):
    assert check_coco(write(tmp_path, coco), tmp_path / "images", drop_zero_area=drop) == coco


def test_what_is_no_file_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # would be waited for
    for name, words in {"none.json": "does not exist", "": "cannot be read", "pipe": "is no file"}.items():
        complaint(lambda: check_coco(tmp_path / name, tmp_path), str(tmp_path / name), words)


@pytest.mark.parametrize("cut", [0, 1, 200, -1])
def test_a_file_that_is_cut_off_is_one_sentence(coco, tmp_path, cut):
    json_file = write(tmp_path, json.dumps(coco)[:cut])
    complaint(lambda: check_coco(json_file, tmp_path / "images"), str(json_file), "cut off")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"images": {}, "annotations": [], "categories": []}'])
def test_json_that_is_not_coco_is_one_sentence(tmp_path, content):
    json_file = write(tmp_path, content)
    complaint(lambda: check_coco(json_file, tmp_path), str(json_file), "no list 'images'")


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_an_empty_list_is_one_sentence(coco, tmp_path, name):
    coco[name] = []
    refused(coco, tmp_path, f"no {name}")


@pytest.mark.parametrize(
    ("name", "key"),
    [("images", key) for key in ("id", "file_name", "height", "width")]
    + [("annotations", key) for key in ("id", "image_id", "category_id", "bbox", "segmentation")]
    + [("categories", key) for key in ("id", "name")],
)
def test_a_missing_key_is_one_sentence(coco, tmp_path, name, key):
    del coco[name][0][key]
    refused(coco, tmp_path, f"entry 0 of '{name}'", f"lacks {key}")


PLACE = "annotation 7 of image 1 (a.png)"
FLAWS = {
    "an entry that is no object": ("annotations", 1, 3, ["entry 1 of 'annotations'"]),
    "two images of one id": ("images", 1, {"id": 1}, ["image id 1", "more than once"]),
    "two annotations of one id": ("annotations", 1, {"id": 7}, ["annotation id 7", "more than once"]),
    "an id that is a list": ("images", 1, {"id": [1]}, ["image id [1]"]),
    "an image without height": ("images", 1, {"height": 0}, ["image 2", "height 0"]),
    "a file name that is a number": ("images", 1, {"file_name": 4}, ["image 2", "file_name 4"]),
    "an image file that is missing": ("images", 1, {"file_name": "c.png"}, ["image 2", "c.png", "1 of its 2"]),
    "a folder that is missing": ("images", 1, {"file_name": "x/b.png"}, ["image 2", "x/b.png", "1 of its 2"]),
    "an image that is not listed": ("annotations", 0, {"image_id": 5}, ["annotation 7", "image 5"]),
    "a category that is not listed": ("annotations", 0, {"category_id": 5}, ["annotation 7", "category 5"]),
    "an image id that is a list": ("annotations", 0, {"image_id": [1]}, ["annotation 7", "image [1]"]),
    "a category id that is a list": ("annotations", 0, {"category_id": [1]}, ["annotation 7", "category [1]"]),
    "a bbox of three numbers": ("annotations", 0, {"bbox": [1, 2, 3]}, ["annotation 7", "bbox"]),
    "a bbox of texts": ("annotations", 0, {"bbox": ["1", 2, 3, 4]}, ["annotation 7", "bbox"]),
    "a segmentation that is a text": ("annotations", 0, {"segmentation": "x"}, ["annotation 7", "neither"]),
    "a flat polygon": ("annotations", 0, {"segmentation": SQUARE}, ["annotation 7", "neither"]),
    "a polygon of texts": ("annotations", 0, {"segmentation": [["1"] * 6]}, ["annotation 7", "not all finite numbers"]),
    "an odd polygon": ("annotations", 0, {"segmentation": [SQUARE[:7]]}, ["annotation 7", "7 numbers, an odd"]),
    "no polygon at all": ("annotations", 0, {"segmentation": []}, ["annotation 7", "zero area"]),
    "points in a line": ("annotations", 0, {"segmentation": [[1, 1, 2, 2, 3, 3]]}, ["annotation 7", "zero area"]),
    "an empty RLE": ("annotations", 0, {"segmentation": box(filled=False)}, ["annotation 7", "zero area"]),
    "an RLE of another size": ("annotations", 0, {"segmentation": box(20, 16)}, ["annotation 7", "[20, 16]"]),
    "a second polygon of two points": ("annotations", 0, {"segmentation": [SQUARE, [1, 1, 5, 5]]}, [PLACE, "2 points"]),
    "a bbox of no numbers a float can hold": (
        "annotations",
        0,
        {"bbox": [10**400, 2.5, 3, 8]},
        ["annotation 7", "bbox"],
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flawed_entry_is_one_sentence_that_names_it(coco, tmp_path, flaw):
    name, position, change, places = FLAWS[flaw]
    coco[name][position] = {**coco[name][position], **change} if isinstance(change, dict) else change
    refused(coco, tmp_path, *places)


@pytest.mark.parametrize(
    "counts",
    [box()["counts"][:-1], box()["counts"] + "o", "", "\u20ac!", "o" * 40, [5, 10], [330, -10], ["5", 315], None],
)
def test_an_rle_that_does_not_decode_is_one_sentence(coco, tmp_path, counts):
    coco["annotations"][2]["segmentation"]["counts"] = counts
    refused(coco, tmp_path, "annotation 9 of image 2 (b.png)", "does not decode")


def test_a_missing_image_folder_counts_every_image(coco, tmp_path):
    complaint(lambda: check_coco(write(tmp_path, coco), tmp_path / "nowhere"), "nowhere", "2 of its 2")


def test_annotations_of_zero_area_are_dropped_on_request(coco, tmp_path):
    coco["annotations"][0]["segmentation"] = [[1.1, 1.1, 2.2, 2.2, 3.3, 3.3]]
    json_file = write(tmp_path, coco)
    with pytest.warns(UserWarning, match=r"dropped 1 annotations of zero area \(id 7\)$"):
        data = check_coco(json_file, tmp_path / "images", drop_zero_area=True)
    assert [annotation["id"] for annotation in data["annotations"]] == [8, 9]


def test_a_file_of_nothing_but_zero_areas_is_one_sentence(coco, tmp_path):
    for annotation in coco["annotations"]:
        annotation["segmentation"] = []
    call = lambda: check_coco(write(tmp_path, coco), tmp_path / "images", drop_zero_area=True)  # noqa: E731
    complaint(call, "instances.json", "no annotation has a mask of any area")


def test_compressed_rles_are_read_as_pycocotools_reads_them(made):
    from bmask.study.datasets.check import _rle_mask

    rng = np.random.default_rng(0)
    encoded = [a["segmentation"] for a in load(made, "instances_val_fine.json")["annotations"]]
    for share in (0, 0.01, 0.5, 1):
        encoded.append(rle(rng.random((300, 200)) < share))
    for found in encoded:
        assert _rle_mask(found, *found["size"]).area == rle_tools.area(found)


def test_the_fingerprint_follows_the_bytes_and_their_order(tmp_path):
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    one.write_text("{}")
    two.write_text("[]")
    assert fingerprint(one) == "44136fa355b3678a"  # sha256sum of {}
    assert len({fingerprint(one), fingerprint(two), fingerprint(one, two), fingerprint(two, one)}) == 4


# --- odd files: read rightly, or refused with their place

NAN, INFINITY = float("nan"), float("inf")
CRAZY = [
    None,
    True,
    -1,
    1.5,
    1e300,
    10**30,
    NAN,
    INFINITY,
    "x",
    "",
    "7\0",
    "\ud800",
    [],
    [[]],
    {},
    {"a": [1]},
    "9" * 999,
]
KEYS = [
    ("images", "id", "file_name", "height", "width"),
    ("annotations", "id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area", "ignore"),
    ("categories", "id", "name"),
]


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, *keys in KEYS for key in keys])
def test_no_value_of_any_key_ends_in_a_stack_trace(coco, tmp_path, name, key, capsys):
    for value in CRAZY:
        json_file = write(tmp_path, {**coco, name: [{**coco[name][0], key: value}, *coco[name][1:]]})
        status = main(["check-data", str(tmp_path / "images"), str(json_file)])
        out, err = capsys.readouterr()
        assert status == (2 if "  error " in out or "bmask: " in err else 0)
        if status == 0:  # what passes can be used
            check_coco(json_file, tmp_path / "images")
            assert len(Split(json_file, tmp_path / "images").load()) == 2
            assert evaluate.average_precision(json_file, [], resamples=0)["boundary"]["AP"] == 0
        else:
            complaint(lambda: check_coco(json_file, tmp_path / "images"), "instances.json")


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: {"bbox": [2, 2, x, 6]},
        lambda x: {"area": x},
        lambda x: {"segmentation": [[2, 2, 8, 2, 8, x]]},
        lambda x: {"segmentation": [[x, 2, 8, 2, 8, 8]]},
        lambda x: {"segmentation": {"size": [x, 20], "counts": [5, 10, 305]}},
        lambda x: {"segmentation": {"size": [16, 20], "counts": [5, x, 305]}},
        lambda x: {"iscrowd": x},
        lambda x: {"category_id": x},
    ],
)
def test_nan_and_infinity_are_refused_with_their_place(coco, tmp_path, value, change):
    coco["annotations"][0] |= change(value)
    refused(coco, tmp_path, PLACE)


@pytest.mark.parametrize(
    "polygon", [*([2, 2, x, 2, x, 8] for x in (1e5, 1e12, 1e308, 10**400)), [2, 2, 10**400, 2.5, 3, 8]]
)
def test_a_polygon_far_outside_of_its_image_is_refused(coco, tmp_path, polygon):
    coco["annotations"][0]["segmentation"] = [polygon]
    refused(coco, tmp_path, "annotation 7", "outside")


ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bom_and_utf_16_are_read(coco, tmp_path, encoding):
    path = tmp_path / "instances.json"
    path.write_bytes(json.dumps(coco).encode(encoding))
    assert check_coco(path, tmp_path / "images") == coco
    assert evaluate.average_precision(path, perfect(path), resamples=0)["segm"]["AP"] == pytest.approx(100)


def perfect(json_file: Path) -> list[dict]:
    """Each object of a file, as its data set has been loaded, detected to the pixel."""
    split = Split(json_file, json_file.parent / "images")
    found, categories = [], category_ids(read(json_file))
    for image in split.load():
        for annotation in image["annotations"]:
            mask = annotation["segmentation"]
            if isinstance(mask, list):
                mask = rle_tools.merge(rle_tools.frPyObjects(mask, image["height"], image["width"]))
            entry = {"image_id": image["image_id"], "category_id": categories[annotation["category_id"]]}
            if not annotation["iscrowd"]:
                found.append({**entry, "bbox": annotation["bbox"], "segmentation": mask, "score": 1.0})
    return found


NUMBERS = {
    "counted from 0": lambda number: number,
    "below 0": lambda number: number - 5,
    "as floats": lambda number: float(number),
    "as texts": lambda number: f"{number:04d}",
    "of 60 bits": lambda number: number + 2**60,
}


@pytest.mark.parametrize("numbers", NUMBERS)
def test_perfect_detections_have_an_ap_of_100_whatever_the_ids(coco, tmp_path, numbers):
    number = NUMBERS[numbers]
    for annotation in coco["annotations"]:
        annotation["id"] = number(annotation["id"] - 7)
        annotation["image_id"] = number(annotation["image_id"] - 1)
        annotation["category_id"] = number(annotation["category_id"] - 1)
    for entry in coco["images"] + coco["categories"]:
        entry["id"] = number(entry["id"] - 1)
    json_file = write(tmp_path, coco)
    check_coco(json_file, tmp_path / "images")
    found = evaluate.average_precision(json_file, perfect(json_file), resamples=2)
    assert [found[kind]["AP"] for kind in found] == pytest.approx([100, 100, 100])
    assert found["segm"]["bootstrap"]["AP"] == [100, 100]


def test_texts_of_one_number_are_one_id(coco, tmp_path):
    coco["annotations"][0]["id"], coco["annotations"][1]["id"] = "1", "0001"
    refused(coco, tmp_path, "annotation id 1", "more than once")


@pytest.mark.parametrize("sides", [("16", "20"), (16.0, 20.0)])
def test_sides_in_another_form_are_read(coco, tmp_path, sides):
    for image in coco["images"]:
        image["height"], image["width"] = sides
    coco["annotations"][1]["segmentation"]["size"] = list(sides)
    records = Split(write(tmp_path, coco), tmp_path / "images").load()
    check_coco(tmp_path / "instances.json", tmp_path / "images", open_images=True)
    assert [(type(r["height"]), r["height"], r["width"]) for r in records] == [(int, 16, 20)] * 2


@pytest.mark.parametrize("crowd", [None, False, 0.0, "0"])
def test_objects_that_are_no_crowds_in_another_form_are_read(coco, tmp_path, crowd):
    coco["annotations"][0]["iscrowd"] = crowd
    data = check_coco(write(tmp_path, coco), tmp_path / "images")
    assert [annotation["iscrowd"] for annotation in data["annotations"]] == [0, 1, 0]
    del coco["annotations"][0]["iscrowd"]
    assert check_coco(write(tmp_path, coco), tmp_path / "images") == data


def test_a_file_of_crowds_alone_is_refused(coco, tmp_path):
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    refused(coco, tmp_path, "all 3 annotations are crowds")


def test_ignore_is_read_as_a_crowd_with_a_warning(coco, tmp_path):
    coco["annotations"][0]["ignore"] = 1
    assert warned(coco, tmp_path, "annotation 7", "has ignore set").crowds == 2
    json_file = tmp_path / "instances.json"
    assert Split(json_file, tmp_path / "images").load()[0]["annotations"][0]["iscrowd"] == 1
    # Neither missing it nor finding it counts.
    detections = perfect(json_file)
    ignored = {**detections[0], "image_id": 1, "segmentation": rle_tools.frPyObjects([SQUARE], 16, 20)[0]}
    for given_detections in (detections, [*detections, {**ignored, "bbox": [2, 2, 6, 6]}]):
        found = evaluate.average_precision(json_file, given_detections, resamples=0)
        assert found["segm"]["AP"] == found["bbox"]["AP"] == pytest.approx(100)


def test_two_categories_of_one_name_are_refused(coco, tmp_path):
    coco["categories"].append({"id": 4, "name": "thing"})
    refused(coco, tmp_path, "category 4", "category 1, thing")


def test_categories_with_numbers_for_names_are_read(coco, tmp_path):
    coco["categories"] = [{"id": 1, "name": 5}, {"id": 2, "name": 6}]
    json_file = write(tmp_path, coco)
    assert list(survey(json_file, tmp_path / "images").classes) == ["5", "6"]
    assert list(evaluate.average_precision(json_file, [])["segm"]["per_class"]) == ["5", "6"]


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"\0" * 99, b"\x1f\x8b\x08", b"<html>", bytes(range(256))]
)
def test_what_is_no_json_is_one_sentence(tmp_path, content):
    (tmp_path / "instances.json").write_bytes(content)
    complaint(lambda: check_coco(tmp_path / "instances.json", tmp_path), "instances.json")
    assert main(["check-data", str(tmp_path), str(tmp_path / "instances.json")]) == 2


@pytest.mark.parametrize("name", ["", ".", "x\0.png", "\ud800/a.png", "a.png/b.png", "../a.png"])
def test_a_name_that_no_file_can_have_is_a_missing_image(coco, tmp_path, name):
    coco["images"][1]["file_name"] = name
    refused(coco, tmp_path, "image 2", "1 of its 2")


def test_names_that_are_not_utf_8_are_read(coco, tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "images/a.png").rename(tmp_path / "images" / name)
    coco["images"][0]["file_name"] = name
    json_file = tmp_path / "instances.json"
    for content in (json.dumps(coco).encode(), json.dumps(coco, ensure_ascii=False).encode(errors="surrogateescape")):
        json_file.write_bytes(content)
        assert main(["check-data", str(tmp_path / "images"), str(json_file)]) == 0
        assert Split(json_file, tmp_path / "images").load()[0]["file_name"] == str(tmp_path / "images" / name)
    (tmp_path / "images" / name).unlink()
    assert main(["check-data", str(tmp_path / "images"), str(json_file)]) == 2
    assert "image 1 ('caf\\udce9.png') is not in" in capsys.readouterr().out


BOXES = {  # of a mask from (x, y) to (x + w, y + h) in an image of 20 x 16
    "of the corners": lambda x, y, w, h: [x, y, x + w, y + h],
    "in shares": lambda x, y, w, h: [x / 20, y / 16, w / 20, h / 16],
    "without width or height": lambda *_: [0, 0, 0, 0],
    "the whole image": lambda *_: [0, 0, 20, 16],
    "of the centre": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    "with x and y exchanged": lambda x, y, w, h: [y, x, h, w],
    "elsewhere": lambda x, y, w, h: [2 * x, 2 * y, 2 * w, 2 * h],
}


def boxed(coco, wrong, number) -> dict:
    """Five objects, of which so many have wrong boxes."""
    boxes = [(6, 1, 11, 5), (11, 1, 8, 6), (10, 3, 9, 5), (9, 1, 10, 6), (12, 2, 7, 6)]
    coco["annotations"] = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": wrong(x, y, w, h) if k < number else [x, y, w, h]}
        | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h}
        for k, (x, y, w, h) in enumerate(boxes)
    ]
    return coco


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_that_are_not_those_of_the_masks_are_told_by_their_pattern(coco, tmp_path, kind):
    refused(boxed(coco, BOXES[kind], 5), tmp_path, "annotation 0 of image 1", kind, "5 such")
    warned(boxed(coco, BOXES[kind], 1), tmp_path, kind, "annotation 0")


def test_boxes_a_pixel_or_two_beside_their_masks_are_sound(coco, tmp_path):
    json_file = write(tmp_path, boxed(coco, lambda x, y, w, h: [x - 1, y + 1, w + 2, h - 1.5], 5))
    assert survey(json_file, tmp_path / "images").findings == []


def test_a_box_without_width_is_a_warning_however_narrow_its_object_is(coco, tmp_path):
    coco["annotations"][0] |= {"bbox": [5, 2, 0, 6], "segmentation": [[5, 2, 6, 2, 6, 8, 5, 8]]}
    warned(coco, tmp_path, "annotation 7", "without width")


def test_an_object_that_is_there_twice_is_a_warning(coco, tmp_path):
    coco["annotations"].append({**coco["annotations"][0], "id": 10})
    warned(coco, tmp_path, "annotation 10", "another one")


def test_polygons_in_shares_of_the_image_are_refused(coco, tmp_path):
    for annotation in boxed(coco, BOXES["in shares"], 5)["annotations"]:
        annotation["segmentation"] = [[value / 20 for value in annotation["segmentation"][0]]]
    refused(coco, tmp_path, "annotation 0", "shares of the image", "5 such")


@pytest.mark.parametrize("area", [None, "36", 0, -1, [], "missing"])
def test_an_area_that_is_missing_is_that_of_the_mask(coco, tmp_path, area):
    for annotation, right in zip(coco["annotations"], (36, 10, 42)):
        annotation["area"] = right
    sound = truth(write(tmp_path, coco))["annotations"]
    for annotation in coco["annotations"]:
        annotation["area"] = area
        if area == "missing":
            del annotation["area"]
    json_file = write(tmp_path, coco)
    assert truth(json_file)["annotations"] == sound
    assert any("has no area" in w and "3 such: 7, 8, 9" in w for w in survey(json_file, tmp_path / "images").warnings)


def photograph(path: Path, orientation: int) -> None:
    """16 pixels high and 20 wide as it is stored."""
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(path, exif=exif)


def test_sizes_are_compared_as_images_are_displayed(coco, tmp_path):
    coco["annotations"] = [{**coco["annotations"][0], "image_id": number} for number in (1, 2)]
    coco["annotations"][1]["id"] = 9
    for orientation, name in ((6, "a.png"), (3, "b.png")):
        photograph(tmp_path / "images" / name, orientation)
    (error,) = survey(write(tmp_path, coco), tmp_path / "images").errors
    assert "image 1 (a.png: 16 x 20 in the list, 20 x 16 as displayed) is rotated by its EXIF data" in error
    coco["images"][0] |= {"height": 20, "width": 16}
    json_file = write(tmp_path, coco)
    assert not survey(json_file, tmp_path / "images").errors
    coco["images"][1] |= {"height": 20, "width": 16}
    assert any(
        "image 2" in e and "another size" in e for e in survey(write(tmp_path, coco), tmp_path / "images").errors
    )


def spoiled(path: Path, how: str) -> None:
    if how == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 20, 3)).astype(np.uint8)).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:-150])
    elif how == "float":
        Image.fromarray(np.zeros((16, 20), np.float32)).save(path, "TIFF")
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("how", "words"), [("cut", "truncated"), ("float", "save it with whole numbers"), ("folder", "directory")]
)
def test_an_image_that_training_refuses_is_refused_by_the_check(coco, tmp_path, how, words):
    spoiled(tmp_path / "images/b.png", how)
    json_file = write(tmp_path, coco)
    (error,) = survey(json_file, tmp_path / "images").errors
    assert "b.png" in error and words in error
    complaint(lambda: check_coco(json_file, tmp_path / "images", open_images=True), "b.png", words)


def test_images_and_file_are_told_apart_in_either_order(coco, tmp_path):
    folder, json_file = tmp_path / "images", write(tmp_path, coco)
    right = Split(json_file, folder)
    assert given(folder, json_file) == given(json_file, folder) == right
    nowhere = tmp_path / "nowhere"
    assert given(nowhere, json_file) == given(json_file, nowhere) == Split(json_file, nowhere)
    assert given(folder, nowhere) == given(nowhere, folder) == Split(nowhere, folder)
    assert given(folder, folder) == Split(folder, folder) and given(json_file, json_file) == Split(json_file, json_file)
    for order in ((folder, json_file), (json_file, folder)):
        assert main(["check-data", *map(str, order)]) == 0


def test_records_are_those_of_detectron2s_own_loader(made, coco, tmp_path):
    files = [(made / "annotations" / name, made / "images" / name.split("_")[1]) for name in FILES]
    for number, (json_file, images) in enumerate([*files, (write(tmp_path, coco), tmp_path / "images")]):
        theirs = load_coco_json(str(json_file), str(images), f"loaded by detectron2: {tmp_path}/{number}")
        assert Split(json_file, images).load() == theirs


# --- nuclei


@pytest.fixture
def stage1(tmp_path):
    """A folder as stage1_train: RGBA pictures, one 0/255 mask a nucleus, and an empty mask."""
    rng = np.random.default_rng(0)
    root = tmp_path / "stage1_train"
    for number in range(8):
        folder = root / f"{number:064x}"
        write_image(folder / f"images/{folder.name}.png", rng.integers(0, 256, (24, 32, 4), dtype=np.uint8))
        for nucleus in range(3):
            mask = np.zeros((24, 32), np.uint8)
            mask[8 * nucleus : 8 * nucleus + 5, 4 : 4 + 6 * nucleus] = 255  # the first one is empty
            write_image(folder / f"masks/{nucleus:064x}.png", mask)
    return root


def test_the_zip_and_the_folder_convert_to_the_same_bytes(stage1, tmp_path):
    nuclei.convert(stage1, tmp_path / "one", val_share=0.5)
    nuclei.convert(zipped(stage1), tmp_path / "two", val_share=0.5)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_nuclei_keep_their_pictures_and_masks(stage1, tmp_path):
    nuclei.convert(stage1, tmp_path / "out", val_share=0.5)
    seen = 0
    for part in ("train", "val"):
        data = check_coco(tmp_path / f"out/instances_{part}.json", tmp_path / "out/images")
        assert [(category["id"], category["name"]) for category in data["categories"]] == [(1, "nucleus")]
        assert [annotation["area"] for annotation in data["annotations"]] == [30, 60] * len(data["images"])
        first = data["annotations"][0]
        assert first["bbox"] == [4, 8, 6, 5]
        assert rle_tools.decode(first["segmentation"])[8:13, 4:10].all()
        for image in data["images"]:
            source = stage1 / Path(image["file_name"]).stem / "images" / image["file_name"]
            rgba, rgb = (cv2.imread(str(p), -1) for p in (source, tmp_path / "out/images" / image["file_name"]))
            assert rgb.shape == (24, 32, 3) and (rgb == rgba[..., :3]).all()
            seen += 1
    assert seen == 8


def test_the_part_of_an_image_does_not_depend_on_the_others(stage1, tmp_path):
    def val(folder):
        return {image["file_name"] for image in json.loads((folder / "instances_val.json").read_text())["images"]}

    nuclei.convert(stage1, tmp_path / "all", val_share=0.5)
    gone = sorted(stage1.iterdir())[::2]
    for folder in gone:
        folder.rename(tmp_path / folder.name)
    nuclei.convert(stage1, tmp_path / "half", val_share=0.5)
    assert val(tmp_path / "half") == val(tmp_path / "all") - {f"{folder.name}.png" for folder in gone}


def test_an_interrupted_conversion_leaves_nothing_behind(stage1, tmp_path, monkeypatch):
    def interrupted(mask):
        raise KeyboardInterrupt

    monkeypatch.setattr(nuclei, "outline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nuclei.convert(stage1, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["stage1_train"]


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_source_that_is_no_zip_is_one_sentence(stage1, tmp_path, content):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(zipped(stage1).read_bytes()[:2000] if content is None else content)
    complaint(lambda: nuclei.convert(broken, tmp_path / "out"), "broken.zip", "complete zip")


def test_a_source_that_does_not_exist_or_has_no_nuclei_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in {"none.zip": "does not exist", "empty": "holds no"}.items():
        complaint(lambda: nuclei.convert(tmp_path / name, tmp_path / "out"), name, words)


def test_masks_without_their_image_are_one_sentence(stage1, tmp_path):
    first = sorted(stage1.iterdir())[0]
    (first / "images" / f"{first.name}.png").unlink()
    complaint(lambda: nuclei.convert(stage1, tmp_path / "out"), "stage1_train", first.name)


@pytest.mark.parametrize(("size", "words"), [((30, 32), "32 x 30"), (None, "no readable PNG")])
def test_a_mask_of_another_size_or_no_png_is_one_sentence(stage1, tmp_path, size, words):
    path = sorted(stage1.rglob("masks/*.png"))[4]
    path.write_bytes(b"" if size is None else cv2.imencode(".png", np.full(size, 255, np.uint8))[1].tobytes())
    complaint(lambda: nuclei.convert(stage1, tmp_path / "out"), str(path.relative_to(stage1)), words)
    assert not (tmp_path / "out").exists()


# --- where data lies


def coco_tree(root: Path, categories: int) -> Path:
    """COCO 2017 as it is unpacked, with one image a split and gaps between the category ids."""
    for split in ("train", "val"):
        write_image(root / f"{split}2017/000000000009.jpg", np.zeros((16, 20, 3), np.uint8))
        content = {
            "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 16, "width": 20}],
            "categories": [{"id": 2 * k + 1, "name": f"c{k}"} for k in range(categories)],
            "annotations": [{"id": 1, "image_id": 9, "category_id": 5, "bbox": [2, 2, 6, 6], "segmentation": [SQUARE]}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("named", [True, False])
def test_coco_is_found_in_detectron2s_layout(tmp_path, monkeypatch, named):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = coco_tree(tmp_path / "coco", 80)
    data = prepare(resolve("bmask_rcnn", "paper"), root if named else None, tmp_path)
    (image,) = data.train.load()
    assert image["file_name"] == str(root / "train2017/000000000009.jpg")
    assert image["annotations"][0]["category_id"] == 2  # the third of 80, counted from 0


def test_another_number_of_classes_than_the_profiles_is_one_sentence(tmp_path):
    root = coco_tree(tmp_path / "coco", 7)
    with pytest.raises(InputError, match="has 7 categories, but the profile expects 80"):
        prepare(resolve("bmask_rcnn", "paper"), root, tmp_path)


@pytest.mark.parametrize("name,images,objects", [("nuclei", (536, 128), 28986), ("coco_person", (1036, 257), 2204)])
def test_prepared_data_pass_the_check_and_are_read_from_the_folder_that_is_named(name, images, objects, tmp_path):
    folder = Path(__file__).resolve().parents[2] / "shared/data" / name
    if not folder.is_dir():
        pytest.skip(f"the prepared data are not at {folder}")
    data = prepare(resolve("mask_rcnn", name), folder, tmp_path)
    halves = data.train.load(), data.val.load()
    assert tuple(map(len, halves)) == images
    assert sum(len(record["annotations"]) for half in halves for record in half) == objects
