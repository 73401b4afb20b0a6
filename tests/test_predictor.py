import json
import os

import cv2
import numpy as np
import pytest
import torch
from conftest import complaint
from PIL import Image
from pycocotools.coco import COCO

import bmask as package
from bmask.errors import InputError
from bmask.images import read_image, to_rgb
from bmask.study import datasets, evaluate, paste, runs
from bmask.study.cli import main
from bmask.study.launch import work
from bmask.study.predict import image_paths

RUN = runs.Run("bmask_rcnn", "smoke", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained run, its weights, and its validation images."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUT", folder)
        assert work.work(RUN, runs.Options(device="cpu")) == 0
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
    detections, _ = evaluate.detect(cfg, model, dataset, data.category_ids, lambda *_: None)
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
    predictor.traced(images[0]).save(str(path))
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


def looked_at(images, made, out, *more):
    """``predict``, as on the command line: its exit status, and the names of the overlays by image."""
    arguments = ["predict", *images, "--weights", made[1], "--out", out, "--device", "cpu", *more]
    status = main([*map(str, arguments)])
    if status == 2:
        return status, None
    content = json.loads((out / "predictions.json").read_text())
    return status, {image["file_name"]: image["overlay"] for image in content["images"]}


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_predict_writes_overlays_boundaries_and_coco_and_skips_what_is_broken(made, images, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    one, other, two = (save(folder / n, i) for n, i in zip(("a/one.png", "b/one.png", "b/two.jpg"), images))
    (folder / "b/broken.png").write_bytes((folder / "b/one.png").read_bytes()[:100])
    given = [one, folder / "b", folder / "b/*.jpg", folder / "b/../b/two.jpg"]
    status, overlays = looked_at(given, made, out, "--boundaries", "--min-score", "0")
    said, err = capsys.readouterr()
    assert status == 1
    assert "3 of 4 images" in said and "broken.png is no image that can be read" in err
    found = COCO(str(out / "predictions.json"))
    assert list(overlays) == [str(one), str(other), str(two)]
    boundaries = [image["boundaries"] for image in found.imgs.values()]
    written = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert written == {*overlays.values(), *boundaries, "predictions.json"}
    assert all(np.asarray(Image.open(out / name)).shape == (64, 64, 3) for name in overlays.values())
    assert all(np.asarray(Image.open(out / name)).shape == (64, 64) for name in boundaries)
    assert {a["category_id"] for a in found.anns.values()} <= {1, 2, 3, 4}
    for annotation in found.anns.values():
        assert found.annToMask(annotation).sum() == annotation["area"] and 0 <= annotation["score"] <= 1


def test_predict_finds_what_the_predictor_finds(made, images, tmp_path, monkeypatch):
    """Also where a mask is pasted in bands of a few rows, as those of large images are."""
    monkeypatch.setattr(paste, "PIXELS_AT_ONCE", 300)
    large = cv2.resize(images[0], (210, 150))
    predictor = package.Predictor(made[1], device="cpu", boundaries=True)
    everything = predictor(large)
    score = everything.scores.median().item()
    instances = predictor(large, min_score=score)
    assert 0 < len(instances) == (everything.scores >= score).sum() < len(everything)
    path = save(tmp_path / "a.png", large)
    looked_at([path], made, tmp_path / "out", "--min-score", repr(score), "--boundaries")
    found = COCO(str(tmp_path / "out/predictions.json"))
    assert [a["score"] for a in found.anns.values()] == instances.scores.tolist()
    masks = np.array([found.annToMask(a) for a in found.anns.values()])
    assert (masks != instances.pred_masks.numpy()).mean() < 1e-4


def test_images_of_one_name_have_files_of_their_own(made, images, tmp_path):
    names = ["x/img.png", "x/img_2.png", "y/img.png", "x/img.jpg", "x/IMG.png", "X/img.png", "x/img.png.overlay.png"]
    names += ["x/" + "long" * 60 + ".png", "x/" + "\u65e5" * 80 + ".png"]
    paths = [save(tmp_path / name, images[0]) for name in names]
    folders = [tmp_path / name for name in ("x", "y", "X")]
    status, overlays = looked_at(folders, made, tmp_path / "out", "--boundaries")
    assert status == 0 and set(overlays) == set(map(str, paths))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    # Small and capital letters are one on some disks.
    assert len({str(path).casefold() for path in files}) == len(files) == 2 * len(paths) + 1
    assert overlays[str(paths[1])] == "x/img_2.png.overlay.png"
    assert looked_at([paths[1]], made, tmp_path / "alone")[1] == {str(paths[1]): "img_2.png.overlay.png"}


@pytest.mark.parametrize("out", ["photos", "link", "photos/../photos"])
def test_nothing_is_written_among_the_images(made, images, tmp_path, capsys, out):
    path = save(tmp_path / "photos/a.png", images[0])
    (tmp_path / "link").symlink_to("photos")
    before = path.read_bytes()
    for given in (path.parent, path):
        assert looked_at([given], made, tmp_path / out)[0] == 2
        assert "which is read; name another" in capsys.readouterr().err
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_no_link_makes_an_output_replace_what_is_read(made, images, tmp_path, capsys):
    photo, out = save(tmp_path / "photos/a.png", images[0]), tmp_path / "out"
    overlay = out / looked_at([photo], made, out)[1][str(photo)]
    photo.unlink()
    photo.symlink_to(overlay)  # the image is now what was written of it
    before = overlay.read_bytes()
    assert looked_at([photo], made, out)[0] == 2
    assert "would replace" in capsys.readouterr().err and overlay.read_bytes() == before
    model = tmp_path / "model"
    model.mkdir()
    for name, source in (("predictions.json", made[1]), ("record.json", made[1].with_name("record.json"))):
        (model / name).write_bytes(source.read_bytes())
    photo = save(tmp_path / "b.png", images[0])
    assert looked_at([photo], (None, model / "predictions.json"), model)[0] == 2
    assert "would replace" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["b.png", "link.png", "model/checkpoint.pth", "model/record.json", "model"])
