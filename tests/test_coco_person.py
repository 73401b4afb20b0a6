import http.server
import json
import lzma
import threading
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import complaint

from bmask.study.datasets import coco_person


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with six photographs of 60 x 80 pixels, and annotations of these at 30 x 40.

    It answers each first request for an odd one with an error or half a file. ``asked`` counts requests, ``files`` may
    be changed.
    """
    files = {f"{k}.jpg": cv2.imencode(".jpg", np.full((60, 80, 3), 40 * k, np.uint8))[1].tobytes() for k in range(6)}
    asked = Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            asked[name] += 1
            flaky = asked[name] == 1 and int(name[0]) % 2
            if name not in files or (flaky and name == "1.jpg"):
                return self.send_error(404 if name not in files else 503)
            self.send_response(200)
            self.send_header("Content-Length", len(files[name]))
            self.end_headers()
            self.wfile.write(files[name][: 100 if flaky else None])

        def log_message(self, *_):
            pass

    started = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=started.serve_forever, daemon=True).start()
    annotated = {"train": range(4), "val": range(4, 6)}
    for split, numbers in annotated.items():
        where = {"coco_split": f"{split}2017", "height": 30, "width": 40}
        url = f"http://127.0.0.1:{started.server_port}/{split}2017"
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
    yield files, asked
    started.shutdown()


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


def test_a_folder_of_coco_is_taken_without_network(server, tmp_path):
    files, asked = server
    for k in range(6):
        folder = tmp_path / "coco" / ("train2017" if k < 4 else "val2017")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(files[f"{k}.jpg"])
    coco_person.prepare(tmp_path / "data", tmp_path / "coco")
    assert not asked and len(list((tmp_path / "data/images").iterdir())) == 6
