"""Folders and archives: the same files, nothing extracted, nothing outside."""

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from data_prep import archives
from data_prep.archives import (
    SourceError,
    find_root,
    fingerprint,
    newest_change,
    open_source,
    sizes_alone,
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


@pytest.fixture
def pack_links(tmp_path):
    """Writes a tar of links (name, kind, what it says) and of a file, a/x.png."""

    def write(suffix, *links):
        path = tmp_path / f"packed{suffix}"
        with tarfile.open(path, "w" if suffix == ".tar" else "w:gz") as archive:
            for name, kind, target in [*links[:1], ("a/x.png", None, ""), *links[1:]]:
                member = tarfile.TarInfo(name)
                if kind:
                    member.type, member.linkname = kind, target
                    archive.addfile(member)
                else:
                    member.size = 3
                    archive.addfile(member, io.BytesIO(b"png"))
        return path

    return write


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_links_in_a_tar_have_the_content_of_their_file(pack_links, suffix):
    path = pack_links(
        suffix,
        ("a/b/before.png", tarfile.SYMTYPE, "../x.png"),
        ("./hard.png", tarfile.LNKTYPE, "./a/x.png"),
        ("a/of_link.png", tarfile.SYMTYPE, ".././hard.png"),
        ("a/x.png", tarfile.LNKTYPE, "a/x.png"),  # GNU tar, of a file named twice
        (".hidden", tarfile.SYMTYPE, "/etc/passwd"),
    )
    files = open_source(path)
    names = ["a/b/before.png", "a/of_link.png", "a/x.png", "hard.png"]
    assert list(files) == names
    assert {file.read() for file in files.values()} == {b"png"}
    assert {file.size for file in files.values()} == {3}
    assert files["hard.png"].where == f"{path}: hard.png"


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_links_in_a_tar_may_name_a_folder_of_it(pack_links, suffix):
    links = ("val", "a"), ("through.png", "val/x.png"), ("a/again", ".")
    path = pack_links(suffix, *((name, tarfile.SYMTYPE, to) for name, to in links))
    files = archives.open_source(path)
    assert sorted(files) == ["a/x.png", "through.png", "val/x.png"]
    assert len({file.read() for file in files.values()}) == 1


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../a/x.png", "no", "link"])
def test_links_in_a_tar_never_lead_out_of_it(pack_links, suffix, kind, target):
    """Nor to nothing or to themselves."""
    path = pack_links(suffix, ("link", kind, target))
    with pytest.raises(SourceError) as error:
        open_source(path)
    text = str(error.value)
    assert text.startswith(f"{path}: member 'link' is a link to '{target}', and only ")
    assert "pack it with --dereference --hard-dereference" in text and "\n" not in text


def test_links_that_nobody_wants_of_a_compressed_tar(pack_links):
    path = pack_links(
        ".tgz", ("link", tarfile.SYMTYPE, "/etc/passwd"), ("b.png", b"1", "a/x.png")
    )
    assert list(archives.stream_tar(path, lambda n: n.endswith("x.png"))) == ["a/x.png"]
    with pytest.raises(SourceError, match="'b.png' is a link to 'a/x.png'"):
        archives.stream_tar(path, lambda name: name == "b.png")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_devices_and_folders_in_a_tar_are_no_files(tmp_path, suffix, kind):
    path = tmp_path / f"packed{suffix}"
    with tarfile.open(path, "w" if suffix == ".tar" else "w:gz") as archive:
        member = tarfile.TarInfo("device")
        member.type = kind
        archive.addfile(member)
    assert open_source(path) == {}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_drive_of_windows_is_refused(pack):
    with pytest.raises(SourceError, match="leads out of the archive"):
        open_source(pack(".zip", {"C:/x.txt": b"1"}))


def test_a_member_with_holes_is_refused(tmp_path):
    """GNU tar's sparse files claim any size and store nothing."""
    path = tmp_path / "packed.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("big.png")
        member.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(member)
    with pytest.raises(SourceError, match="'big.png' is stored with holes"):
        open_source(path)


def test_a_zip_whose_member_has_no_name(pack):
    path = pack(".zip", {"a": b"1"})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")  # the table of contents
    content = content[: start + 46] + b"\0" + content[start + 47 :]
    path.write_bytes(content)
    with pytest.raises(SourceError, match="not an intact archive"):
        open_source(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bombs_are_refused_before_they_are_unpacked(pack, monkeypatch, suffix):
    path = pack(suffix, {"a.png": bytes(2**24)})
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 2**20)
    tracemalloc.start()
    with pytest.raises(SourceError, match="16777216 bytes; at most 1048576 are read"):
        for file in open_source(path).values():
            archives.check_size(file)
            file.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_what_a_compressed_tar_keeps_is_bounded(pack, monkeypatch):
    path = pack(".tgz", {f"{n}.png": bytes(2**20) for n in range(9)})
    monkeypatch.setattr(archives, "MAX_KEPT_BYTES", 2**22)
    with pytest.raises(SourceError, match="unpacks to more than 4194304 bytes"):
        open_source(path)


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_a_header_that_asks_for_more_than_there_is(tmp_path, suffix):
    """Long names and PAX records are read whole: theirs may be any length."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**60
    content = member.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    path = tmp_path / f"packed{suffix}"
    path.write_bytes(content if suffix == ".tar" else gzip.compress(content))
    with pytest.raises(SourceError, match="a header asks for"):
        open_source(path)


def test_errors_are_one_line_whatever_a_name_holds(tmp_path):
    for name in ("a\nb.tar", "clear\x1b[2J.tar", os.fsdecode(b"caf\xe9.tar")):
        (tmp_path / name).write_bytes(b"no tar")
        with pytest.raises(SourceError) as error:
            open_source(tmp_path / name)
        assert str(error.value).isprintable()


def test_links_in_a_folder_that_lead_in_a_circle(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "x.png").touch()
    (tmp_path / "a" / ".#x.png").symlink_to("editor@host")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert list(open_source(tmp_path)) == ["a/x.png"]
    assert newest_change(tmp_path) > 0


@pytest.mark.parametrize("target", ["/disk/train", "train", "nothing"])
def test_links_in_a_folder_that_lead_nowhere(tmp_path, target):
    """A disk that is not mounted must not make a smaller data set."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train").symlink_to(target)
    (tmp_path / "x.png").touch()
    for look in open_source, newest_change, archives.fingerprint:
        with pytest.raises(SourceError) as error:
            look(tmp_path)
        said = f"{tmp_path}/a/train: is a link to '{target}', where there is nothing"
        assert said in str(error.value)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    for name in "train", "lost+found":
        (tmp_path / name).mkdir()
    (tmp_path / "x.png").touch()
    closed, iterdir = {"lost+found"}, Path.iterdir  # to root all folders are open

    def look(folder):
        if folder.name in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", look)
    assert list(open_source(tmp_path)) == ["x.png"]
    closed.add("train")
    with pytest.raises(SourceError) as error:
        open_source(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/train: reading this folder is not")


def test_links_to_folders_are_followed(tmp_path):
    """A disk for the pictures, another for the lists."""
    elsewhere, source = tmp_path / "elsewhere", tmp_path / "source"
    (elsewhere / "a").mkdir(parents=True)
    (elsewhere / "a" / "x.png").write_bytes(b"x")
    (source / "images").mkdir(parents=True)
    # Two names of one folder, and a link to a link, are no circle.
    (source / "images" / "train").symlink_to(elsewhere)
    (source / "images" / "val").symlink_to("train")
    (source / "images" / "val.png").touch()
    files = open_source(source)
    names = ["images/train/a/x.png", "images/val/a/x.png", "images/val.png"]
    assert list(files) == names
    assert files["images/val/a/x.png"].read() == b"x"
    os.utime(elsewhere / "a" / "x.png", (2**32, 2**32))
    assert newest_change(source) == 2**32 * 10**9
    assert list(open_source(source / "images" / "train")) == ["a/x.png"]
    assert archives.list_folder(tmp_path / "nowhere") == {}


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
    before = fingerprint(one)
    (one / os.fsdecode(b"caf\xe9")).touch()  # no UTF-8
    assert fingerprint(one) != before


def test_fingerprint_tells_texts_of_one_size_apart(draw_folder, tmp_path):
    source = draw_folder(tmp_path / "source")
    before = fingerprint(source)
    image = source / "images" / "val" / "y.png"
    image.write_bytes(image.read_bytes()[::-1])
    assert fingerprint(source) == before  # images are not read
    text = (source / "classes.txt").read_text()
    (source / "classes.txt").write_text(text.replace("car", "bus"))
    after = fingerprint(source)
    assert after != before and sizes_alone(after) == sizes_alone(before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fingerprint_tells_texts_in_archives_apart(pack, suffix):
    prints, sizes = set(), set()
    for number in range(9):
        path = pack(suffix, {"classes.txt": b"car%d" % number, "x.png": b"png"})
        prints.add(fingerprint(path))
        sizes.add(path.stat().st_size)
    assert len(prints) == 9 > len(sizes)  # some are of one size


def test_what_is_left_out_of_a_source(draw_folder, tmp_path):
    source = draw_folder(tmp_path / "source")
    data = source / "data"
    before = fingerprint(source, data)  # before there is such a folder
    data.mkdir()
    changed = newest_change(source, data)
    (data / "x").touch()
    os.utime(data / "x", (2**32, 2**32))
    assert fingerprint(source, data) == before != fingerprint(source)
    assert newest_change(source, data) == changed < newest_change(source)
    (tmp_path / "data").symlink_to(data)
    assert fingerprint(source, tmp_path / "data") == before


def test_newest_change(tmp_path):
    for name, moment in (("a/x", 5), ("y", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (moment, moment))
    os.utime(tmp_path / "a", (1, 1))
    os.utime(tmp_path, (1, 1))
    assert newest_change(tmp_path) == newest_change(str(tmp_path / "y")) == 9 * 10**9
    assert newest_change(None) == newest_change(tmp_path / "nowhere") == 0
