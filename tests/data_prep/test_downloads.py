"""Archives from the net: checked, kept, and asked for when no host has them."""

import dataclasses
import hashlib
import http.server
import socket
import threading

import pytest

from data_prep import downloads
from data_prep.archives import SourceError
from data_prep.downloads import Archive, fetch

CONTENT = b"an archive" * 1000
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path):
    """Serves a folder with x.tar here; yields its address and what it saw."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "x.tar").write_bytes(CONTENT)
    seen = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            seen.append(self.command)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()


@pytest.fixture
def archive(server):
    return Archive("x.tar", f"{server[0]}/x.tar", MD5, "http://home/")


def fails(tmp_path, archive, *words, mirror=None):
    with pytest.raises(SourceError) as error:
        fetch(archive, tmp_path / "cache", mirror, tmp_path / "source" / archive.name)
    text = str(error.value)
    assert "\n" not in text
    for word in (*words, str(tmp_path / "source" / "x.tar"), "http://home/"):
        assert word in text


def test_downloaded_once(tmp_path, server, archive):
    for _ in range(2):
        path = fetch(archive, tmp_path / "cache", None, tmp_path)
        assert path.read_bytes() == CONTENT
    assert server[1].count("GET") == 1


def test_mirror_takes_the_place_of_the_host(tmp_path, server, archive):
    elsewhere = dataclasses.replace(archive, url="http://127.0.0.1:9/x.tar")
    path = fetch(elsewhere, tmp_path / "cache", f"{server[0]}/", tmp_path)
    assert path.read_bytes() == CONTENT


def test_wrong_content_is_not_kept(tmp_path, archive):
    other = dataclasses.replace(archive, digest="sha256:" + "0" * 64)
    fails(tmp_path, other, f"{archive.url}: the file has sha256:", "it was deleted")
    assert not [path for path in (tmp_path / "cache").rglob("*x.tar*")]
    assert fetch(archive, tmp_path / "cache", None, tmp_path).read_bytes() == CONTENT


def test_host_that_lacks_the_file(tmp_path, server, archive):
    fails(
        tmp_path,
        dataclasses.replace(archive, url=f"{server[0]}/y.tar"),
        "x.tar is missing",
        "/y.tar does not deliver it (HTTP Error 404",
        "--mirror",
    )


def test_host_that_refuses(tmp_path, archive):
    nobody = dataclasses.replace(archive, url="http://127.0.0.1:9/x.tar")
    fails(tmp_path, nobody, "does not deliver it (", "refused")


def test_host_that_is_silent(tmp_path, archive, monkeypatch):
    monkeypatch.setattr(downloads, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar"
        fails(tmp_path, dataclasses.replace(archive, url=url), "timed out")


def test_login(tmp_path, archive):
    behind = dataclasses.replace(archive, url=None)
    fails(tmp_path, behind, "x.tar is missing and needs a login")


def test_mirror_is_an_address(tmp_path, archive):
    with pytest.raises(SourceError, match="--mirror=/disk: must begin with http"):
        fetch(archive, tmp_path, "/disk", tmp_path)
