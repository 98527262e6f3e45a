"""What arrives in an event file."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from ss_gan_tf import summaries


def read(logdir):
    events = EventAccumulator(str(logdir), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


@pytest.fixture
def writer(tmp_path):
    writer = summaries.Summaries(str(tmp_path))
    yield writer
    writer.close()


def test_scalars_carry_step_value_and_prefix(writer, tmp_path):
    writer.scalars(3, {"loss/loss_d": 1.5})
    writer.scalars(7, {"loss/loss_d": 1.0})
    writer.scalars(2, {"loss/loss_d": 2.0}, prefix="warmup/")
    found = read(tmp_path)
    assert [(s, float(v)) for s, v in found["loss/loss_d"]] == [(3, 1.5), (7, 1.0)]
    assert [s for s, _ in found["warmup/loss/loss_d"]] == [2]


def test_validation_names_classes_and_leaves_absent_ones_out(writer, tmp_path):
    metrics = {
        "miou": 0.5,
        "pixel_accuracy": 0.75,
        "iou": {"sky": 0.5, "car": None},
    }
    writer.validation(10, metrics)
    found = read(tmp_path)
    assert set(found) == {"val/miou", "val/pixel_accuracy", "val_iou/sky"}
    assert found["val_iou/sky"][0][0] == 10


def test_text_is_a_block(writer, tmp_path):
    writer.text("config", '{\n"a": 1\n}')
    body = read(tmp_path)["config"][0][1].item().decode()
    assert body.splitlines() == ["    {", '    "a": 1', "    }"]


def test_wide_pictures_are_reduced(writer, tmp_path):
    writer.pictures(1, {"panel/0": np.zeros([100, 4096, 3], np.uint8)})
    width, height, _ = read(tmp_path)["panel/0"][0][1]
    assert (int(width), int(height)) == (2048, 50)


def test_panels_show_every_tile():
    image = np.full([40, 60, 3], 90, np.uint8)
    label = np.zeros([40, 60], np.int32)
    example = {"image": image, "label": label}
    panel = summaries.validation_panel(example, label, [(250, 0, 0)], 255)
    assert panel.dtype == np.uint8 and panel.shape[1] >= 4 * 60
    verdicts = summaries.verdict_panel(image, np.ones([4, 4]), np.zeros([4, 4]))
    assert verdicts.shape[1] >= 2 * 60


def test_curves_are_read_again_and_the_newest_point_of_a_step_counts(tmp_path):
    first = summaries.Summaries(str(tmp_path))
    for step, value in ((2, 0.2), (4, 0.4)):
        first.scalars(step, {"val/miou": value, "loss/mce": 1.0})
    first.close()
    again = summaries.Summaries(str(tmp_path))  # continued from step 2
    again.scalars(4, {"val/miou": 0.5})
    again.pictures(4, {"panel/0": np.zeros([8, 8, 3], np.uint8)})
    again.close()
    curves = summaries.read_scalars(str(tmp_path), ["val/miou", "loss/loss_d"])
    assert curves["loss/loss_d"] == []
    assert [step for step, _ in curves["val/miou"]] == [2, 4]
    assert [value for _, value in curves["val/miou"]] == pytest.approx([0.2, 0.5])
