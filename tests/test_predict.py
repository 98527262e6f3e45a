import errno
import io
import json
import os
import pathlib
import shutil
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ss_gan_tf import inference, predict
from ss_gan_tf.export import export

# A generator whose class is the strongest colour: 0 red, 1 green, 2 blue.
NAMES = ("red", "green", "blue")
COLORS = ((250, 10, 0), (0, 240, 20), (30, 0, 230))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    image = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(3, 1, use_bias=False)(image)
    generator = keras.Model(image, logits)
    generator.set_weights([np.eye(3)[None, None]])
    folder = str(tmp_path_factory.mktemp("model") / "export")
    export(
        generator,
        folder,
        class_names=NAMES,
        class_colors=COLORS,
        ignore_label=255,
        normalize=lambda image: image / 255.0,
        metadata={},
    )
    return folder


def picture(height=20, width=30):
    """Red above, green at the left below, blue at the right below."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, :, 0] = 255
    rgb[height // 2 :, : width // 3, 1] = 255
    rgb[height // 2 :, width // 3 :, 2] = 255
    return rgb


def truth(rgb):
    return rgb.argmax(axis=-1)


def save(image, path, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **kwargs)


def ids_at(path):
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.array(image)


def files_under(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_one_photograph(model_dir, tmp_path):
    rgb, out = picture(), tmp_path / "out"
    save(rgb, tmp_path / "photo.png")
    assert predict.predict(model_dir, str(tmp_path / "photo.png"), str(out)) == []
    pictures = ["photo_color.png", "photo_ids.png", "photo_overlay.png"]
    assert files_under(out) == ["legend.png", *pictures]
    np.testing.assert_array_equal(ids_at(out / "photo_ids.png"), truth(rgb))
    color = np.array(Image.open(out / "photo_color.png"))
    np.testing.assert_array_equal(color, np.array(COLORS)[truth(rgb)])
    overlay = np.array(Image.open(out / "photo_overlay.png")).astype(int)
    # Half the photograph, half the class colour: red (255, 0, 0) and (250, 10, 0).
    np.testing.assert_allclose(overlay[0, 0], [252.5, 5, 0], atol=1)
    seen = {tuple(p) for p in np.array(Image.open(out / "legend.png")).reshape(-1, 3)}
    assert seen >= set(COLORS)


def test_folder_keeps_sub_folders_and_goes_past_what_it_cannot_read(
    model_dir, tmp_path
):
    source, out = tmp_path / "in", tmp_path / "out"
    save(picture(), source / "a.png")
    save(picture(33, 50), source / "day 1" / "späť" / "b.JPG", quality=95)
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff but no more")
    (source / "empty.png").write_bytes(b"")
    (source / "notes.txt").write_text("not an image, and not meant as one")
    (source / "dangling.png").symlink_to(source / "nowhere.png")
    whole = io.BytesIO()
    Image.fromarray(picture(200, 300)).save(whole, "JPEG")
    (source / "day 1" / "cut.jpeg").write_bytes(whole.getvalue()[:-500])
    (source / "loop").symlink_to(source)
    steps = []
    failures = predict.predict(
        model_dir,
        str(source),
        str(out),
        progress=lambda done, total: steps.append((done, total)),
    )
    names = [os.path.relpath(failure.path, source) for failure in failures]
    assert names == ["broken.jpg", "dangling.png", "day 1/cut.jpeg", "empty.png"]
    assert all(failure.reason for failure in failures)
    assert steps == [(k, 6) for k in range(1, 7)]
    assert files_under(out) == sorted(
        ["legend.png"]
        + [f"a_{kind}.png" for kind in ("ids", "color", "overlay")]
        + [f"day 1/späť/b_{kind}.png" for kind in ("ids", "color", "overlay")]
    )
    assert ids_at(out / "day 1" / "späť" / "b_ids.png").shape == (33, 50)


def test_same_stem_does_not_overwrite(model_dir, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    save(picture(10, 10), source / "a.png")
    save(picture(40, 50), source / "a.jpg")
    assert predict.predict(model_dir, str(source), str(out)) == []
    assert ids_at(out / "a.png_ids.png").shape == (10, 10)
    assert ids_at(out / "a.jpg_ids.png").shape == (40, 50)


def test_output_stems_by_hand():
    assert predict.output_stems(["a.jpg", "b.png", "s/a.png"]) == {
        "a.jpg": "a",
        "b.png": "b",
        "s/a.png": "s/a",
    }
    # a.jpg and a.png share "a", and a.jpg.png would claim the name that a.jpg takes.
    stems = predict.output_stems(["a.jpg", "a.jpg.png", "a.png", "A.PNG"])
    assert stems["a.jpg"] == "a.jpg" and stems["a.png"] == "a.png"
    assert len({stem.casefold() for stem in stems.values()}) == 4


def kinds_of_image():
    """name -> (image to save, suffix, save options, RGB that must be read)."""
    rgb = picture()
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30) // 3
    grey8 = np.dstack([grey.astype(np.uint8)] * 3)
    alpha = np.full((20, 30, 1), 128, np.uint8)
    two = Image.fromarray(grey % 2 > 0)
    return {
        "rgb": (rgb, "png", {}, rgb),
        "rgba": (np.dstack([rgb, alpha]), "png", {}, rgb),
        "grey": (grey.astype(np.uint8), "png", {}, grey8),
        "grey and alpha": (np.dstack([grey8[..., :1], alpha]), "png", {}, grey8),
        "16 bit": ((grey << 8) | 200, "png", {}, grey8),
        "1 bit": (two, "png", {}, np.dstack([np.array(two) * np.uint8(255)] * 3)),
        "palette": (Image.fromarray(rgb).quantize(4), "png", {}, rgb),
        "jpeg": (rgb, "jpg", {"quality": 100, "subsampling": 0}, rgb),
        "cmyk": (Image.fromarray(rgb).convert("CMYK"), "jpg", {"quality": 100}, rgb),
        "png named jpg": (rgb, "jpg", {"format": "PNG"}, rgb),
        "animated": (
            Image.fromarray(rgb),
            "png",
            {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]},
            rgb,
        ),
    }


@pytest.mark.parametrize("kind", kinds_of_image())
def test_every_kind_of_image_is_read(kind, tmp_path):
    image, suffix, options, expected = kinds_of_image()[kind]
    path = tmp_path / f"image.{suffix}"
    save(image, path, **options)
    rgb = predict.read_image(str(path))
    in_memory = predict.decode_image(io.BytesIO(path.read_bytes()))
    np.testing.assert_array_equal(in_memory, rgb)
    assert rgb.dtype == np.uint8 and rgb.shape == expected.shape
    # JPEG is lossy, most of all at the edges between the areas.
    lossy = kind in ("jpeg", "cmyk")
    difference = np.abs(rgb.astype(int) - expected)
    assert np.median(difference) <= (2 if lossy else 0)
    assert difference.max() <= (60 if lossy else 0)


# What a camera stores so that the turn named by the orientation makes it upright.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x),  # shown turned a quarter clockwise
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
    99: lambda x: x,  # no such orientation
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_gives_an_upright_picture(orientation, tmp_path):
    upright = picture(40, 60)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    save(stored, tmp_path / "photo.jpg", exif=exif, quality=95)
    rgb = predict.read_image(str(tmp_path / "photo.jpg"))
    assert rgb.shape == upright.shape
    inner = np.s_[4:16, 4:16], np.s_[24:36, 4:16], np.s_[24:36, 30:56]
    for area in inner:
        np.testing.assert_array_equal(truth(rgb)[area], truth(upright)[area])


def test_an_upright_result_from_a_turned_photograph(model_dir, tmp_path):
    upright, exif = picture(40, 60), Image.Exif()
    exif[0x0112] = 6
    save(np.rot90(upright).copy(), tmp_path / "in" / "a.jpg", exif=exif, quality=95)
    predict.predict(model_dir, str(tmp_path / "in"), str(tmp_path / "out"))
    ids = ids_at(tmp_path / "out" / "a_ids.png")
    assert ids.shape == (40, 60)
    assert (ids != truth(upright)).mean() < 0.02


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    save(picture(), tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert predict.read_image(str(tmp_path / "a.jpg")).shape == (20, 30, 3)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    # 20,000 x 20,000 announced, not one pixel there: decoding it would be an error.
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "PNG")
    header = bytearray(data.getvalue()[:200])
    header[16:24] = (20_000).to_bytes(4, "big") * 2
    crc = zlib.crc32(bytes(header[12:29]))
    header[29:33] = crc.to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(header)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="20000 x 20000 pixels .* limit of 100000000"):
        predict.read_image(str(tmp_path / "bomb.png"))
    save(picture(20, 30), tmp_path / "fits.png")
    assert predict.read_image(str(tmp_path / "fits.png"), 600).shape == (20, 30, 3)
    with pytest.raises(ValueError, match="limit of 599"):
        predict.read_image(str(tmp_path / "fits.png"), 599)
    assert limit == Image.MAX_IMAGE_PIXELS  # Pillow's own limit is as it was


def test_other_formats_and_files_are_refused(tmp_path):
    save(picture(), tmp_path / "gif.png", format="GIF")
    with pytest.raises(ValueError, match="not a JPEG or PNG image"):
        predict.read_image(str(tmp_path / "gif.png"))
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(ValueError, match="not a regular file"):
        predict.read_image(str(tmp_path / "pipe.png"))


@pytest.mark.parametrize("size", [(70, 120), (120, 70), (1, 3000), (3000, 1)])
def test_large_images_are_run_in_windows(model_dir, monkeypatch, size):
    model = predict.load_model(model_dir)
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    whole = predict.segment(model, rgb)
    shapes = []

    def spy(predictor, image, window, overlap, window_batch):
        def probabilities(windows):
            shapes.append(windows.shape)
            return predictor(windows)

        return inference.sliding_bands(
            probabilities, image, window, overlap, window_batch
        )

    monkeypatch.setattr(predict, "MAX_WHOLE_PIXELS", 4096)
    monkeypatch.setattr(predict, "WINDOW", 48)
    monkeypatch.setattr(predict, "sliding_bands", spy)
    tiled = predict.segment(model, rgb)
    assert tiled.dtype == np.uint8
    np.testing.assert_array_equal(tiled, whole)  # the model sees single pixels
    assert len(shapes) > 1 and max(max(shape) for shape in shapes) <= 48


def test_names_with_line_breaks_and_without_utf_8(model_dir, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    names = ["two\nlines", "clear\x1b[2J", os.fsdecode(b"caf\xe9"), "..x"]
    for name in names:
        save(picture(), source / f"{name}.png", format="PNG")
    (source / "bad\nname.png").write_bytes(b"no image")
    (failure,) = predict.predict(model_dir, str(source), str(out))
    assert failure.path.endswith("bad\nname.png") and "\n" not in failure.reason
    expected = {f"{name}_{kind}.png" for name in names for kind in ("ids", "color")}
    assert expected <= set(os.listdir(out))
    assert set(os.listdir(tmp_path)) == {"in", "out"}


@pytest.mark.parametrize("text", ["[" * 99_999, '{"class_names": [1]}', "[]", "\xff"])
def test_hostile_classes_of_an_export(model_dir, tmp_path, text):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    (tmp_path / "classes.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="the export in .* is damaged") as error:
        predict.load_model(str(tmp_path))
    assert "\n" not in str(error.value)


def test_results_are_no_inputs(model_dir, tmp_path):
    save(picture(), tmp_path / "a.png")
    for _ in range(2):  # the second time finds the first one's results
        predict.predict(model_dir, str(tmp_path), str(tmp_path / "out"))
    assert len(files_under(tmp_path / "out")) == 4
    with pytest.raises(ValueError, match="must not be the input folder"):
        predict.predict(model_dir, str(tmp_path), f"{tmp_path}/out/..")


@pytest.mark.parametrize("code, stops", [(errno.ENOSPC, True), (errno.EACCES, False)])
def test_a_full_disk_stops_and_one_bad_name_does_not(
    model_dir, tmp_path, monkeypatch, code, stops
):
    save(picture(), tmp_path / "in" / "a.png")
    save(picture(), tmp_path / "in" / "b.png")
    replace = os.replace

    def refuse(source, target):
        if target.endswith("a_ids.png"):
            raise OSError(code, os.strerror(code), target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    arguments = model_dir, str(tmp_path / "in"), str(tmp_path / "out")
    if stops:
        with pytest.raises(OSError, match="No space left"):
            predict.predict(*arguments)
    else:
        (failure,) = predict.predict(*arguments)
        assert failure.path.endswith("a.png") and "denied" in failure.reason
        assert (tmp_path / "out" / "b_ids.png").exists()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["legend.png", "a_ids.png"])
def test_no_photograph_is_replaced_by_a_result(model_dir, tmp_path, name):
    photo = tmp_path / name
    save(picture(), photo)
    before = photo.read_bytes()
    if name == "a_ids.png":  # beside the result of another photograph
        inside = tmp_path / "in"
        inside.mkdir()
        save(picture(), inside / "a.png")
        (inside / "b.png").symlink_to(photo)
        given = inside
    else:
        given = photo
    with pytest.raises(ValueError, match="a result would take its place"):
        predict.predict(model_dir, str(given), str(tmp_path))
    assert photo.read_bytes() == before


def test_what_cannot_work_is_said_before_the_work(model_dir, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    save(picture(), photo)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="input not found"):
        predict.predict(model_dir, str(tmp_path / "nowhere"), str(out))
    with pytest.raises(ValueError, match="no image .* in .*empty"):
        predict.predict(model_dir, str(tmp_path / "empty"), str(out))
    with pytest.raises(ValueError, match="no exported model in .*must be there$"):
        predict.predict(str(tmp_path), str(photo), str(out))
    shutil.copytree(model_dir, tmp_path / "run" / "export")
    with pytest.raises(ValueError, match="there; there is one in .*run/export$"):
        predict.predict(str(tmp_path / "run"), str(photo), str(out))
    with pytest.raises(NotADirectoryError, match="output_dir is a file"):
        predict.predict(model_dir, str(photo), str(photo))
    with pytest.raises(ValueError, match="alpha"):
        predict.predict(model_dir, str(photo), str(out), alpha=1.5)
    assert not out.exists()


@pytest.mark.parametrize("damage", ["classes.json", "saved_model.pb"])
def test_a_damaged_export_is_one_clear_error(model_dir, tmp_path, damage):
    for path in pathlib.Path(model_dir).glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / damage).write_bytes(b"{")
    with pytest.raises(ValueError, match="the export in .* is damaged"):
        predict.load_model(str(tmp_path))


@pytest.mark.parametrize("names", [NAMES[:2], (*NAMES, "sky")])
def test_an_export_with_names_for_other_classes_is_damaged(model_dir, tmp_path, names):
    shutil.copytree(model_dir, tmp_path / "export")
    classes = {"class_names": names, "class_colors": [[1, 2, 3]] * len(names)}
    (tmp_path / "export" / "classes.json").write_text(json.dumps(classes))
    expected = (
        f"export is damaged: the network has 3 classes, classes.json names {len(names)}"
    )
    with pytest.raises(ValueError, match=expected):
        predict.load_model(str(tmp_path / "export"))


@pytest.mark.parametrize(
    "name, argument, dtype, results, message",
    [
        ("other", "images", tf.uint8, ("class_ids", "probabilities"), "no signature"),
        ("serving_default", "x", tf.uint8, ("class_ids", "probabilities"), "must take"),
        (
            *("serving_default", "images", tf.float32),
            *(("class_ids", "probabilities"), "must take images, uint8"),
        ),
        ("serving_default", "images", tf.uint8, ("class_ids",), "must give"),
    ],
)
def test_another_savedmodel_is_no_export(
    model_dir, tmp_path, name, argument, dtype, results, message
):
    spec = tf.TensorSpec([None, None, None, 3], dtype, name=argument)
    module = tf.Module()
    module.call = tf.function(
        lambda pixels: dict.fromkeys(results, tf.cast(pixels, tf.float32)),
        input_signature=[spec],
    )
    tf.saved_model.save(module, str(tmp_path), {name: module.call})
    shutil.copy(pathlib.Path(model_dir, "classes.json"), tmp_path)
    with pytest.raises(ValueError, match=f"is damaged: .*{message}") as error:
        predict.load_model(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
