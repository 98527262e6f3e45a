"""Source files in folders and in archives, read where they lie.

Folder, tar and zip give the same thing: the names of their files and a way to read
each of them.  Nothing is extracted.  A tar's and a zip's files are read by position; a
compressed tar can only be read from its start, which is done once, and what is wanted
of it is kept.
"""

import dataclasses
import gzip
import hashlib
import lzma
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ss_gan_tf.messages import first_line, one_line

# Name relative to the root of folder or archive -> file.
Files = Mapping[str, "File"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

MAX_FILE_BYTES = 2**28  # larger files are refused before they are read
MAX_KEPT_BYTES = 2**32  # of a compressed tar, which is kept in memory
MAX_TEXT_BYTES = 2**24  # of a list

_BLOCK = 512  # bytes; a tar is made of these and ends with empty ones
_CHUNK = 2**20  # bytes
_GZIP_END = 8  # bytes: a checksum and the length of what was packed
_AS_NAMED = ("utf-8", "surrogateescape")  # names of files may be no UTF-8
# What the readers raise for faulty archives, beside errors of their own.
_CUT_SHORT = (
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_DRIVE = re.compile("[A-Za-z]:")  # of Windows


class SourceError(ValueError):
    """The source is not what the builder needs; the message is one line.

    Names of files may hold anything, line breaks too: they are escaped.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the source, wherever it lies.

    Attributes:
        where: Its path for people; inside an archive "ARCHIVE: NAME".
        size: Its length in bytes.
        read: Returns its content; may be called from any thread.
    """

    where: str
    size: int
    read: Callable[[], bytes] = dataclasses.field(repr=False, compare=False)

    @property
    def suffix(self) -> str:
        """The end of its name from the last dot on, in lower case."""
        return PurePosixPath(self.where).suffix.lower()


def open_source(path: Path) -> dict[str, File]:
    """The files of a folder or of an archive.

    Raises:
        SourceError: `path` is neither, or the archive is faulty.
    """
    if path.is_dir():
        return list_folder(path)
    if not path.exists():
        raise SourceError(f"{path}: there is no such folder or archive.")
    if path.name.endswith(".zip"):
        return list_zip(path)
    if path.name.endswith(".tar"):
        return list_tar(path)
    if path.name.endswith((".tar.gz", ".tgz")):
        return stream_tar(path)
    raise SourceError(
        f"{path}: is neither a folder nor one of {', '.join(ARCHIVE_SUFFIXES)}."
    )


def list_folder(path: Path, leave_out: Path | None = None) -> dict[str, File]:
    """The files of a folder at any depth, sorted; hidden ones left out.

    Where there is no folder there are none. Links are followed, to files and to
    folders, unless they lead back to a folder that they lie in.

    Args:
        path: The folder.
        leave_out: A folder in it that is passed over.

    Raises:
        SourceError: A link leads nowhere, or a folder may not be read: what lies
            behind it would be missing without a word.
    """
    return {
        file.relative_to(path).as_posix(): _file(file)
        for file in _walk(path, leave_out)
        if file.is_file()
    }


def list_tar(path: Path) -> dict[str, File]:
    """The files of an uncompressed tar; only its headers are read.

    Raises:
        SourceError: The tar is faulty, cut short, a name leads out of it, or a link
            does.
    """
    files, links = {}, {}
    try:
        with path.open("rb") as file, _open_tar(file) as archive:
            for member in archive:
                _check_member(path, member)
                _note_link(member, links)
                if member.isreg():
                    span = member.offset_data, member.size
                    files[member.name] = File(
                        f"{path}: {member.name}", member.size, _span_reader(path, *span)
                    )
            end = archive.offset
    except SourceError:
        raise
    except _CUT_SHORT as error:
        raise _faulty(path, error) from error
    # tarfile takes whatever is no header for the end, a missing byte included.
    if _span_reader(path, end, _BLOCK)() != bytes(_BLOCK):
        raise SourceError(f"{path}: is not an intact archive; byte {end} is no header.")
    return _visible(_with_links(path, files, links))


def stream_tar(
    path: Path, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, File]:
    """Reads a gzipped tar from start to end, once, and keeps files in memory.

    Args:
        path: The archive.
        keep: Whether the file of this name is wanted.

    Raises:
        SourceError: The tar is faulty, cut short, a name leads out of it, it is too
            large to be kept, or a file that is wanted is a link to anything but
            another one that is.
    """
    files, links, room = {}, {}, MAX_KEPT_BYTES
    try:
        with gzip.open(path) as stream, _open_tar(stream) as archive:
            for member in archive:
                _check_member(path, member)
                _note_link(member, links)
                if member.isreg() and keep(member.name):
                    room -= member.size
                    if room < 0:
                        raise SourceError(
                            f"{path}: unpacks to more than {MAX_KEPT_BYTES} bytes, "
                            "which is the limit for a compressed tar; extract it."
                        )
                    content = archive.extractfile(member).read()
                    files[member.name] = File(
                        f"{path}: {member.name}", member.size, lambda c=content: c
                    )
            while stream.read(_CHUNK):  # the checksum is at the very end
                pass
    except SourceError:
        raise
    except _CUT_SHORT as error:
        raise _faulty(path, error) from error
    return _visible(_with_links(path, files, links, keep))


def list_zip(path: Path) -> dict[str, File]:
    """The files of a zip; only its table of contents is read.

    Raises:
        SourceError: The zip is faulty, cut short, or a name leads out of it.
    """
    files = {}
    try:
        archive = zipfile.ZipFile(path)
    except _CUT_SHORT as error:
        raise _faulty(path, error) from error
    for member in archive.infolist():
        if not member.filename:
            raise _faulty(path, ValueError("a file has no name"))
        _check_name(path, member.filename)
        if not member.is_dir():
            files[member.filename] = File(
                f"{path}: {member.filename}",
                member.file_size,
                _member_reader(path, archive, member),
            )
    return _visible(files)


def fingerprint(source: str | Path, leave_out: Path | None = None) -> str:
    """Identifies a source by its files' relative paths and sizes, and by its texts.

    Texts (.txt) name classes and images: a word in one may be corrected and the size
    stay the same.  Images are not read: it tells two sources apart, it is no checksum.

    Args:
        source: Folder or archive.
        leave_out: A folder in it that does not count.

    Returns:
        A digest of paths and sizes, "+", a digest of the texts.
    """
    root = Path(source)
    if root.is_dir():
        files = list_folder(root, leave_out)
    else:
        files = {root.name: _file(root)}
    sizes, texts = hashlib.sha256(), hashlib.sha256()
    for name in sorted(files, key=PurePosixPath):
        sizes.update(f"{name}\t{files[name].size}\n".encode(*_AS_NAMED))
    for name, file in _texts(root, files).items():
        texts.update(f"{name}\t{file.size}\n".encode(*_AS_NAMED) + file.read())
    return f"{sizes.hexdigest()}+{texts.hexdigest()}"


def sizes_alone(origin: str) -> str:
    """What `fingerprint` said before it took texts into account."""
    return origin.split("+")[0]


def _texts(root: Path, files: Files) -> Files:
    """The texts of a source; for a compressed tar the checksum at its end."""
    if root.name.endswith((".tar", ".zip")) and not root.is_dir():
        files = open_source(root)
    elif root.name.endswith((".tar.gz", ".tgz")) and not root.is_dir():
        end = max(0, root.stat().st_size - _GZIP_END)
        size = root.stat().st_size - end
        return {root.name: File(str(root), size, _span_reader(root, end, size))}
    return {
        name: file
        for name, file in files.items()
        if file.suffix == ".txt" and file.size <= MAX_TEXT_BYTES
    }


def newest_change(source: str | Path | None, leave_out: Path | None = None) -> int:
    """When a file of the source was changed last, ns since 1970; 0 for no source.

    Args:
        source: Folder or archive.
        leave_out: A folder in it that does not count.

    Raises:
        SourceError: As by `list_folder`.
    """
    root = Path(source) if source else None
    if root is None or not root.exists():
        return 0
    return max(path.stat().st_mtime_ns for path in (root, *_walk(root, leave_out)))


def _file(path: Path) -> File:
    return File(str(path), path.stat().st_size, path.read_bytes)


def _walk(folder: Path, leave_out: Path | None = None) -> Iterator[Path]:
    """What lies in a folder at any depth, sorted; nothing hidden."""
    if folder.is_dir():
        left_out = {_identity(leave_out)} if leave_out and leave_out.exists() else ()
        yield from _walk_below(folder, frozenset(left_out))


def _walk_below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """As `_walk`; a link to a folder in `above`, or in which it lies, is passed over.

    That a folder has two names is no reason: only a circle has no end.
    """
    above |= {_identity(folder)}
    for path in _entries(folder):
        if not path.is_dir():
            yield path
        elif _identity(path) not in above:
            yield path
            yield from _walk_below(path, above)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder itself."""
    try:
        entries = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    except PermissionError as error:
        if folder.name == "lost+found":  # of a disk's file system, for root alone
            return []
        raise SourceError(
            f"{folder}: reading this folder is not allowed; make it readable, or move "
            "it out of the source."
        ) from error
    for path in entries:
        if not path.exists():
            raise SourceError(
                f"{path}: is a link to '{path.readlink()}', where there is nothing; "
                "mend or remove it."
            )
    return entries


def _identity(path: Path) -> tuple[int, int]:
    """What a file or folder is, whatever name it goes by."""
    status = path.stat()
    return status.st_dev, status.st_ino


def below(files: Files, folder: str) -> dict[str, File]:
    """The files of a sub-folder, by their names relative to it."""
    prefix = f"{folder}/" if folder else ""
    return {
        name[len(prefix) :]: file
        for name, file in files.items()
        if name.startswith(prefix)
    }


def find_root(files: Files, marker: str) -> str | None:
    """The shallowest folder below which `marker` lies; None if there is none.

    Args:
        files: Names and files.
        marker: Relative name, e.g. "ImageSets/Segmentation/train.txt".
    """
    roots = [
        name[: -len(marker)].rstrip("/")
        for name in files
        if name == marker or name.endswith(f"/{marker}")
    ]
    return min(roots, key=lambda root: (root.count("/"), root)) if roots else None


def _check_name(path: Path, name: str) -> None:
    posix = PurePosixPath(name.replace("\\", "/"))
    if posix.is_absolute() or ".." in posix.parts or _DRIVE.match(name):
        raise SourceError(
            f"{path}: member {name!r} leads out of the archive; names must be relative "
            "and without '..'."
        )


def _open_tar(file: BinaryIO) -> tarfile.TarFile:
    """An uncompressed tar; what it says of a header's length is not believed."""
    return tarfile.open(fileobj=_BoundedReader(file), mode="r:")


class _BoundedReader:
    """A file of which no more than `MAX_FILE_BYTES` are asked for at once."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Reads as a file does.

        Raises:
            tarfile.ReadError: No honest archive holds so long a header.
        """
        if not 0 <= size <= MAX_FILE_BYTES:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        return self._file.read(size)


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    _check_name(path, member.name)
    if member.issparse():
        raise SourceError(
            f"{path}: member {member.name!r} is stored with holes; pack it without "
            "--sparse."
        )
    if member.isreg() and not 0 <= member.size <= MAX_FILE_BYTES:
        raise _too_large(f"{path}: {member.name}", member.size)


def _note_link(member: tarfile.TarInfo, links: dict[str, str]) -> None:
    """Notes which file a link means; a later member takes an earlier one's place."""
    links.pop(member.name, None)
    if member.islnk():
        links[member.name] = member.linkname
    elif member.issym():
        folder = posixpath.dirname(member.name)
        links[member.name] = posixpath.join(folder, member.linkname)


def _with_links(
    path: Path,
    files: Files,
    links: Mapping[str, str],
    keep: Callable[[str], bool] = lambda name: True,
) -> dict[str, File]:
    """Adds the links of a tar, which have the content of what they mean.

    Nothing is looked for outside the archive.

    Raises:
        SourceError: A link that is to be kept means no file or folder of `files`.
    """
    files = {posixpath.normpath(name): file for name, file in files.items()}
    links = {
        posixpath.normpath(name): posixpath.normpath(target)
        for name, target in links.items()
    }
    found = dict(files)
    ends = {name: _end_of_links(name, links) for name in links}
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
    for name, end in ends.items():
        # A folder's second name; one that lies in it would have no end.
        if end in folders and not f"{name}/".startswith(f"{end}/"):
            inside = {f"{name}/{rest}": f for rest, f in below(files, end).items()}
            found |= {each: file for each, file in inside.items() if keep(each)}
    for name in _visible({name: None for name in links if keep(name)}):
        end = ends[name]
        if end in folders:
            continue
        if end not in found:
            raise SourceError(
                f"{path}: member {name!r} is a link to {links[name]!r}, and only links "
                "to what the archive holds are followed; pack it with --dereference "
                "--hard-dereference."
            )
        found[name] = dataclasses.replace(found[end], where=f"{path}: {name}")
    return found


def _end_of_links(name: str, links: Mapping[str, str]) -> str:
    """Where a link, or a link to a link, leads in the end."""
    passed = set()
    while name in links and name not in passed:
        passed.add(name)
        name = links[name]
    return name


def check_size(file: File) -> None:
    """Refuses a file that is too large to be read at once.

    Raises:
        SourceError: It has more than `MAX_FILE_BYTES`.
    """
    if file.size > MAX_FILE_BYTES:
        raise _too_large(file.where, file.size)


def _too_large(where: str, size: int) -> SourceError:
    return SourceError(f"{where}: has {size} bytes; at most {MAX_FILE_BYTES} are read.")


def _visible(files: Files) -> dict[str, File]:
    """Sorted, without "./" in front, and without hidden files."""
    clean = {str(PurePosixPath(name)): file for name, file in files.items()}
    return {
        name: clean[name]
        for name in sorted(clean)
        if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    }


def _span_reader(path: Path, start: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) != size:
            raise SourceError(f"{path}: archive is cut short; its end is missing.")
        return content

    return read


def _member_reader(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return archive.read(member)
        except _CUT_SHORT as error:
            raise _faulty(path, error) from error

    return read


def _faulty(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{path}: is not an intact archive ({first_line(error)}); it may be cut short."
    )
