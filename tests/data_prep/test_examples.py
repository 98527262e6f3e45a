"""What is read, what is refused, and the one line that says so."""

import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import archives, examples
from data_prep.archives import File, SourceError


def as_file(path):
    return File(str(path), path.stat().st_size, path.read_bytes)


def read_image(path, **options):
    return examples.read_image(as_file(path), **options)


def read_label(path, *arguments):
    return examples.read_label(as_file(path), *arguments)


def match(images, labels):
    return examples.match_pairs(
        str(images), archives.list_folder(images), archives.list_folder(labels)
    )


def encode(pair):
    label = examples.read_label(pair.label, 3)
    return examples.encode_pair(pair, *examples.read_image(pair.image), label)


@pytest.fixture
def label_file(tmp_path):
    def write(pixels, mode=None, **options):
        path = tmp_path / "mask.png"
        image = Image.fromarray(np.asarray(pixels))
        if mode == "P":
            colours = 2 ** options["bits"]  # Pillow stores no more bits than needed
            image.putpalette(np.random.default_rng(0).bytes(3 * colours))
        elif mode:
            image = image.convert(mode)
        image.save(path, **options)
        return path

    return write


def fails(message, function, *arguments):
    """The call ends in one line that starts with the path and holds the message."""
    with pytest.raises(SourceError) as error:
        function(*arguments)
    text = str(error.value)
    assert "\n" not in text
    assert message in text
    return text


def grey_png(bits, rows):
    """A grey PNG of 1, 2 or 4 bits, which Pillow cannot write; rows are bytes."""

    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    width = len(rows[0]) * 8 // bits
    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- Labels ------------------------------------------------------------------


