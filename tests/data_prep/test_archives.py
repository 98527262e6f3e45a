"""Folders and archives: the same files, nothing extracted, nothing outside."""

import gzip
import io
import os
import tarfile
import zipfile

import pytest

from data_prep import archives
from data_prep.archives import (
    SourceError,
    find_root,
    fingerprint,
    newest_change,
    open_source,
)

FILES = {"a/x.txt": b"first", "a/b/y.bin": bytes(range(256)) * 9, "z.txt": b""}
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")


@pytest.fixture
def pack(tmp_path):
    """Writes an archive with these members; the suffix decides on the kind."""

    def write(suffix, members=FILES):
        path = tmp_path / f"packed{suffix}"
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            return path
        with tarfile.open(path, "w" if suffix == ".tar" else "w:gz") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    return write


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archives_hold_what_a_folder_holds(pack, tmp_path, suffix):
    folder = tmp_path / "folder"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    path = pack(suffix)
    for files in (open_source(folder), open_source(path)):
        assert list(files) == sorted(FILES)
        assert {name: file.read() for name, file in files.items()} == FILES
        assert {n: file.size for n, file in files.items()} == {
            name: len(content) for name, content in FILES.items()
        }
    where = open_source(path)["a/b/y.bin"].where
    assert where == f"{path}: a/b/y.bin"
    assert open_source(path)["a/b/y.bin"].suffix == ".bin"
    assert {p.name for p in tmp_path.iterdir()} == {"folder", path.name}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "..\\o"])
def test_members_that_climb_out_are_refused(pack, suffix, name):
    path = pack(suffix, {"a/x.txt": b"1", name: b"2"})
    with pytest.raises(SourceError, match="leads out of the archive") as error:
        open_source(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_links_in_a_tar_are_no_files(tmp_path):
    path = tmp_path / "packed.tar"
    with tarfile.open(path, "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert open_source(path) == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hidden_files_and_leading_dots(pack, suffix):
    files = open_source(pack(suffix, {"./a/x.png": b"1", "./a/._x.png": b"2"}))
    assert list(files) == ["a/x.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("left", [0.0, 0.3, 0.6, 0.95])
def test_truncated_archive(pack, suffix, left):
    noise = {f"{n}.bin": bytes(range(256)) * 40 for n in range(40)}
    path = pack(suffix, noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))])
    with pytest.raises(SourceError) as error:
        for file in open_source(path).values():
            file.read()
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    assert "cut short" in text or "not an intact archive" in text


def test_tar_that_ends_between_two_members(pack):
    # Nothing is wrong with what is there, but the empty blocks of the end are missing.
    path = pack(".tar", {"a": b"x" * 512, "b": b"y" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(SourceError, match="cut short"):
        open_source(path)


def test_damaged_byte_in_a_compressed_archive(pack):
    for suffix in (".tgz", ".zip"):
        path = pack(suffix, {"a.bin": bytes(range(256)) * 40})
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
        with pytest.raises(SourceError, match="not an intact archive"):
            open_source(path)["a.bin"].read()


def test_streaming_keeps_what_is_wanted_and_reads_once(pack, monkeypatch):
    path = pack(".tgz")
    opened = []
    original = gzip.open
    monkeypatch.setattr(
        gzip, "open", lambda *args: opened.append(args) or original(*args)
    )
    files = archives.stream_tar(path, lambda name: name.endswith(".bin"))
    assert list(files) == ["a/b/y.bin"]
    assert files["a/b/y.bin"].read() == FILES["a/b/y.bin"]
    assert len(opened) == 1


def test_a_tar_is_listed_without_reading_its_files(pack, monkeypatch):
    path = pack(".tar", {"a.bin": bytes(10**6), "b.bin": bytes(10**6)})
    read = []
    with path.open("rb") as file:
        counting = CountingFile(file, read)
        monkeypatch.setattr(tarfile, "bltn_open", lambda *args: counting)
        archives.list_tar(path)
    assert sum(read) < 10**4


class CountingFile:
    """A file that notes how many bytes are read from it."""

    def __init__(self, file, read):
        self._file, self._read = file, read
        self.name, self.mode = file.name, "rb"

    def read(self, size=-1):
        content = self._file.read(size)
        self._read.append(len(content))
        return content

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_neither_folder_nor_archive(tmp_path):
    with pytest.raises(SourceError, match="no such folder or archive"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "x.rar").touch()
    with pytest.raises(SourceError, match="x.rar: is neither a folder nor one of .tar"):
        open_source(tmp_path / "x.rar")


def test_root_is_the_shallowest():
    files = dict.fromkeys(["b/c/x/y.txt", "a/x/y.txt", "zx/y.txt"])
    assert find_root(files, "x/y.txt") == "a"
    assert find_root({"x/y.txt": None}, "x/y.txt") == ""
    assert find_root(files, "q.txt") is None


def test_fingerprint_tells_sources_apart(draw_folder, tmp_path):
    one, two = draw_folder(tmp_path / "one"), draw_folder(tmp_path / "two")
    assert fingerprint(one) == fingerprint(two)
    (two / "classes.txt").write_text("other\n")
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one / "classes.txt") != fingerprint(two / "classes.txt")


def test_newest_change(tmp_path):
    for name, moment in (("a/x", 5), ("y", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (moment, moment))
    os.utime(tmp_path / "a", (1, 1))
    os.utime(tmp_path, (1, 1))
    assert newest_change(tmp_path) == newest_change(str(tmp_path / "y")) == 9 * 10**9
    assert newest_change(None) == newest_change(tmp_path / "nowhere") == 0
