"""What the demo's page is told, and whom it answers."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ss_gan_tf import demo, predict

NAMES = ("red", "green", "blue")
COLORS = ((250, 10, 0), (0, 240, 20), (30, 0, 230))


class Strongest:
    """Stands for a SavedModel whose class is the strongest colour, or the weakest."""

    def __init__(self, sign=1):
        self.signatures = {"serving_default": self.serve}
        self.sign = sign

    def serve(self, images):
        strength = self.sign * tf.cast(images, tf.int32)
        return {"class_ids": tf.argmax(strength, axis=-1, output_type=tf.int32)}


def model(names=NAMES, sign=1):
    return predict.Model(Strongest(sign), names, COLORS)


def encode(rgb, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


def picture(height=20, width=30):
    """Red above, green at the left below, blue at the right below: 3 : 1 : 2."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, :, 0] = 255
    rgb[height // 2 :, : width // 3, 1] = 255
    rgb[height // 2 :, width // 3 :, 2] = 255
    return rgb


def pixels(address):
    """The picture that an address of the page holds."""
    head, data = address.split(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image)


# --- Names -------------------------------------------------------------------


def test_models_have_short_names_or_whole_ones():
    assert demo.name_models(["RUNS/vgg16/export", "RUNS/vgg16_g/export/"]) == [
        "vgg16",
        "vgg16_g",
    ]
    assert demo.name_models(["EXPORT"]) == ["EXPORT"]
    assert demo.name_models(["a/x", "b/x"]) == ["a/x (1)", "b/x (2)"]
    assert demo.name_models(["x", "x"]) == ["x (1)", "x (2)"]
    with pytest.raises(ValueError, match="3 models: one, or two to compare"):
        demo.name_models(["a", "b", "c"])


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"flask: pip install 'ss_gan_tf\[demo\]'$"):
        demo.create_app({"one": model()})


# --- Results -----------------------------------------------------------------


def test_colours_and_shares_of_one_model():
    result = demo.compare({"one": model()}, encode(picture()))
    assert result["size"] == result["original_size"] == (30, 20)
    change = np.abs(pixels(result["photo"]) - np.float64(picture())).mean()
    assert change < 10  # JPEG
    (shown,) = result["models"]
    expected = np.array(COLORS)[picture().argmax(-1)]
    np.testing.assert_array_equal(pixels(shown["colors"]), expected)
    # 300 of 600 pixels are red, 10 x 20 blue, 10 x 10 green.
    assert shown["classes"] == [
        {"name": "red", "color": "#fa0a00", "share": 0.5},
        {"name": "blue", "color": "#1e00e6", "share": pytest.approx(1 / 3)},
        {"name": "green", "color": "#00f014", "share": pytest.approx(1 / 6)},
    ]
    assert result["agreement"] is None


def test_two_models_of_the_same_classes_are_compared_in_one_order():
    rgb = picture() // 2 + np.array([0, 0, 1], np.uint8)  # no ties
    result = demo.compare({"one": model(), "two": model(sign=-1)}, encode(rgb))
    assert result["agreement"] == 0
    first, second = ([c["name"] for c in m["classes"]] for m in result["models"])
    # Weakest: green where red was, red elsewhere, so red has 1.0 of both together.
    assert first == second and first[0] == "red"
    assert demo.compare({"a": model(), "b": model()}, encode(rgb))["agreement"] == 1


def test_two_models_of_different_classes_have_each_their_own_legend():
    other = model(("sky", "road", "car"))
    result = demo.compare({"one": model(), "two": other}, encode(picture()))
    assert result["agreement"] is None
    assert [c["name"] for c in result["models"][1]["classes"]] == ["sky", "car", "road"]


def test_large_photographs_are_reduced_and_small_ones_are_not():
    encoded = encode(picture(200, 300))
    result = demo.compare({"one": model()}, encoded, max_side=150)
    assert (result["original_size"], result["size"]) == ((300, 200), (150, 100))
    assert pixels(result["photo"]).shape == (100, 150, 3)
    assert pixels(result["models"][0]["colors"]).shape == (100, 150, 3)
    for unchanged in (300, 0):
        result = demo.compare({"one": model()}, encoded, max_side=unchanged)
        assert result["size"] == (300, 200)


def test_photographs_are_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    encoded = encode(picture(), "JPEG", exif=exif, quality=95)
    result = demo.compare({"one": model()}, encoded)
    assert result["original_size"] == (20, 30)
    # What was above is at the right.
    colors = pixels(result["models"][0]["colors"])
    assert tuple(colors[15, 17]) == COLORS[0] != tuple(colors[15, 3])


# --- The server --------------------------------------------------------------


@pytest.fixture
def client():
    app = demo.create_app({"one": model(), "<b>": model()}, max_bytes=100_000)
    return app.test_client()


def post(client, data, **kwargs):
    kwargs = {"content_type": "application/octet-stream"} | kwargs
    return client.post("/segment", data=data, **kwargs)


def bomb(side):
    """A PNG whose header alone says that it is large."""

    def chunk(kind, data):
        content = kind + data
        return (
            struct.pack(">I", len(data))
            + content
            + struct.pack(">I", zlib.crc32(content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def test_the_page_can_reach_no_other_host(client):
    answer = client.get("/")
    assert answer.status_code == 200
    rules = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in rules and "connect-src 'self'" in rules
    assert "http" not in rules and "*" not in rules
    page = answer.get_data(as_text=True)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page and '<b>"' not in page  # names are no markup


def test_a_photograph_gets_its_answer(client):
    answer = post(client, encode(picture()))
    assert answer.status_code == 200
    assert [m["name"] for m in answer.json["models"]] == ["one", "<b>"]
    assert answer.json["agreement"] == 1


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a JPEG or PNG image"),
        (b"hello", "not a JPEG or PNG image"),
        (encode(picture(90, 90))[:150], "cannot be read: "),
        (bomb(20_000), "20000 x 20000 pixels are more than the limit of 100000000"),
    ],
    ids=["nothing", "text", "cut off", "bomb"],
)
def test_a_file_that_is_no_picture_is_one_line(client, data, message):
    answer = post(client, data)
    assert answer.status_code == 200 and set(answer.json) == {"error"}
    assert answer.json["error"].startswith(message)
    assert "\n" not in answer.json["error"]


def test_an_unexpected_error_is_one_line_too(monkeypatch, client):
    def fail(*_):
        raise IndexError("index 2 is out of bounds\nfor axis 0")

    monkeypatch.setattr(predict, "segment", fail)
    answer = post(client, encode(picture()))
    assert answer.status_code == 500 and answer.is_json
    assert answer.json == {"error": "an error of the program: index 2 is out of bounds"}


def test_a_file_that_is_too_large_is_not_read(client):
    answer = post(client, bytes(100_001))
    assert (answer.status_code, answer.json) == (413, {"error": "more than 0 MB"})


def test_other_sites_get_nothing(client):
    encoded = encode(picture())
    # What a form of another site can send, and a name that was made to mean us.
    assert post(client, encoded, content_type="text/plain").status_code == 415
    foreign = {"Host": "evil.example"}
    assert post(client, encoded, headers=foreign).status_code == 400
    assert client.get("/", headers=foreign).status_code == 400
    assert "Access-Control-Allow-Origin" not in post(client, encoded).headers


def test_a_port_that_is_taken_is_an_error():
    with demo.socket.create_server((demo.HOST, 0)) as taken:
        with pytest.raises(OSError, match="in use"):
            demo.serve(None, taken.getsockname()[1])