def test_one_channel_ids(label_file):
    ids = np.uint8([[0, 1, 2], [255, 2, 1]])
    np.testing.assert_array_equal(read_label(label_file(ids), 3), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_ids_are_indices_not_colours(label_file, bits):
    ids = np.uint8([[0, 1], [1, 0]]) if bits == 1 else np.uint8([[0, 1], [2, 1]])
    path = label_file(ids, "P", bits=bits)
    assert path.read_bytes()[24:26] == bytes([bits, 3])
    np.testing.assert_array_equal(read_label(path, 3), ids)


def test_remap_comes_before_the_range(label_file):
    path = label_file(np.uint8([[0, 11, 10]]))
    np.testing.assert_array_equal(read_label(path, 11, {11: 255}), [[0, 255, 10]])


def test_remap_does_not_chain(label_file):
    path = label_file(np.uint8([[0, 1, 2]]))
    np.testing.assert_array_equal(read_label(path, 3, {0: 1, 1: 2, 2: 0}), [[1, 2, 0]])


def test_id_out_of_range(label_file):
    path = label_file(np.uint8([[0, 3, 7]]))
    fails(f"{path}: label holds id 7; ids must be in 0..2 or 255", read_label, path, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_mask_saved_as_colours(label_file, mode):
    path = label_file(np.uint8([[0, 1]]), mode)
    fails(f"{path}: label is saved as colours (mode {mode})", read_label, path, 3)


def test_grey_of_16_bits(label_file):
    path = label_file(np.uint16([[0, 1]]))
    fails(f"{path}: label has 16 bits", read_label, path, 3)


def test_grey_of_4_bits_would_be_stretched(tmp_path):
    # Ids 1 and 2 in half bytes: decoders make 17 and 34 of them.
    path = tmp_path / "mask.png"
    path.write_bytes(grey_png(4, [b"\x12"]))
    assert np.asarray(Image.open(path)).tolist() == [[17, 34]]
    fails(f"{path}: label has 4 bits", read_label, path, 3)


def test_label_as_jpeg(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path, "JPEG")
    fails(f"{path}: is JPEG; labels must be PNG", read_label, path, 3)


# --- Images ------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_pass_through(tmp_path, suffix, mode):
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (7, 5)).save(path, quality=71)
    assert read_image(path) == (path.read_bytes(), (5, 7))


@pytest.mark.parametrize(
    "mode, suffix",
    [("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png"), ("CMYK", "jpg")],
)
def test_other_pixels_become_an_rgb_png(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(path)
    encoded, size = read_image(path)
    image = Image.open(io.BytesIO(encoded))
    assert (image.format, image.mode, size) == ("PNG", "RGB", (5, 7))
    assert np.asarray(image).min() > 250


def test_image_of_16_bits(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((2, 2), 4095, np.uint16)).save(path)
    fails(f"{path}: pixel type is I;16; it must have 8 bits", read_image, path)


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_rotation_is_refused(tmp_path, orientation):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (7, 5)).save(path, exif=exif)
    fails(f"{path}: EXIF orientation is {orientation}", read_image, path)


def test_exif_upright_passes(tmp_path):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (7, 5)).save(path, exif=exif)
    assert read_image(path)[1] == (5, 7)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_image(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    fails(f"{path}: is not a readable image (", read_image, path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_no_image_at_all(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    fails(f"{path}: is not a readable image (", read_image, path)
    fails(f"{path}: is not a readable image (", read_label, path, 3)


def bomb(kind="PNG", size=(100_000, 100_000)):
    """The header of a huge image, and no pixel."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", *size)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("size", [(10_001, 10_000), (100_000, 100_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(tmp_path, size):
    path = tmp_path / "image.png"
    path.write_bytes(bomb(size=size))
    tracemalloc.start()
    for function in (read_image, lambda path: read_label(path, 3)):
        with pytest.raises(SourceError, match=f"{path}: .*pixels"):
            function(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "image.png"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    fails(f"{path}: has 1099511627776 bytes; at most", read_image, path)
    fails(f"{path}: has 1099511627776 bytes; at most", read_label, path, 3)
    fails(f"{path}: has 1099511627776 bytes", examples.read_text, as_file(path))


def test_a_telephones_jpeg_with_two_pictures(tmp_path):
    path = tmp_path / "image.jpg"
    picture = Image.new("RGB", (7, 5))
    picture.save(path, "MPO", save_all=True, append_images=[picture])
    assert Image.open(path).format == "MPO"
    assert read_image(path) == (path.read_bytes(), (5, 7))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_wrong_extensions(tmp_path, kind):
    path = tmp_path / "image.jpg"
    picture = Image.new("RGB", (7, 5))
    picture.save(path, kind, save_all=True, append_images=[picture])
    fails(f"{path}: is {kind}; images must be JPEG or PNG", read_image, path)
    fails(f"{path}: is {kind}; labels must be PNG", read_label, path, 3)
    picture.save(path, "PNG")
    assert read_image(path)[1] == (5, 7)


def test_postscript_is_not_handed_to_an_interpreter(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("RGB", (7, 5)).save(path, "EPS")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("it ran"))
    fails(f"{path}: is not a readable image", read_image, path)


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (7, 5)).save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(path)[1] == (5, 7)


def test_png_that_only_pillow_reads(tmp_path):
    """Training decodes with another library, and would stop in the middle."""
    path = tmp_path / "image.png"
    Image.new("RGB", (1, 1_000_001)).save(path)  # libpng allows a million
    fails("TensorFlow cannot decode it", read_image, path)
    Image.new("P", (1, 1_000_001)).save(path)
    fails("TensorFlow cannot decode it", read_image, path)


def test_jpeg_that_only_pillow_reads(tmp_path):
    """A file whose end was never written to the disk, which left zeros in its place."""
    path = tmp_path / "image.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-500] + bytes(500))
    Image.open(path).load()
    message = f"{path}: is not a readable image (TensorFlow cannot decode it"
    fails(message, read_image, path)


def test_label_whose_header_does_not_come_first(tmp_path):
    path = tmp_path / "mask.png"
    text = b"tEXt" + b"a\0b"
    chunk = struct.pack(">I", 3) + text + struct.pack(">I", zlib.crc32(text))
    content = grey_png(8, [b"\0\1"])
    path.write_bytes(content[:8] + chunk + content[8:])
    fails(f"{path}: is not a readable image", read_label, path, 3)


def test_animated_label_gives_its_first_picture(label_file):
    first, second = (Image.fromarray(np.full((2, 3), n, np.uint8)) for n in (1, 2))
    path = label_file(np.uint8([[0]]))
    first.save(path, save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_label(path, 3), np.ones((2, 3)))


def test_animated_images_are_decoded_to_their_first_picture(tmp_path):
    path = tmp_path / "image.png"
    first, second = (Image.new("RGB", (7, 5), colour) for colour in ("red", "blue"))
    first.save(path, save_all=True, append_images=[second])
    encoded, size = read_image(path)
    decoded = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    assert size == (5, 7)
    np.testing.assert_array_equal(decoded, np.asarray(first))


def test_text_that_is_not_utf_8(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"caf\xe9")
    fails(f"{path}: must be UTF-8 text", examples.read_text, as_file(path))
    assert examples.read_text(as_file(path), "replace") == "caf\ufffd"


def test_text_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("caf\xe9", encoding="utf-8-sig")
    assert examples.read_text(as_file(path)) == "caf\xe9"


def test_other_format(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (7, 5)).save(path, "BMP")
    fails(f"{path}: is BMP; images must be JPEG or PNG", read_image, path)


def test_rotation_can_be_known_not_to_count(tmp_path):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (7, 5)).save(path, exif=exif)
    assert read_image(path, oriented=False) == (path.read_bytes(), (5, 7))


# --- Pairs -------------------------------------------------------------------


@pytest.fixture
def train(draw_folder, tmp_path):
    root = draw_folder(tmp_path / "source")
    return root / "images" / "train", root / "labels" / "train"


def test_pairs_match_by_relative_path(train):
    images, labels = train
    (images / "a" / ".DS_Store").touch()
    (images / ".hidden").mkdir()
    (images / ".hidden" / "z.png").touch()
    (images / "readme.txt").touch()
    first, second = match(*train)
    assert (first.name, second.name) == ("a/x", "y")
    assert first.image.where == str(images / "a" / "x.jpg")
    assert first.label.where == str(labels / "a" / "x.png")
    assert first.size == sum(
        path.stat().st_size for path in (images / "a/x.jpg", labels / "a/x.png")
    )


def test_example_of_a_pair(train):
    pair, _ = match(*train)
    example = encode(pair)
    assert example.name == "a/x"
    assert example.image == (train[0] / "a" / "x.jpg").read_bytes()
    assert (example.height, example.width) == (10, 14)
    stored, original = Image.open(io.BytesIO(example.label)), train[1] / "a" / "x.png"
    assert stored.mode == "L"
    np.testing.assert_array_equal(stored, Image.open(original))
    counts = np.bincount(np.ravel(stored), minlength=256)
    np.testing.assert_array_equal(example.histogram, counts)


def test_example_that_nobody_has_labelled(train):
    image = as_file(train[0] / "y.png")
    pair = examples.Pair("y", image, None)
    example = examples.encode_pair(pair, *examples.read_image(image), None)
    assert pair.size == image.size
    assert np.all(np.asarray(Image.open(io.BytesIO(example.label))) == 255)
    assert example.histogram[255] == 9 * 7


def test_png_keeps_pixels_and_order_of_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    for original in (pixels, pixels[..., 0]):
        stored = Image.open(io.BytesIO(examples.png(original)))
        np.testing.assert_array_equal(stored, original)


def test_label_of_another_size(train):
    Image.new("L", (13, 10)).save(train[1] / "a" / "x.png")
    text = fails("label is 13x10 but image", encode, match(*train)[0])
    assert str(train[1] / "a" / "x.png") in text and "14x10" in text


def test_image_without_label(train):
    (train[1] / "y.png").unlink()
    fails(f"{train[0] / 'y.png'}: no label for this image", match, *train)


def test_label_without_image(train):
    (train[0] / "a" / "x.jpg").unlink()
    fails(f"{train[1] / 'a' / 'x.png'}: no image for this label", match, *train)


def test_two_images_of_one_name(train):
    Image.new("RGB", (7, 9)).save(train[0] / "y.jpg")
    fails("has the same name", match, *train)


@pytest.mark.parametrize("name", [b"a\nb", b"caf\xe9", b"clear\x1b[2J", b"x" * 250])
def test_names_that_no_record_or_table_could_hold(train, name):
    folder = train[0] / ("y" * 200) / ("z" * 200) / ("q" * 200) / ("r" * 200)
    folder = folder if len(name) == 250 else train[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / os.fsdecode(name + b".png")).touch()
    text = fails("its name", match, *train)
    assert text.isprintable()


def test_nothing_to_match(tmp_path):
    fails(f"{tmp_path}: holds no .jpg or", match, tmp_path, tmp_path)
