"""A page on this computer: drop a photograph, see what exported models make of it.

    GET  /          the page, templates/demo.html: styles and script inside
    POST /segment   the bytes of a JPEG or PNG -> JSON, pictures inside

Photographs stay in memory, and nothing is sent anywhere: the server listens on
loopback, and the page may load nothing from, and send nothing to, any other host.
"""

import base64
import importlib.util
import io
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from PIL import Image

from ss_gan_tf import predict, visualize
from ss_gan_tf.messages import first_line

if TYPE_CHECKING:
    import flask

HOST = "127.0.0.1"
MAX_MODELS = 2
MAX_BYTES = 32 * 1024**2  # of a file
MAX_SIDE = 1280  # px; larger photographs are reduced: the answer comes in seconds


def check_installed():
    """Lets pass where the extra `demo` is installed.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec("flask") is None:
        raise ValueError("the demo needs flask: pip install 'ss_gan_tf[demo]'")


def name_models(paths: Sequence[str]) -> list[str]:
    """A short name for each export, no two the same.

    RUN/export is called RUN; where short names are the same, whole paths stand.

    Raises:
        ValueError: there are more than MAX_MODELS.
    """
    if len(paths) > MAX_MODELS:
        raise ValueError(f"{len(paths)} models: one, or two to compare")
    names = []
    for path in map(os.path.abspath, paths):
        folder, name = os.path.split(path)
        names.append(os.path.basename(folder) if name == "export" else name)
    if len(set(names)) == len(names):
        return names
    return [f"{path} ({k})" for k, path in enumerate(paths, start=1)]


# --- What the page shows -----------------------------------------------------


def compare(
    models: dict[str, predict.Model], encoded: bytes, max_side: int = MAX_SIDE
) -> dict[str, Any]:
    """One photograph through every model.

    Args:
        models: name -> what `predict.load_model` gives.
        encoded: a JPEG or PNG.
        max_side: px; a larger photograph is reduced to this, 0 leaves it as it is.

    Returns:
        "photo" an address that holds the picture, "size" and "original_size" [W, H],
        "models": for each its "name", "colors" (an address again) and "classes": name,
        colour and share of the pixels, from the largest, in one order for models with
        the same classes; "agreement", the share of the pixels to which two such models
        give the same class, else None.

    Raises:
        ValueError: the bytes are no readable picture.
    """
    image = predict.decode_image(io.BytesIO(encoded))
    original, image = image.shape[1::-1], _reduce(image, max_side)
    maps = [predict.segment(model, image) for model in models.values()]
    shares = [
        np.bincount(ids.ravel(), minlength=len(model.class_names)) / ids.size
        for ids, model in zip(maps, models.values(), strict=True)
    ]
    same_classes = len({model.class_names for model in models.values()}) == 1
    shown = []
    for (name, model), ids, own in zip(models.items(), maps, shares, strict=True):
        order = np.argsort(-(sum(shares) if same_classes else own), kind="stable")
        classes = legend(model)
        colors = visualize.colorize(ids, model.class_colors)
        shown.append(
            {
                "name": name,
                "colors": _address(colors, "PNG"),
                "classes": [classes[k] | {"share": float(own[k])} for k in order],
            }
        )
    compared = same_classes and len(maps) == 2
    return {
        "photo": _address(image, "JPEG", quality=90),
        "size": image.shape[1::-1],
        "original_size": original,
        "models": shown,
        "agreement": float(np.mean(maps[0] == maps[1])) if compared else None,
    }


def legend(model: predict.Model) -> list[dict[str, str]]:
    """Name and colour of each class, the colour as pages write it."""
    pairs = zip(model.class_names, model.class_colors, strict=True)
    return [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color)}
        for name, color in pairs
    ]


def _reduce(image: np.ndarray, max_side: int) -> np.ndarray:
    """The image with no side above max_side, its proportions kept."""
    height, width = image.shape[:2]
    factor = max_side / max(height, width)
    if not 0 < factor < 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _address(picture: np.ndarray, kind: str, **options) -> str:
    """The picture as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"


# --- The server --------------------------------------------------------------


def create_app(
    models: dict[str, predict.Model],
    *,
    max_side: int = MAX_SIDE,
    max_bytes: int = MAX_BYTES,
) -> "flask.Flask":
    """The page and what it asks for, as a WSGI application.

    Args:
        models: name -> model, one or two.
        max_side: px, as for `compare`.
        max_bytes: larger files are refused before they are read.

    Raises:
        ValueError: the extra is not installed.
    """
    check_installed()
    import flask

    app = flask.Flask("ss_gan_tf", static_folder=None)
    app.json.sort_keys = False
    app.config["MAX_CONTENT_LENGTH"] = max_bytes
    # A page of another host whose name was made to mean this computer gets nothing.
    app.config["TRUSTED_HOSTS"] = [HOST, "localhost"]
    one_at_a_time = threading.Lock()  # bounds memory, and threads share the processor

    @app.get("/")
    def page():
        nonce = secrets.token_urlsafe(16)
        legends = [
            {"name": name, "classes": legend(model)} for name, model in models.items()
        ]
        html = flask.render_template(
            "demo.html", nonce=nonce, models=legends, max_bytes=max_bytes
        )
        rules = (
            "default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; "
            f"form-action 'none'; frame-ancestors 'none'; style-src 'unsafe-inline'; "
            f"script-src 'nonce-{nonce}'"
        )
        return html, {"Content-Security-Policy": rules, "Cache-Control": "no-store"}

    @app.post("/segment")
    def segment():
        # Of this type a browser sends nothing to another site without asking there.
        if flask.request.mimetype != "application/octet-stream":
            return {"error": "send the file as application/octet-stream"}, 415
        encoded = flask.request.get_data(cache=False)
        try:
            with one_at_a_time:
                return compare(models, encoded, max_side)
        except (ValueError, MemoryError, tf.errors.OpError) as error:
            return {"error": first_line(error)}

    @app.errorhandler(413)
    def too_large(error):
        return {"error": f"more than {max_bytes / 1024**2:.0f} MB"}, 413

    @app.errorhandler(500)
    def unexpected(error):  # flask has logged it, with where it came from
        cause = getattr(error, "original_exception", None) or error
        return {"error": f"an error of the program: {first_line(cause)}"}, 500

    return app


def serve(app: "flask.Flask", port: int, started: Callable[[str], None] | None = None):
    """Serves the page on loopback until it is interrupted.

    Args:
        app: from `create_app`.
        port: 0 takes a free one.
        started: called with the page's address once it can be opened.

    Raises:
        OSError: the port is taken or not allowed.
    """
    from werkzeug.serving import make_server

    with socket.create_server((HOST, port)) as listening:
        server = make_server(HOST, port, app, threaded=True, fd=listening.fileno())
        if started:
            started(f"http://{HOST}:{listening.getsockname()[1]}")
        server.serve_forever()  # an interrupt ends it quietly
