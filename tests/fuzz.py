r"""Broken files by the hundred thousand, for every door through which files come.

python -m tests.fuzz 100000

Each input is a valid file that has been damaged, by bytes or by structure.  A door may
give a result or refuse the file by its own error, in one line of printable text; any
other end, more memory than MEMORY_BYTES, or a file written anywhere is a finding.
The n-th input is a function of (seed, n): `python -m tests.fuzz 1 N` makes it again.  A
few hundred of them are a test of the suite; a hundred thousand take an hour.
"""

import argparse
import collections
import contextlib
import faulthandler
import io
import json
import os
import pathlib
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib

import numpy as np
import scipy.io
import tensorflow as tf
from PIL import Image

from data_prep import archives, examples
from data_prep.archives import File, SourceError
from data_prep.folder import folder_dataset_builder as folder_builder
from data_prep.voc_sbd import voc_sbd_dataset_builder as voc_builder
from ss_gan_tf import checkpoints, predict, strict_json
from ss_gan_tf.config import Config

MEMORY_BYTES = 2**31  # beside what Python and TensorFlow take; of addresses, twice that

INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    2**32 - 1,
)
HOSTILE = (
    None, True, -1, 0, 2**70, 1e308, "", "\n", "\x1b[2J", "../../x", "\udc80", [], {},
    [[[]]], {"a": {}}, "x" * 5000,
)  # fmt: skip


# --- Valid files -------------------------------------------------------------


def image_samples():
    """Encoded images of every kind that the doors take or refuse."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (24, 33, 3), np.uint8)
    ids = rng.choice(np.uint8([0, 1, 2, 255]), (24, 33))
    picture, mask = Image.fromarray(rgb), Image.fromarray(ids)
    palette = mask.copy()
    palette.putpalette(rng.bytes(768))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    made = [
        (picture, "JPEG", {"exif": exif}),
        (picture, "JPEG", {"progressive": True}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "PNG", {"exif": exif}),
        (picture.convert("RGBA"), "PNG", {}),
        (picture.quantize(16), "PNG", {"bits": 4}),
        (Image.fromarray(ids.astype(np.uint16) * 257), "PNG", {}),
        (mask, "PNG", {}),
        (palette, "PNG", {"bits": 8}),
        (picture, "PNG", {"save_all": True, "append_images": [picture, picture]}),
        (picture, "GIF", {"save_all": True, "append_images": [picture]}),
        (picture, "BMP", {}),
        (picture, "TIFF", {}),
        (picture, "WEBP", {}),
    ]
    return [_saved(*each) for each in made]


def _saved(picture, kind, options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def tar_samples():
    """Uncompressed tars with long names, links and devices."""
    members = {"images/a.png": b"1" * 700, "x" * 150 + "/b.txt": b"2", "é/c": b""}
    made = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name[-90:] if form == 0 else name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
                member = tarfile.TarInfo(f"link{kind}")
                member.type, member.linkname = kind, "../../etc/passwd"
                archive.addfile(member)
        made.append(file.getvalue())
    return made


def zip_samples():
    """Zips of every compression."""
    made = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, 12):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", kind) as archive:
            for name in ("images/a.png", "é.txt", "dir/"):
                archive.writestr(name, b"abc" * 200)
        made.append(file.getvalue())
    return made


def mat_samples():
    """What SBD's files are like, compressed and not, and other kinds of arrays."""
    cells = np.empty((2, 1), object)
    cells[0, 0], cells[1, 0] = np.eye(3), "text"
    inside = {
        "Segmentation": np.zeros((9, 7), np.uint8),
        "Boundaries": cells,
        "CategoriesPresent": np.uint8([3, 15]),
    }
    made = []
    for packed in (True, False):
        file = io.BytesIO()
        scipy.io.savemat(file, {"GTcls": inside, "b": 1j}, do_compression=packed)
        made.append(file.getvalue())
    return made


def run_sample():
    """A run's description."""
    return {
        "config": json.loads(Config().to_json()),
        "data_dir": "data",
        "class_names": ["a", "b"],
        "class_colors": [[0, 0, 0], [1, 2, 3]],
        "ignore_label": 255,
        "provenance": {"versions": {}},
    }


# --- Damage ------------------------------------------------------------------


