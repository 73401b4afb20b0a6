"""One way of reading images: what ``read_image`` gives, and that training, evaluation and messages follow it."""

import os
import struct
import zlib
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
from conftest import complaint
from detectron2.data import MapDataset
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import DataLoader

from bmask import images
from bmask.errors import InputError
from bmask.images import read_image, stored_size, to_rgb
from bmask.study import config
from bmask.study.cli import main
from bmask.study.datasets.mapper import ImageMapper

GREY = np.linspace(100, 4000, 12 * 16).reshape(12, 16).astype(np.uint16)  # 12 bits, as many cameras have
SCALED = np.round((GREY.astype(float) - GREY.min()) * (255 / (int(GREY.max()) - GREY.min()))).astype(np.uint8)
COLOUR = np.stack([GREY, GREY // 2, GREY // 4], axis=2)
PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def turned(orientation=6):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".tif", ".tiff"])
def test_8_bits_are_kept_as_they_are(tmp_path, suffix):
    assert (read_image(save(tmp_path / f"a{suffix}", PICTURE)) == PICTURE).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_any_colours_become_rgb(tmp_path, mode):
    picture = Image.fromarray(PICTURE).convert(mode)
    picture.save(tmp_path / "a.tif") if mode == "CMYK" else picture.save(tmp_path / "a.png")
    (path,) = tmp_path.iterdir()
    assert (read_image(path) == np.asarray(picture.convert("RGB"))).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_is_scaled_from_its_smallest_to_its_largest_value(tmp_path, name):
    image = read_image(save(tmp_path / name, GREY))
    assert (image == SCALED[:, :, None]).all() and image.shape == (12, 16, 3)
    assert (image == to_rgb(GREY)).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colours_of_16_bits_are_scaled_alike(tmp_path, name):
    """Pillow gives their upper 8 bits: of a camera's 12 a nearly black picture."""
    assert cv2.imwrite(str(tmp_path / name), COLOUR[:, :, ::-1])
    assert (read_image(tmp_path / name) == to_rgb(COLOUR)).all() and to_rgb(COLOUR).max() == 255
    assert cv2.imwrite(str(tmp_path / name), np.dstack([COLOUR[:, :, ::-1], GREY]))
    assert (read_image(tmp_path / name) == to_rgb(COLOUR)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_as_it_is_displayed(tmp_path, orientation):
    upright = read_image(save(tmp_path / "a.png", PICTURE, exif=turned(orientation)))
    with Image.open(tmp_path / "a.png") as picture:
        assert upright.shape == ((12, 16, 3) if orientation < 5 else (16, 12, 3))
        assert picture.size == (16, 12) and stored_size(tmp_path / "a.png") == (12, 16)
    assert (read_image(save(tmp_path / "b.png", GREY, exif=turned(orientation))).shape) == upright.shape


def test_colours_of_16_bits_are_rotated_as_well(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), COLOUR[:, :, ::-1])
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"eXIf" + turned(6).tobytes()[6:]
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    start = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:start] + chunk + content[start:])
    assert (read_image(tmp_path / "a.png") == np.rot90(to_rgb(COLOUR), -1)).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.bmp"])
@pytest.mark.parametrize("share", [0, 1 / 3, 2 / 3, 0.9])
def test_an_image_that_is_cut_off_is_refused(tmp_path, name, share):
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    content = save(tmp_path / name, picture).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    complaint(lambda: read_image(tmp_path / name), name, "replace or remove it")


def test_floats_are_refused_with_what_to_do(tmp_path):
    path = save(tmp_path / "a.tif", GREY.astype(np.float32))
    complaint(lambda: read_image(path), "a.tif", "float32", "save it with whole numbers")


def test_what_is_no_image_is_one_sentence(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no image")
    complaint(lambda: read_image(tmp_path / "none.png"), "none.png", "there is no image")
    for name in ("folder.png", "text.png"):
        complaint(lambda: read_image(tmp_path / name), name, "no image that can be read")
    complaint(lambda: read_image(tmp_path / "a\0b.png"))


@pytest.mark.parametrize("limit", [12 * 16 - 1, 12 * 4])
def test_an_image_larger_than_the_limit_is_refused(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "a.png", PICTURE)
    assert read_image(path).shape == PICTURE.shape
    monkeypatch.setattr(images, "LIMIT", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.warns(Image.DecompressionBombWarning) if limit > 100 else nullcontext():
        complaint(lambda: read_image(path), "a.png", f"more than the {limit} pixels")


def test_the_limit_is_beyond_what_microscopes_and_satellites_give():
    assert images.LIMIT == Image.MAX_IMAGE_PIXELS > 14_000 * 13_000


def record(path, height=12, width=16):
    box = {"bbox": [2, 2, 6, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    annotation = {**box, "segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]]}
    return {"file_name": str(path), "image_id": 1, "height": height, "width": width, "annotations": [annotation]}


def untouched():
    """A configuration that leaves the size of images as it is."""
    cfg = config.resolve("bmask_rcnn", "smoke").clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = (0,), 0, "none"
    cfg.INPUT.MASK_FORMAT = "polygon"
    return cfg


@pytest.mark.parametrize("train", [True, False])
def test_training_and_evaluation_see_what_is_read(tmp_path, train):
    cfg = untouched()
    for array in (PICTURE, GREY):
        path = save(tmp_path / "a.png", array, exif=turned())
        seen = ImageMapper(cfg, is_train=train)(record(path, 16, 12))["image"].numpy().transpose(1, 2, 0)
        assert (seen == read_image(path)).all()  # the network of the ImageNet weights wants RGB
        cfg.INPUT.FORMAT = "BGR"  # and detectron2's own BGR
        seen = ImageMapper(cfg, is_train=train)(record(path, 16, 12))["image"].numpy().transpose(1, 2, 0)
        assert (seen[:, :, ::-1] == read_image(path)).all()
        cfg.INPUT.FORMAT = "RGB"


def test_an_image_of_another_size_than_listed_is_one_sentence(tmp_path):
    path = save(tmp_path / "a.png", PICTURE, exif=turned())
    mapper = ImageMapper(untouched(), is_train=True)
    complaint(lambda: mapper(record(path)), "a.png is 16 x 12 pixels as it is displayed, and 12 x 16")


def test_what_a_reading_process_refuses_is_still_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"")

    def given(images, json):
        mapped = MapDataset([record(tmp_path / "broken.png")], ImageMapper(untouched(), is_train=False))
        list(DataLoader(mapped, num_workers=1, collate_fn=list))

    monkeypatch.setattr("bmask.study.datasets.given", given)
    assert main(["check-data", "images", "file.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bmask: {tmp_path}/broken.png is no image that can be read (")


def test_a_name_that_is_not_utf_8_is_read(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    assert (read_image(save(path, PICTURE)) == PICTURE).all()
    assert cv2.imwrite(str(tmp_path / "c.png"), COLOUR)
    (tmp_path / "c.png").rename(path)
    assert read_image(path).max() == 255
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"caf\\udce9\.png is no image"):  # escaped, to be printed anywhere
        read_image(path)


def test_a_message_that_cannot_be_printed_here_is_escaped(tmp_path, bmask, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out, err = bmask("check-data", tmp_path / "é", tmp_path / os.fsdecode(b"\xff.json")).communicate()
    assert out == "" and "Traceback" not in err and "\\udcff.json does not exist" in err
