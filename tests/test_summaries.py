"""What arrives in an event file."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from ss_gan_tf import summaries, visualize

BASIC = {
    "miou": 0.5,
    "miou_small_classes": None,
    "miou_large_classes": 0.5,
    "pixel_accuracy": 0.75,
    "iou": {"sky": 0.5, "car": None},
    "confusion_matrix": [[3, 1], [0, 0]],
}


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
    writer.validation(10, BASIC)
    found = read(tmp_path)
    assert set(found) == {
        "val/miou",
        "val/miou_large_classes",
        "val/pixel_accuracy",
        "val_iou/sky",
        "confusion",
    }
    assert [(s, float(v)) for s, v in found["val_iou/sky"]] == [(10, 0.5)]


def test_full_metrics_have_curves_and_none_has_no_point(writer, tmp_path):
    full = {
        "boundary": {"mean_iou": 0.25, "mean_f1": None, "iou": {"sky": 0.5}},
        "granulation": {"surplus": 3.0, "per_class": {"surplus": {"sky": 3.0}}},
        "calibration": {"ece": 0.125, "num_bins": 15},
    }
    writer.validation(10, BASIC | full)
    found = {tag: values for tag, values in read(tmp_path).items() if "val_" in tag}
    found = {tag: float(value) for tag, [(_, value)] in found.items()}
    assert found == {
        "val_iou/sky": 0.5,
        "val_boundary/mean_iou": 0.25,
        "val_granulation/surplus": 3.0,
        "val_calibration/ece": 0.125,
    }


def test_the_confusion_matrix_is_a_picture(writer, tmp_path):
    writer.validation(10, BASIC)
    ((step, (width, height, encoded)),) = read(tmp_path)["confusion"]
    shown = tf.io.decode_png(encoded).numpy()
    expected = visualize.confusion_picture(np.array([[3, 1], [0, 0]]), ["sky", "car"])
    assert step == 10
    assert (int(height), int(width)) == expected.shape[:2]
    np.testing.assert_array_equal(shown, expected)


def test_settings_reach_the_table_of_runs(writer, tmp_path):
    settings = {"seed": 3, "flip": True, "arm": "vgg16_g", "aspp_rates": (6, 12)}
    writer.hparams(settings)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (content,) = events.PluginTagToContent("hparams").values()
    shown = plugin_data_pb2.HParamsPluginData.FromString(content)
    shown = shown.session_start_info.hparams
    assert shown["seed"].number_value == 3 and shown["flip"].bool_value is True
    assert shown["arm"].string_value == "vgg16_g"
    assert shown["aspp_rates"].string_value == "(6, 12)"


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


def test_cut_back_takes_out_what_was_written_since(tmp_path):
    first = summaries.Summaries(str(tmp_path))
    first.scalars(1, {"a": 1.0})
    sizes = summaries.log_sizes(str(tmp_path))
    first.scalars(2, {"a": 2.0})
    first.close()
    second = summaries.Summaries(str(tmp_path))
    second.scalars(2, {"a": 2.0})
    second.close()
    assert len(summaries.log_sizes(str(tmp_path))) == 2
    (tmp_path / "run.json").write_text("{}")
    summaries.cut_back(str(tmp_path), sizes)
    assert summaries.log_sizes(str(tmp_path)) == sizes
    assert [step for step, _ in read(tmp_path)["a"]] == [1]
    summaries.cut_back(str(tmp_path), {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_pictures_are_read_again(writer, tmp_path):
    first, second = (np.full((3, 5, 3), (value, 0, 9), np.uint8) for value in (7, 8))
    writer.pictures(4, {"verdicts/0": first})
    writer.pictures(2, {"verdicts/0": second, "panel/0": second})
    found = summaries.read_pictures(str(tmp_path), ["verdicts/0", "verdicts/1"])
    assert [step for step, _ in found["verdicts/0"]] == [2, 4]
    np.testing.assert_array_equal(found["verdicts/0"][0][1], second)
    np.testing.assert_array_equal(found["verdicts/0"][1][1], first)
    assert found["verdicts/1"] == [] and "panel/0" not in found
