import json
import lzma
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import complaint

from bmask.study.datasets import coco_person


@pytest.fixture
def server(tmp_path, monkeypatch, serve):
    """A server with six photographs of 60 x 80 pixels, and annotations of these at 30 x 40.

    It answers each first request for an odd one with an error, half a file, or half a file without saying so. ``asked``
    counts requests, ``files`` may be changed.
    """
    files = {f"{k}.jpg": cv2.imencode(".jpg", np.full((60, 80, 3), 40 * k, np.uint8))[1].tobytes() for k in range(6)}
    asked = Counter()

    def answer(request):
        name = request.path.rpartition("/")[2]
        asked[name] += 1
        flaky = asked[name] == 1 and int(name[0]) % 2
        if name not in files or (flaky and name == "1.jpg"):
            return request.send_error(404 if name not in files else 503)
        request.send_response(200)
        if name != "5.jpg":
            request.send_header("Content-Length", len(files[name]))
        request.end_headers()
        request.wfile.write(files[name][: len(files[name]) // 2 if flaky else None])

    address = serve(answer)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    annotated = {"train": range(4), "val": range(4, 6)}
    for split, numbers in annotated.items():
        where = {"coco_split": f"{split}2017", "height": 30, "width": 40}
        url = f"{address}/{split}2017"
        box = {"bbox": [5, 5, 20, 20], "area": 400, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
        content = {
            "images": [{"id": k, "file_name": f"{k}.jpg", "coco_url": f"{url}/{k}.jpg", **where} for k in numbers],
            "annotations": [{"id": k + 1, "image_id": k, "category_id": 1, "iscrowd": 0, **box} for k in numbers],
            "categories": [{"id": 1, "name": "person"}],
        }
        path = tmp_path / f"experiments/data/coco_person_{split}.json.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(json.dumps(content).encode()))
    monkeypatch.setattr(coco_person, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(coco_person.time, "sleep", lambda _: None)
    return files, asked


def test_images_are_fetched_scaled_and_pass_the_check_though_the_server_fails_now_and_then(server, tmp_path):
    _, asked = server
    coco_person.prepare(tmp_path / "data")
    assert {asked[f"{k}.jpg"] for k in (0, 2, 4)} == {1} and {asked[f"{k}.jpg"] for k in (1, 3, 5)} == {2}
    for k in range(6):
        image = cv2.imread(str(tmp_path / f"data/images/{k}.jpg"))
        assert image.shape == (30, 40, 3) and abs(image.mean() - 40 * k) < 2
    coco_person.prepare(tmp_path / "data")
    assert sum(asked.values()) == 9  # nothing is fetched again


@pytest.mark.parametrize(
    "content", [None, b"<html>", cv2.imencode(".jpg", np.zeros((60, 60, 3), np.uint8))[1].tobytes()]
)
def test_what_cannot_be_had_is_one_sentence_and_loses_nothing_of_the_others(server, tmp_path, content):
    files, asked = server
    good = files.pop("2.jpg")
    if content:
        files["2.jpg"] = content
    complaint(lambda: coco_person.prepare(tmp_path / "data"), "1 images", "2.jpg")
    assert len(list((tmp_path / "data/images").iterdir())) == 5 and not list((tmp_path / "data").glob("*.json"))
    files["2.jpg"] = good
    asked.clear()
    coco_person.prepare(tmp_path / "data")
    assert set(asked) == {"2.jpg"} and (tmp_path / "data/instances_val.json").exists()


def test_without_network_it_ends_soon_and_says_how_many_are_left(server, tmp_path, monkeypatch):
    files, asked = server
    files.clear()
    monkeypatch.setattr(coco_person, "AT_ONCE", 1)
    monkeypatch.setattr(coco_person, "ENOUGH", 2)
    complaint(lambda: coco_person.prepare(tmp_path / "data"), "6 images", "404")
    assert set(asked) == {"0.jpg", "1.jpg"}


def coco(root, files):
    """A folder of COCO 2017 with these files."""
    for name, content in files.items():
        path = root / ("train2017" if int(name[0]) < 4 else "val2017") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_a_folder_of_coco_is_taken_without_network(server, tmp_path):
    files, asked = server
    coco_person.prepare(tmp_path / "data", coco(tmp_path / "coco", files))
    assert not asked and len(list((tmp_path / "data/images").iterdir())) == 6


def test_what_there_is_of_coco_where_detectron2_has_it_is_not_fetched(server, tmp_path):
    files, asked = server
    coco(tmp_path / "datasets/coco", {name: files[name] for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg")})
    coco_person.prepare(tmp_path / "data")
    assert set(asked) == {"4.jpg", "5.jpg"} and len(list((tmp_path / "data/images").iterdir())) == 6


def test_a_folder_that_is_not_coco_is_one_sentence(server, tmp_path):
    folder = coco(tmp_path / "coco", {"4.jpg": b""})
    complaint(lambda: coco_person.prepare(tmp_path / "data", folder), str(folder / "train2017"))
