"""Data sets that are published as a zip: how it is fetched."""

import pytest
from conftest import complaint, contents

from bmask.study.datasets.archives import download

CONTENT = bytes(range(200))


def test_a_download_that_fails_is_one_sentence_and_leaves_no_file_of_that_name(tmp_path):
    url = (tmp_path / "nowhere.zip").as_uri()
    complaint(lambda: download(url, tmp_path / "got/data.zip"), url, "got/data.zip")
    assert not (tmp_path / "got/data.zip").exists()


def test_what_is_there_is_not_fetched(tmp_path):
    (tmp_path / "data.zip").write_bytes(CONTENT)
    assert download("http://nowhere.invalid/data.zip", tmp_path / "data.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [206, 200], ids=["continued", "sent whole"])
@pytest.mark.parametrize("cut", [0, 120, 200])
def test_a_download_goes_on_where_it_was_cut(serve, tmp_path, status, cut):
    """A server that breaks off first, and can or cannot send the rest alone; all may have come but the end."""
    asked = []

    def answer(request):
        asked.append(request.headers["Range"])
        start = int(asked[-1][len("bytes=") : -1]) if status == 206 else 0
        if start >= len(CONTENT):
            return request.send_error(416)
        request.send_response(status)
        request.send_header("Content-Length", len(CONTENT) - start + (len(asked) == 1))
        request.end_headers()
        request.wfile.write(CONTENT[start : cut if len(asked) == 1 else None])

    url, target = f"{serve(answer)}/data.zip", tmp_path / "got/data.zip"
    complaint(lambda: download(url, target), url)
    assert not target.exists()
    assert download(url, target).read_bytes() == CONTENT
    assert asked == ["bytes=0-", f"bytes={max(0, cut - 1)}-"]
    assert {name for name in contents(target.parent) if not name.endswith(".lock")} == {"data.zip"}
