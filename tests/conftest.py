"""Settings of every test, made before TensorFlow is imported, and shared fixtures."""

import collections
import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess

# Tests start the commands as subprocesses, which inherit these.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["KERAS_BACKEND"] = "tensorflow"
# A subprocess finds room beside this process on the same GPU.
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
# A variable of the shell must not decide whether the numbers agree.
os.environ.pop("TF_DETERMINISTIC_OPS", None)

# Behind TensorFlow it would end the process: see experiments/numerics.py.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_dir():
    """The folder beside the checkout with real images and ImageNet weights."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (real images and ImageNet weights), not there")
    return path


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of its own, or gives the one that is there another size."""
    folder, mounted = tmp_path / "disk", []

    def small_disk(kib):
        folder.mkdir(exist_ok=True)
        options = f"{'remount,' * bool(mounted)}size={kib}k"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        mounted.append(folder)
        return str(folder)

    yield small_disk
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """DATA_DIR with 12 training scenes of the synthetic set, and as many as follow."""
    from data_prep.prepare import prepare

    data_dir = str(tmp_path_factory.mktemp("data"))
    prepare("synthetic", None, data_dir, num_examples=12)
    return data_dir


@pytest.fixture(scope="session")
def tiny_config():
    """Seconds on two cores: both phases of a very narrow VGG16 arm."""
    from ss_gan_tf.config import PRESETS, Config

    return Config(
        **PRESETS["smoke"]
        | {
            "width": 0.03125,
            "crop_size": 64,
            "batch_size": 2,
            "phase1_steps": 4,
            "phase2_steps": 4,
            "adversary_warmup_steps": 2,
            "log_every": 2,
            "eval_every": 2,
            "save_every": 2,
            "eval_limit": 2,
            "panels": 1,
            "guard": False,  # four steps say nothing about a collapse
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tiny_config, tmp_path_factory):
    """The folder of a finished run of `tiny_config`; tests only read it."""
    from ss_gan_tf.train import train

    workdir = str(tmp_path_factory.mktemp("run"))
    train(tiny_config, tiny_data, workdir)
    return workdir


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of the system's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs a Chromium of the system's own")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # The pages are our own, and containers often have no user namespaces.
        with playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        ) as browser:
            yield browser


def state_of(workdir):
    """Every variable of the newest state: networks, optimizers, position, best."""
    import tensorflow as tf

    from ss_gan_tf import checkpoints

    reader = tf.train.load_checkpoint(checkpoints.find_checkpoint(workdir, "last"))
    names = reader.get_variable_to_shape_map()
    # The sizes of event files and the graph's own numbers may differ.
    left_out = ("memory/", "_CHECKPOINTABLE_OBJECT_GRAPH")
    return {n: reader.get_tensor(n) for n in names if not n.startswith(left_out)}


def points_of(workdir):
    """(tag, step) -> what each event file says of it, times of the clock left out."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    found = collections.defaultdict(list)
    for name in sorted(os.listdir(workdir)):
        if name.startswith("events.out"):
            path = os.path.join(workdir, name)
            for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
                event = event_pb2.Event.FromString(record)
                for value in event.summary.value:
                    if not value.tag.endswith("steps_per_second"):
                        content = value.tensor.SerializeToString()
                        found[value.tag, event.step].append(content)
    return found


def metrics_of(workdir):
    with open(os.path.join(workdir, "eval", "val", "metrics.json")) as file:
        return json.load(file)


@pytest.fixture(scope="session")
def assert_same_run():
    """Compares two runs' folders bit for bit: state, curves, pictures, metrics."""
    import numpy as np

    def assert_same_run(first, second):
        ours, other = state_of(first), state_of(second)
        assert ours.keys() == other.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        assert metrics_of(first) == metrics_of(second)
        points = points_of(first)
        assert not [key for key, values in points.items() if len(values) > 1], "doubled"
        assert points == points_of(second)

    return assert_same_run


@pytest.fixture
def fake_run(tmp_path):
    """Writes what a finished run leaves behind, without training it."""
    import numpy as np

    from ss_gan_tf import checkpoints, measures, summaries
    from ss_gan_tf.config import Config
    from ss_gan_tf.evaluate import write_metrics
    from ss_gan_tf.per_image import Collector, write_per_image

    classes = ("sky", "road", "car")
    colors = ((70, 130, 180), (128, 64, 128), (0, 0, 142))

    def fake_run(name, right, *, kinds=("test", "test-best"), counts=True, **fields):
        """A run whose images have these shares of right pixels, in every class."""
        config = Config(**{"dataset": "camvid", "phase2_steps": 40} | fields)
        versions = {"versions": {"ss_gan_tf": "0.1.0", "python": "3.11"}}
        run = checkpoints.Run(
            str(tmp_path / name), config, "DATA", classes, colors, 255, versions
        )
        (tmp_path / name).mkdir(parents=True)
        checkpoints.write_run(run)
        images = Collector()
        for number, share in enumerate(right):
            # 100 pixels of each class; the wrong ones fall to the next class.
            hits = round(100 * share)
            matrix = hits * np.eye(3) + (100 - hits) * np.roll(np.eye(3), 1, axis=1)
            images.add(f"image{number}", {"confusion": matrix.astype(np.int64)})
        images = images.result(classes)
        figures = measures.summarize(images.total(), classes)
        figures |= {"num_images": len(right), "limit": 0, "partial": False}
        for kind in kinds:
            folder = tmp_path / name / "eval" / kind
            write_metrics(figures, str(folder / "metrics.json"))
            if counts:
                write_per_image(images, str(folder / "per_image.npz"))
        writer = summaries.Summaries(run.workdir)
        alone = not config.uses_phase2 or config.init_generator
        for step in np.add((20, 40), 0 if alone else config.phase1_steps):
            writer.scalars(step, {"val/miou": figures["miou"], "loss/loss_d": 1.2})
        writer.close()
        return run.workdir

    return fake_run


@pytest.fixture
def own_flags():
    """(a function that defines flags) -> a FlagValues that holds these alone."""

    def own_flags(define_flags):
        from absl import flags

        values = flags.FlagValues()
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in dir(flags) if name.startswith("DEFINE_")]:
                define = functools.partial(getattr(flags, name), flag_values=values)
                patch.setattr(flags, name, define)
            define_flags()
        return values

    return own_flags