def test_an_exported_model_replaces_nothing_that_is_read(made, images, tmp_path, capsys, out):
    image = save(tmp_path / "b.png", images[0])
    (tmp_path / "link.png").symlink_to("b.png")
    (tmp_path / "model").mkdir()
    for name in ("checkpoint.pth", "record.json"):
        os.link(made[1].with_name(name), tmp_path / "model" / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    command = ["export", image, "--weights", tmp_path / "model/checkpoint.pth", "--out", tmp_path / out]
    assert main([*map(str, command)]) == 2
    assert "name another place" in (err := capsys.readouterr().err) or "is a folder; name a file" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_place_that_is_no_folder_is_one_sentence(made, images, tmp_path, capsys):
    path = save(tmp_path / "photos/a.png", images[0])
    (tmp_path / "file").touch()
    for out, words in ((tmp_path / "file", "is a file"), (tmp_path / "file/x", "cannot be written (Not a")):
        assert looked_at([path], made, out)[0] == 2
        err = capsys.readouterr().err
        assert words in err and "Traceback" not in err


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 2000)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_thin_images_are_looked_at(made, size):
    found = package.Predictor(made[1], device="cpu", boundaries=True)(np.zeros((*size, 3), np.uint8))
    assert found.image_size == size and found.pred_masks.shape[1:] == size


@pytest.mark.parametrize("error", [MemoryError("too much"), RuntimeError("not enough memory"), KeyboardInterrupt()])
def test_what_fails_for_one_image_or_a_stop_loses_nothing_of_the_others(
    made, images, tmp_path, monkeypatch, capsys, error
):
    paths = [save(tmp_path / f"photos/{name}.png", images[0]) for name in "abc"]
    calls, in_boxes = [], package.Predictor.in_boxes

    def fail_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return in_boxes(*arguments)

    monkeypatch.setattr(package.Predictor, "in_boxes", fail_at_the_second)
    status, overlays = looked_at([tmp_path / "photos"], made, tmp_path / "out")
    stopped = isinstance(error, KeyboardInterrupt)
    assert status == (130 if stopped else 1)
    assert list(overlays) == [str(paths[0])] if stopped else [str(paths[0]), str(paths[2])]
    assert all((tmp_path / "out" / name).exists() for name in overlays.values())
    err = capsys.readouterr().err
    assert stopped or f"{paths[1]} is too much for this machine or model ({error})" in err


def test_masks_are_pasted_one_at_a_time(made, images, tmp_path, monkeypatch):
    """All masks of a large image at once are more than the memory holds."""
    largest, original = [], paste.paste_masks_in_image

    def watched(masks, *arguments):
        largest.append(len(masks))
        return original(masks, *arguments)

    monkeypatch.setattr(paste, "paste_masks_in_image", watched)
    monkeypatch.setattr("detectron2.structures.masks.ROIMasks.to_bitmasks", None)
    path = save(tmp_path / "a.png", images[0])
    status, _ = looked_at([path], made, tmp_path / "out", "--min-score", "0.1", "--boundaries")
    assert status == 0 and len(largest) > 10 and set(largest) == {1}


@pytest.mark.parametrize("name", [b"bad\xff.png", b"new\nline.png", b'it\'s "a" [b]*.png', "\u00e4\u65e5.png".encode()])
def test_any_name_of_a_file_survives(made, images, tmp_path, capsys, name):
    path = tmp_path / "photos" / os.fsdecode(name)
    try:
        save(path, images[0])
    except OSError:
        pytest.skip("this file system does not take such names")
    path.with_suffix(".jpg").write_text("broken")
    status, overlays = looked_at([path, path.parent], made, tmp_path / "out")
    assert status == 1 and [os.fsencode(name) for name in overlays] == [os.fsencode(path)]
    assert all((tmp_path / "out" / overlay).exists() for overlay in overlays.values())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no image" in line]
    assert line.encode()  # can be printed


