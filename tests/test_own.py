import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PATIENCE, complaint

from bmask.study import config, own, runs
from bmask.study.cli import main
from bmask.study.datasets import Split, shapes
from bmask.study.datasets.check import survey, to_text
from bmask.study.launch import work


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A data set of someone's own: polygons to train on, masks to test on."""
    folder = tmp_path_factory.mktemp("mine") / "set"
    shapes.generate(folder, seed=4, num_train=6, num_val=3, image_size=64)
    shapes.coarsen(folder, "train", 0.04)
    return folder


def places(folder):
    train = folder / "images/train", folder / "annotations/instances_train_coarse0.04.json"
    return train, (folder / "images/val", folder / "annotations/instances_val_fine.json")


def arguments(folder, *more):
    train, val = places(folder)
    return [*map(str, ["train", "--train", *train, "--val", *val, "--device", "cpu", *more])]


def test_training_on_data_of_your_own_ends_with_a_page(mine, tmp_path, bmask):
    process = bmask(*arguments(mine, "--name", "mine", "--iterations", "4"))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("instances_train_coarse0.04.json: 6 images,")
    (chosen,) = [line for line in lines if line.startswith("EfficientNet-Lite0-FPN from ImageNet")]
    assert "4 classes; input 64" in chosen and "2 images a batch, learning rate 0.0005" in chosen
    assert "4 iterations (as asked)" in chosen
    results = tmp_path / "results/local/mine"
    assert lines[-1] == str(results / "bmask_rcnn.md")
    page = (results / "bmask_rcnn.md").read_text()
    assert "| masks" in page and "| boundaries" in page
    for name in ("bmask_rcnn_curves.png", "bmask_rcnn_images.png"):
        assert name in page and cv2.imread(str(results / name)).shape[1] > 300
    (record,) = [json.loads(path.read_text()) for path in (results / "runs").glob("*.json")]
    assert list(record["metrics"]["segm"]["per_class"]) == list(shapes.CLASSES)
    # The same command finds everything made; the profile serves the other commands as well.
    process = bmask(*arguments(mine, "--name", "mine", "--iterations", "4"))
    assert process.wait(timeout=PATIENCE) == 0
    process = bmask("table", "3", "--profile", "mine")
    out, _ = process.communicate(timeout=PATIENCE)
    assert "Profile `mine`" in out and process.returncode == 0


@pytest.fixture
def pair(mine, monkeypatch, output):
    """Both splits with what was found in them, and an empty place for profiles and runs."""
    monkeypatch.setattr(config, "OUTPUT", output)
    return [(Split(j, i), survey(j, i)) for i, j in places(mine)]


def test_the_schedule_is_scaled_to_the_data_and_the_batch(pair):
    grown = pair[0][1]._replace(image_sizes=np.full((30_000, 2), 960), sides=np.full(9, 300.0))
    pair[0] = (pair[0][0], grown)
    chosen = own.write_profile("big", *pair, device="cuda", batch=8)
    cfg = config.resolve("bmask_rcnn", "big")
    assert cfg.SOLVER.IMS_PER_BATCH == 8 and cfg.SOLVER.BASE_LR == 0.01
    assert cfg.SOLVER.MAX_ITER == 12 * 30_000 // 8 and tuple(cfg.SOLVER.STEPS) == (30_000, 40_000)
    assert cfg.INPUT.MIN_SIZE_TEST == 800 and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    assert cfg.MODEL.WEIGHTS.endswith("R-50.pkl") and cfg.MODEL.ANCHOR_GENERATOR.SIZES[0] == [32]
    assert "45000 iterations (12 passes over 30000 images" in chosen
    with pytest.raises(own.InputError, match="there is a profile cpu already"):
        own.write_profile("cpu", *pair, device="cuda")
    other = pair[1][1]._replace(classes={"cat": 3})
    with pytest.raises(own.InputError, match="has the classes cat"):
        own.write_profile("new", pair[0], (pair[1][0], other), device="cuda")


