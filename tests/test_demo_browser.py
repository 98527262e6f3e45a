"""The demo as a visitor sees it: headless Chromium, a phone's width and a desk's."""

import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ss_gan_tf import demo, predict

pytest.importorskip("flask", reason="the extra `demo`")
from werkzeug.serving import make_server

COLORS = ((70, 130, 180), (128, 64, 128), (0, 0, 142))


class Horizon:
    """Stands for a SavedModel: a share of the image is class 0, below it is class 1."""

    def __init__(self, share):
        self.share, self.signatures = share, {"serving_default": self.serve}

    def serve(self, images):
        _, height, width, _ = images.shape
        rows = tf.range(height) >= round(self.share * height)
        ids = tf.cast(tf.broadcast_to(rows[:, None], (height, width)), tf.uint8)
        return {"class_ids": ids[None]}


@pytest.fixture
def address():
    """Where a demo of two models listens."""
    models = {
        "run": predict.Model(Horizon(0.25), ("sky", "road", "car"), COLORS),
        "other": predict.Model(Horizon(0.75), ("sky", "road", "car"), COLORS),
    }
    server = make_server(demo.HOST, 0, demo.create_app(models), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{demo.HOST}:{server.port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def photo(tmp_path):
    """A grey photograph."""
    path = tmp_path / "street.jpg"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(path)
    return path


DROP = """async ([bytes, name]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name));
    document.querySelector(".drop").dispatchEvent(
        new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
# Three pixels of the i-th picture as it is drawn: in its upper, middle, lower part.
LAID_OVER = """i => {
    const [photo, colors] = document.querySelectorAll(".picture")[i].children;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [photo.naturalWidth, photo.naturalHeight];
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(photo, 0, 0);
    context.globalAlpha = getComputedStyle(colors).opacity;
    context.drawImage(colors, 0, 0);
    const at = (y) => [...context.getImageData(30, y, 1, 1).data.slice(0, 3)];
    return [at(5), at(20), at(35)];
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_a_photograph_is_dropped_and_a_broken_file_chosen(
    browser, address, photo, width
):
    page = browser.new_page(viewport={"width": width, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    # Before: both models with their classes.
    assert page.locator("h2").all_inner_texts() == ["run", "other"]
    assert page.locator(".chips li").all_inner_texts() == ["sky", "road", "car"] * 2

    # A photograph: overlay, legend, shares.
    page.evaluate(DROP, [list(photo.read_bytes()), "street.jpg"])
    page.wait_for_selector(".picture")
    assert page.locator(".note").is_hidden()
    facts = page.locator(".facts").inner_text()
    assert facts == (
        "street.jpg, 60 \u00d7 40 pixels. The two agree on 50.0 % of the pixels"
    )
    shares = [row.split("\n") for row in page.locator(".shares li").all_inner_texts()]
    assert shares == [
        *(["sky", "25.0 %"], ["road", "75.0 %"]),
        *(["sky", "75.0 %"], ["road", "25.0 %"]),
    ]
    assert page.locator(".absent").all_inner_texts() == ["Not seen: car"] * 2
    swatch = "e => getComputedStyle(e).backgroundColor"
    colour = page.locator(".shares .swatch").first.evaluate(swatch)
    assert colour == "rgb(70, 130, 180)"
    sky = np.round(0.45 * 200 + 0.55 * np.array(COLORS[0]))
    road = np.round(0.45 * 200 + 0.55 * np.array(COLORS[1]))
    for number, expected in enumerate(([sky, road, road], [sky, sky, road])):
        drawn = page.evaluate(LAID_OVER, number)
        np.testing.assert_allclose(drawn, expected, atol=2)
    boxes = [box.bounding_box() for box in page.locator(".picture").all()]
    is_beside = boxes[0]["y"] == boxes[1]["y"]
    assert is_beside == (width == 1280), "side by side where there is room"
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    # The slider shows the photograph alone.
    page.locator("input[type=range]").fill("0")
    np.testing.assert_allclose(page.evaluate(LAID_OVER, 0), 200, atol=2)

    # A broken file, chosen this time: a message, and the result stays.
    broken = photo.with_name("broken.png")
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    page.set_input_files("input[type=file]", broken)
    page.wait_for_selector(".note.wrong")
    message = page.locator(".note").inner_text()
    assert message == "broken.png: not a JPEG or PNG image"
    assert page.locator(".picture").count() == 2
    # The next photograph takes it away.
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector(".note", state="hidden")
    assert said == []
    outside = {url for url in asked if not url.startswith(("data:", address))}
    assert not outside
    page.close()


def test_what_cannot_be_sent_is_said(browser, address, photo, tmp_path):
    page = browser.new_page()
    page.goto(address)
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(demo.MAX_BYTES + 1)
    page.set_input_files("input[type=file]", large)
    page.wait_for_selector(".note.wrong")
    assert page.locator(".note").inner_text() == "large.jpg: more than 32 MB"
    page.route("**/segment", lambda route: route.abort())
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector("text=No answer")
    assert "is the program on this computer still running?" in (
        page.locator(".note").inner_text()
    )
    page.close()