def damage_bytes(rng, content):
    """A few bytes changed, cut, doubled or moved."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(content)
        at, to = sorted(rng.randrange(size + 1) for _ in range(2))
        action = rng.randrange(8)
        if action == 0:
            del content[rng.randrange(size + 1) :]
        elif action == 1:
            del content[at : min(to, at + 64)]
        elif action == 2:
            content[at:at] = content[at : min(to, at + 64)] * rng.randrange(4)
        elif action == 3:
            content[at:at] = rng.randbytes(rng.randrange(9))
        elif action == 4 and size >= 4:
            width = rng.choice((1, 2, 4))
            value = rng.choice(INTERESTING) & (256**width - 1)
            order = rng.choice(("little", "big"))
            at = rng.randrange(size - width + 1)
            content[at : at + width] = value.to_bytes(width, order)
        elif size:
            content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    return bytes(content)


def damage_png(rng, content):
    """Chunks changed, dropped, doubled or swapped, with sums that are right."""
    chunks, position = [], 8
    while position + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, position)
        name = content[position + 4 : position + 8]
        chunks.append((name, content[position + 8 : position + 8 + size]))
        position += 12 + size
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(chunks)) if chunks else None
        action = rng.randrange(6)
        if at is None:
            break
        name, data = chunks[at]
        if action == 0:
            del chunks[at]
        elif action == 1:
            chunks.insert(rng.randrange(len(chunks)), chunks[at])
        elif action == 2 and name == b"IDAT":
            with contextlib.suppress(zlib.error):  # damaged once already
                raw = zlib.decompressobj().decompress(data, 2**20)
                chunks[at] = name, zlib.compress(damage_bytes(rng, raw))
        elif action == 3:
            kinds = (b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL")
            chunks.insert(at, (rng.choice(kinds), rng.randbytes(rng.randrange(40))))
        else:
            chunks[at] = name, damage_bytes(rng, data)
    packed = [
        struct.pack(">I", len(data)) + name + data
        + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]  # fmt: skip
    return content[:8] + b"".join(packed)


def damage_tar(rng, content):
    """Header fields changed, with sums that are right."""
    content = bytearray(content)
    fields = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155))
    for _ in range(rng.randrange(1, 4)):
        start = 512 * rng.randrange(max(len(content) // 512, 1))
        at, width = rng.choice(fields)
        values = (
            rng.randbytes(width), b"\xff" * width, b"\x80" + b"\x7f" * (width - 1),
            b"7" * width, b"../" * 40, b"/abs", b"\n\x1b", bytes(width),
            rng.choice(b"0123456789xgLKSV").to_bytes(1, "big"),
        )  # fmt: skip
        value = rng.choice(values)[:width]
        content[start + at : start + at + len(value)] = value
        header = content[start : start + 512]
        if len(header) == 512:
            header[148:156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(content)


def damage_json(rng, value):
    """One place of a parsed value replaced, removed or repeated, then written."""
    text = json.dumps(value)
    action = rng.randrange(6)
    if action < 3:
        tree = json.loads(text)
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.8:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = rng.choice(HOSTILE)
            break
        return json.dumps(tree).encode()
    if action == 3:
        words = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 9999, '{"a":' * 5000)
        at = rng.randrange(len(text))
        return (text[:at] + rng.choice(words) + text[at:]).encode()
    if action == 4:
        return text.replace('"seed"', '"arm"').encode()
    return damage_bytes(rng, text.encode())


# --- Doors -------------------------------------------------------------------


class Fuzzer:
    """Samples, doors and what came of them."""

    def __init__(self, folder):
        self.folder = folder
        self.images, self.tars = image_samples(), tar_samples()
        self.zips, self.mats, self.run = zip_samples(), mat_samples(), run_sample()
        self.generator = tf.keras.Sequential(
            [tf.keras.Input((4, 4, 3)), tf.keras.layers.Conv2D(2, 1)]
        )
        position = checkpoints.Position()
        saved = tf.train.Checkpoint(generator=self.generator, position=position)
        manager = tf.train.CheckpointManager(saved, str(folder / "good"), 1)
        prefix = manager.save()
        self.checkpoint = {
            path.name: path.read_bytes()
            for path in pathlib.Path(prefix).parent.iterdir()
        }
        self.doors = [
            *[self.photograph, self.image, self.label] * 4,
            *[self.tar, self.tgz, self.zip, self.mat] * 2,
            *[self.run_json, self.config_json, self.classes_json],
            *[self.class_names, self.lists],
        ]

    def door(self, rng, number):
        """The door of the n-th input."""
        if number % 100 == 99:  # a restore takes as long as a hundred others
            return self.restore
        return rng.choice(self.doors)

    def _write(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def _image(self, rng):
        sample = rng.choice(self.images)
        if sample.startswith(b"\x89PNG") and rng.random() < 0.6:
            return damage_png(rng, sample)
        return damage_bytes(rng, sample)

    def photograph(self, rng):
        """What `predict` reads."""
        path = self._write("input.jpg", self._image(rng))
        image = predict.read_image(str(path), max_pixels=10**7)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3

    def image(self, rng):
        """What becomes part of a data set, and is decoded by another library later."""
        encoded, size = examples.read_image(_file(self._image(rng)))
        decoded = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        assert tuple(decoded.shape) == (*size, 3), (decoded.shape, size)

    def label(self, rng):
        """Labels."""
        ids = examples.read_label(_file(self._image(rng)), 3)
        assert ids.dtype == np.uint8 and ids.ndim == 2
        assert set(np.unique(ids)) <= {0, 1, 2, 255}

    def _archive(self, name, content):
        files = archives.open_source(self._write(name, content))
        assert not any(n.startswith("/") or ".." in n.split("/") for n in files)
        for file in files.values():
            examples.read_content(file)
        examples.by_name(files, (".png", ".txt"))

    def tar(self, rng):
        """Tars."""
        damage = rng.choice((damage_bytes, damage_tar))
        self._archive("input.tar", damage(rng, rng.choice(self.tars)))

    def tgz(self, rng):
        """Compressed tars."""
        content = rng.choice(self.tars)
        damage = rng.choice((damage_bytes, damage_tar))
        content = zlib.compress(damage(rng, content), 1, 31)
        if rng.random() < 0.3:
            content = damage_bytes(rng, content)
        self._archive("input.tgz", content)

    def zip(self, rng):
        """Zips."""
        self._archive("input.zip", damage_bytes(rng, rng.choice(self.zips)))

    def mat(self, rng):
        """Masks of SBD."""
        content = rng.choice(self.mats)
        if content is self.mats[0] and rng.random() < 0.7:
            (size,) = struct.unpack_from("<I", content, 132)
            raw = damage_bytes(rng, zlib.decompress(content[136 : 136 + size]))
            packed = zlib.compress(raw)
            content = content[:128] + struct.pack("<II", 15, len(packed)) + packed
        else:
            content = damage_bytes(rng, content)
        ids = voc_builder.read_mat(_file(content), 21)
        assert ids.dtype == np.uint8 and ids.ndim == 2

    def run_json(self, rng):
        """A run's description."""
        self._write("run.json", damage_json(rng, self.run))
        try:
            checkpoints.read_run(str(self.folder))
        finally:
            (self.folder / "run.json").unlink()

    def config_json(self, rng):
        """Settings."""
        text = damage_json(rng, self.run["config"]).decode("utf-8", "surrogateescape")
        Config.from_json(text)

    def classes_json(self, rng):
        """Classes of an export."""
        path = self._write("classes.json", damage_json(rng, self.run))
        try:
            strict_json.class_table(strict_json.read(path))
        except KeyError as error:
            raise ValueError(str(error)) from error

    def class_names(self, rng):
        """classes.txt."""
        text = "background\ntraffic light 250 170 30\nstra\u00dfe\n".encode()
        names, colors = folder_builder.read_classes(_file(damage_bytes(rng, text)))
        assert len(names) == len(colors) and all(map(str.isprintable, names))

    def lists(self, rng):
        """Lists of both layouts."""
        content = damage_bytes(rng, b"2007_000032\n2007_000033 1\n")
        voc_builder.read_list(_file(content))
        folder_builder.listed_splits(
            pathlib.Path("source"),
            {f"JPEGImages/{n}.jpg": _file(b"") for n in ("2007_000032", "1")},
            {"train.txt": _file(content)},
        )

    def restore(self, rng):
        """Checkpoints."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            broken = rng.choice(sorted(self.checkpoint))
            for name, content in self.checkpoint.items():
                if name == broken:
                    content = damage_bytes(rng, content)
                path = pathlib.Path(folder, "checkpoints", name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            prefix = checkpoints.find_checkpoint(folder, "last")
            checkpoints.restore_generator(self.generator, prefix)


def _file(content):
    return File("source/name", len(content), lambda: content)


REFUSALS = {
    "photograph": (ValueError,),
    "run_json": (ValueError, FileNotFoundError),
    "config_json": (ValueError,),
    "classes_json": (ValueError,),
    "restore": (ValueError, FileNotFoundError),
}


def finding(door, rng):
    """What is wrong with the end of one input; None if nothing is."""
    try:
        door(rng)
    except REFUSALS.get(door.__name__, (SourceError,)) as error:
        text = str(error)
        if text and text.isprintable() and len(text) < 3000:
            return None
        return f"{type(error).__name__} of more than a printable line: {text[:100]!r}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        name = pathlib.Path(where.filename).name
        return f"{type(error).__name__} at {name}:{where.lineno}: {error!s:.100}"
    return None


def main():
    """Runs the inputs and says what was found; exits with 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="?", type=int, default=1000)
    parser.add_argument("first", nargs="?", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    found, counts, start = {}, collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(pathlib.Path(folder))
        before = set(os.listdir(folder))
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with open("/proc/self/statm") as file:
            addresses = int(file.read().split()[0]) * resource.getpagesize()
        limit = addresses + 2 * MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(arguments.first, arguments.first + arguments.inputs):
            rng = random.Random(f"{arguments.seed} {number}")
            door = fuzzer.door(rng, number)
            counts[door.__name__] += 1
            if what := finding(door, rng):
                key = f"{door.__name__}: {what}"
                found.setdefault(key, []).append(number)
                if len(found[key]) == 1:
                    print(f"input {number}: {key}", flush=True)
            if (number + 1) % 5000 == 0:
                seconds = time.monotonic() - start
                print(f"{number + 1} inputs, {seconds:.0f} s", flush=True)
        written = set(os.listdir(folder)) - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used
    expected = {"input.jpg", "input.tar", "input.tgz", "input.zip", "classes.json"}
    if written - expected:
        found[f"files were written: {written - expected}"] = []
    if peak > MEMORY_BYTES:
        found[f"{peak} bytes of memory were taken"] = []
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    print(f"peak memory {peak / 2**20:.0f} MiB, {len(found)} findings")
    for key, numbers in found.items():
        print(f"  {len(numbers)} times, first {numbers[:1]}: {key}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
