"""The study of collapses: what provokes, what is counted, what is not done again."""

import os
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import adversary as adversary_lib
from ss_gan_tf import collapse, stages


def row(name, guard, seed, phase1, miou, *alarms):
    alarms = [f"{alarm}@10:back" for alarm in alarms]
    return {"provocation": name, "guard": guard, "seed": seed} | {
        "phase1": phase1,
        "miou": miou,
        "alarms": alarms,
        "end": "done",
    }


ROWS = [
    row("lambda", True, 0, 0.50, 0.51, "pushed"),
    row("lambda", False, 0, 0.50, 0.20),
    row("lambda", True, 1, 0.54, 0.53, "validation", "pushed"),
    row("lambda", False, 1, 0.54, None),
]


def test_outcomes_by_hand():
    table = collapse.summarize(ROWS)
    level = table["phase1"]
    assert level["mean"] == pytest.approx(0.52) and level["range"] == pytest.approx(
        0.04
    )
    assert level["deviation"] == pytest.approx(0.02 * 2**0.5)
    on, off = table["outcomes"]
    assert on["mean_change"] == pytest.approx(0.0)
    assert on["worst_change"] == pytest.approx(-0.01)
    assert on["alarms"] == ["pushed", "validation"]
    assert (off["runs"], off["without_result"]) == (2, 1)
    assert off["worst_change"] == pytest.approx(-0.3)


def test_the_table_in_markdown():
    text = collapse.format_table(collapse.summarize(ROWS))
    assert "range 4.00" in text
    what = collapse.PROVOCATIONS["lambda"].what
    assert f"| {what} | on | 2 | +0.00 | -1.00 | pushed, validation |" in text
    assert f"| {what} | off | 2 | -30.00 | -30.00 (1 without a result) | - |" in text


def networks_at(step):
    optimizer = types.SimpleNamespace(iterations=tf.Variable(step, dtype=tf.int64))
    adversary = keras.Sequential([keras.Input((3,)), keras.layers.Dense(64)])
    return types.SimpleNamespace(generator_optimizer=optimizer, adversary=adversary)


@pytest.mark.parametrize("lost", [0, 7])  # by going back
@pytest.mark.parametrize("step", [collapse.AT_STEP - 1, collapse.AT_STEP])
def test_what_happens_in_the_middle_happens_at_one_step(monkeypatch, step, lost):
    networks, seen = networks_at(step - lost), []
    weakening = stages.Weakening()
    weakening.lost_steps.assign(lost)
    stage = stages.Stage("phase2", 100, lambda *batch: seen.append(batch[0]), 0)
    monkeypatch.setattr(stages, "make_stages", lambda *args: [stage])
    before = networks.adversary.get_weights()
    image = np.ones([1, 2, 2, 3], np.float32)
    for name in ("bad_batch", "adversary_reset"):
        make_stages = collapse.PROVOCATIONS[name].make_stages
        (provoking,) = make_stages(None, networks, 255, weakening)
        provoking.step(image, None)
    happens = step == collapse.AT_STEP
    assert np.isnan(seen[0]).all() == happens and np.isfinite(seen[1]).all()
    kernel = networks.adversary.get_weights()[0]
    assert np.any(kernel != before[0]) == happens
    if happens:  # He: variance 2 / fan-in
        assert np.std(kernel) == pytest.approx((2 / 3) ** 0.5, rel=0.2)


def test_void_is_zero_in_one_map_alone():
    probs = tf.constant([[[[0.25, 0.75], [0.25, 0.75]]]])
    label = tf.constant([[[1, 255]]])
    shown = collapse._void_visible(probs, label, 0.9, 255).numpy()
    np.testing.assert_allclose(shown[0, 0], [[0.1, 0.9], [0, 0]], atol=1e-6)
    fake = adversary_lib.fake_map(probs, label, 255).numpy()
    np.testing.assert_allclose(fake[0, 0, 1], [0.25, 0.75])


@pytest.mark.slow
def test_the_study_goes_on_with_what_is_missing(tiny_data, tmp_path):
    changes = {
        "width": 0.03125,
        "crop_size": 64,
        "batch_size": 2,
        "phase1_steps": 3,
        "phase2_steps": 3,
        "adversary_warmup_steps": 1,
        "eval_limit": 1,
    }
    lines = []
    for provocations in (["lambda"], ["lambda", "void"]):
        table = collapse.run_study(
            tiny_data,
            str(tmp_path),
            seeds=[0],
            provocations=provocations,
            changes=changes,
            report=lines.append,
        )
        if len(provocations) == 1:
            done = os.path.getmtime(tmp_path / "lambda-on-0" / "run.json")
    assert os.path.getmtime(tmp_path / "lambda-on-0" / "run.json") == done
    assert [len(r) for r in (lines, table["rows"])] == [6, 4]
    assert lines[:2] == lines[2:4]
    assert (tmp_path / "collapse.md").read_text() == collapse.format_table(table)