def test_a_profile_is_written_anew_until_something_has_been_trained_with_it(pair, output):
    def write(batch):
        own.write_profile("mine", *pair, device="cpu", batch=batch)
        return config.resolve("bmask_rcnn", "mine").SOLVER.IMS_PER_BATCH

    assert write(2) == 2
    run = runs.Run("bmask_rcnn", "mine", 0)
    run.folder.mkdir(parents=True)
    (run.folder / "log.txt").write_text("the data were wrong")
    assert write(4) == 4  # the first try came to nothing
    (run.folder / "checkpoint.pth").touch()
    assert write(4) == 4
    complaint(lambda: write(2), "there is a profile mine already", "--name", str(output / "runs/mine"))
    assert write(4) == 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("objects", [3, 200, 1000])
def test_no_more_detections_are_allowed_than_proposals_are_kept(pair, device, objects):
    crowded = [(split, found._replace(objects=np.array([objects]))) for split, found in pair]
    own.write_profile("crowded", *crowded, device=device)
    cfg = config.resolve("bmask_rcnn", "crowded")
    rpn, detections = cfg.MODEL.RPN, cfg.TEST.DETECTIONS_PER_IMAGE
    assert detections >= 1.5 * objects
    assert min(rpn.POST_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TRAIN) >= 2.5 * detections
    # Chosen on each level of the pyramid by itself: all small objects are on one.
    assert rpn.PRE_NMS_TOPK_TEST >= rpn.POST_NMS_TOPK_TEST
    assert rpn.PRE_NMS_TOPK_TRAIN >= rpn.POST_NMS_TOPK_TRAIN


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_very_short_training_is_one(pair, iterations):
    own.write_profile("short", *pair, device="cpu", iterations=iterations)
    run = runs.Run("bmask_rcnn", "short", 0)
    assert work.work(run, runs.Options(device="cpu")) == 0
    assert run.record()["losses"]["iteration"][-1] == iterations


@pytest.mark.parametrize(
    "more", [["--name", "../../x"], ["--name", "cpu"], ["--name", ""], ["--batch", "-1"], ["--iterations", "-5"]]
)
def test_what_cannot_be_trained_is_said_before_the_data_are_read(mine, monkeypatch, output, capsys, more):
    monkeypatch.setattr(config, "OUTPUT", output)
    monkeypatch.setattr("bmask.study.datasets.check.survey", None)
    assert main(arguments(mine, *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("bmask: ") and more[0] in err and err.count("\n") == 1
    assert not list(output.iterdir())


def test_data_without_an_object_are_refused(pair):
    (split, found), val = pair
    nothing = found._replace(sides=np.zeros(0), objects=np.zeros(6, int))
    complaint(lambda: own.write_profile("empty", (split, nothing), val, "cpu"), "no objects", str(split.json))


def test_half_a_data_set_is_refused():
    assert own.given(None, None, None, "") is None
    assert own.given("i", "j", "k", "l") == (Split(Path("j"), Path("i")), Split(Path("l"), Path("k")))
    complaint(lambda: own.given("i", "j", None, "l"), "without val_images")
    complaint(lambda: own.given(None, "j", "", None), "without train_images, val_images, val_json")


@pytest.fixture
def defects(tmp_path):
    """A data set with one of each defect."""
    for name in "abcde":
        picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:500])
    images = [{"id": k, "file_name": f"{n}.png", "height": 40, "width": 50} for k, n in enumerate("abcdef")]
    images[1]["height"] = 41
    images.append({"id": 3, "file_name": "e.png", "height": 40, "width": 50})
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]

    def annotation(number, segmentation=square, **more):
        entry = {"id": number, "image_id": 0, "category_id": 1, "bbox": [5, 5, 10, 10], "area": 100}
        return {**entry, "iscrowd": 0, "segmentation": segmentation, **more}

    annotations = [
        annotation(1),
        annotation(1, image_id=4),
        annotation(2, image_id=99),
        annotation(3, category_id=7),
        annotation(4, bbox=[5, 5, 0, 10], image_id=3),
        annotation(5, [[5, 5, 15, 15]]),
        annotation(6, [[5, 5, 10, 10, 15, 15]]),
        annotation(7, {"size": [4, 4], "counts": [16]}),
        annotation(8, {"size": [40, 50], "counts": [1, 2]}),
        annotation(9, {"size": [40, 50], "counts": [100, 50, 1850]}, iscrowd=1, image_id=3),
        annotation(10, bbox=[45, 5, 20, 10], image_id=4),
    ]
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "thing"}, {"id": 2, "name": "unused"}]
    (tmp_path / "bad.json").write_text(json.dumps(content))
    return tmp_path