def test_a_folder_stands_for_every_image_that_could_be_named(tmp_path, images):
    image = Image.fromarray(images[0])
    names = ["a.PNG", "b.jpeg", "c.tif", "d.webp", "e.gif", "f.bmp", "g.ppm", "h.jp2", "i.Jfif", "j.tga", "k.mpo"]
    for name in names:
        image.save(tmp_path / name, "JPEG" if name[0] in "ik" else None)
    for name in ("notes.txt", "._a.PNG", "report.pdf", "data.h5"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    image.save(tmp_path / "folder.png/inside.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    assert [path.name for path in image_paths(tmp_path)] == sorted([*names, "broken.png"])
    assert [path.name for path in image_paths([f"{tmp_path}/**/in*.png"])] == ["inside.png"]
    assert image_paths(str(tmp_path / "a.PNG")) == [tmp_path / "a.PNG"]


def test_arrays_are_converted_by_the_rule_of_files_or_refused(made, images, tmp_path):
    predictor, image = package.Predictor(made[1], device="cpu"), images[0]
    grey = image[:, :, 0]
    as_rgb = predictor(np.repeat(grey[:, :, None], 3, 2))
    rgba = np.dstack([image, grey])
    for given, expected in (
        (grey, as_rgb),
        (grey[:, :, None], as_rgb),
        (rgba, predictor(image)),
        (grey.astype(np.uint16) * 7 + 5, predictor(to_rgb(grey.astype(np.uint16) * 7 + 5))),
    ):
        assert torch.equal(predictor(given).scores, expected.scores)
    assert torch.equal(predictor(read_image(save(tmp_path / "grey.png", grey))).scores, as_rgb.scores)
    for wrong in (image / 255, image[:, :, :2], image[None], "image.png", Image.fromarray(image), [None]):
        complaint(lambda: predictor(wrong), "image")


@pytest.mark.parametrize("size", [0, 1000, 40_000])
def test_a_cut_checkpoint_is_one_sentence_and_so_is_a_foreign_one(made, tmp_path, size):
    path = tmp_path / "checkpoint.pth"
    for name in ("record.json", "checkpoint.pth"):
        (tmp_path / name).write_bytes(made[1].with_name(name).read_bytes())
    os.truncate(path, size)
    complaint(lambda: package.Predictor(path, device="cpu"), str(path), "cut off")
    state = {"a": torch.zeros(1)}
    for content, words in (([1], "no state dict"), ({"model": state}, "no parameter in"), (state, "no parameter in")):
        torch.save(content, path)
        complaint(lambda: package.Predictor(path, device="cpu"), str(path), words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "{}",
        '{"failed": "iteration 2: loss_mask not finite"}',
        '{"config": 5, "metrics": {}}',
        '{"config": "a: [", "metrics": {"segm": {"per_class": {}}}}',
        '{"config": "", "metrics": {"segm": {"per_class": {"cat": 1}}}}',
        "\ufffe",
    ],
)
def test_a_record_that_is_none_is_one_sentence(made, tmp_path, text):
    (tmp_path / "checkpoint.pth").write_bytes(made[1].read_bytes())
    (tmp_path / "record.json").write_text(text)
    complaint(lambda: package.Predictor(tmp_path / "checkpoint.pth", device="cpu"), str(tmp_path / "record.json"))


def test_wrong_input_is_one_sentence(made, tmp_path):
    with pytest.raises(InputError, match="there are no weights"):
        package.Predictor(tmp_path / "none.pth")
    with pytest.raises(InputError, match="there is no image"):
        image_paths([str(tmp_path / "*.png")])
    for nothing in (None, [], ""):
        complaint(lambda: image_paths(nothing), "there are no images")
    complaint(lambda: package.Predictor(made[1], device="tpu"), "no device 'tpu'")
    (tmp_path / "checkpoint.pth").write_bytes(made[1].read_bytes())
    with pytest.raises(InputError, match="give one with --config"):
        package.Predictor(tmp_path / "checkpoint.pth")
    record = json.loads(made[1].with_name("record.json").read_text())
    record["config"] = record["config"].replace("MODEL:", "MODEL:\n  BOUNDARY_MASK_HEAD: {SUPERVISION: mask}")
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="has not learned boundaries"):
        package.Predictor(tmp_path / "checkpoint.pth", device="cpu", boundaries=True)
    image = np.zeros((9, 9, 3), np.uint8)
    for weights, learned in ((tmp_path / "checkpoint.pth", False), (made[1], True)):
        assert package.Predictor(weights, device="cpu", boundaries=None)(image).has("pred_boundaries") is learned
    for score in ("nan", "-1", "1.5"):
        assert looked_at([tmp_path], made, tmp_path / "out", f"--min-score={score}")[0] == 2