def test_the_data_check_finds_one_of_each_defect(defects):
    found = survey(defects / "bad.json", defects)
    errors, warnings = "\n".join(found.errors), "\n".join(found.warnings)
    for words in (
        "image id 3 occurs more than once",
        "image 5 (f.png) is not in",
        "c.png is no image that can be read (",
        "image 1 (b.png: 41 x 50 in the list, 40 x 50 as displayed) has another size",
        "annotation id 1 occurs more than once",
        "annotation 2 names image 99",
        "annotation 3 of image 0 (a.png) names category 7",
        "annotation 5 of image 0 (a.png) has a polygon of 2 points where three are needed; correct or remove",
        "annotation 6 of image 0 (a.png) has a mask of zero area; remove it",
        "annotation 7 of image 0 (a.png) has an RLE of size [4, 4] where the image is [40, 50]",
        "annotation 8 of image 0 (a.png) has an RLE that does not decode to its image's number of pixels",
    ):
        assert words in errors, words
    for words in (
        "annotation 4 of image 3 (d.png) has a box without width or height",
        "annotation 10 of image 4 (e.png) has a box that lies elsewhere than its mask",
        "category 2 (unused) has no annotation",
        "image 3 (e.png) is listed more than once",
    ):
        assert words in warnings, words
    assert found.crowds == 1 and found.rle and found.classes == {"thing": 10, "unused": 0}
    text = to_text("bad.json", found)
    assert len(text.splitlines()) <= 24 and "and 3 more kinds" in text


def test_the_data_check_says_how_large_objects_are_and_how_coarse_polygons(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 200, 3), np.uint8))
    squares = [[10, 10, 10 + side, 10, 10 + side, 10 + side, 10, 10 + side] for side in (20, 40, 60)]
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": [10, 10, s, s], "area": s * s, "iscrowd": 0}
        | {"segmentation": [square]}
        for k, (s, square) in enumerate(zip((20, 40, 60), squares), 1)
    ]
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 200}]}
    content |= {"annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    path = tmp_path / "good.json"
    path.write_text(json.dumps(content))
    found = survey(path, tmp_path)
    assert list(found.sides) == [20, 40, 60] and found.edges[:, 0].tolist() == [20, 40, 60]
    assert found.edges[:, 1].tolist() == [1, 1, 1] and found.objects.tolist() == [3]
    assert main(["check-data", str(path), str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "20 to 60 pixels" in out and "median 40; 33% below 32" in out
    assert "a point every 40.0 pixels, 100% of the object's size" in out


def test_errors_of_the_data_stop_everything_before_it_is_started(mine, defects, capsys, output):
    assert main(["check-data", str(defects / "bad.json"), str(defects)]) == 2
    capsys.readouterr()
    command = arguments(mine)
    command[2:4] = [str(defects), str(defects / "bad.json")]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert "bmask: " in err and "has errors, above; correct them first" in err and "error" in out
    assert not (output / "runs").exists() and not (config.OUTPUT / "profiles").exists()
    assert runs.OUTPUT == output
