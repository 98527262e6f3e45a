"""What a run is to a comparison, and what is read of it."""

import json

import pytest

from ss_gan_tf import results, summaries
from ss_gan_tf.config import Config


@pytest.mark.parametrize(
    "config, role",
    [
        (Config(arm="resnet50"), "phase1"),
        (Config(arm="vgg16", lambda_adv=0), "phase1"),
        (Config(arm="vgg16_g", lambda_adv=0), "control"),
        (Config(arm="vgg16_g"), "adversarial"),
        (Config(placebo="entropy"), "entropy"),
        (Config(placebo="frozen_adversary"), "frozen_adversary"),
    ],
)
def test_roles(config, role):
    assert results.role_of(config) == role and role in results.ROLES


def test_what_a_run_did_not_read():
    own_phase1, control = Config(), Config(lambda_adv=0, init_generator="RUN")
    unread = results.unread_fields(own_phase1)
    assert not {"lambda_adv", "phase1_steps", "phase2_steps", "epsilon"} & unread
    assert {"gradient_ratio", "lambda_max", "aspp_rates"} <= unread
    held = Config(adversarial_weighting="gradient_ratio")
    assert "lambda_adv" in results.unread_fields(held)
    assert "gradient_ratio" not in results.unread_fields(held)
    assert {"phase1_steps", "epsilon"} <= results.unread_fields(control)
    assert not {"lambda_adv", "phase2_steps"} & results.unread_fields(control)
    assert "phase2_steps" in results.unread_fields(Config(arm="vgg16"))


@pytest.fixture
def curve(tmp_path):
    """A run of phase 2 alone with four validations, and its writer."""
    writer = summaries.Summaries(str(tmp_path))
    for step, miou in ((0, 0.9), (10, 0.1), (20, 0.3), (30, 0.5)):
        writer.scalars(step, {"val/miou": miou})
    yield str(tmp_path), writer
    writer.close()


ALONE = Config(init_generator="RUN")


def test_last_validations_leave_the_start_out(curve):
    two = results.last_validations(curve[0], ALONE, 2)
    assert two["mean"] == pytest.approx(0.4) and two["steps"] == [20, 30]
    both = Config(phase1_steps=10)  # of one run, whose phase 1 is the curve's start
    assert results.last_validations(curve[0], both, 9)["steps"] == [20, 30]
    many = results.last_validations(curve[0], ALONE, 9)
    assert many["mean"] == pytest.approx(0.3) and many["count"] == 3
    assert many["guard"] == {"ways_back": 0, "ended": False, "last_step": None}


def test_what_was_validated_before_the_guard_went_back_does_not_count(curve):
    workdir, writer = curve
    writer.alarm(5, {"phase": "phase2", "step": 5, "action": "note"}, {}, "")
    assert results.last_validations(workdir, ALONE, 9)["steps"] == [10, 20, 30]
    writer.alarm(10, {"phase": "phase2", "step": 10, "action": "back"}, {}, "")
    since = results.last_validations(workdir, ALONE, 9)
    assert since["steps"] == [20, 30] and since["mean"] == pytest.approx(0.4)
    # With a phase 1 of its own, step 10 of phase 2 is another step of the curve.
    config = Config(phase1_steps=10)
    assert results.last_validations(workdir, config, 9)["steps"] == [30]
    writer.alarm(25, {"phase": "phase2", "step": 25, "action": "end"}, {}, "")
    ended = results.last_validations(workdir, ALONE, 9)
    assert (ended["mean"], ended["steps"]) == (None, [])
    assert ended["guard"] == {"ways_back": 1, "ended": True, "last_step": 25}


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"step": "1", "action": "back"}', '{"step": 1}', "[" * 9999]
)
def test_a_damaged_file_of_the_guard_is_one_line(tmp_path, line):
    (tmp_path / "guard.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="guard.jsonl: not a list of alarms") as error:
        results.guard_outcome(str(tmp_path))
    assert str(error.value).isprintable()


def test_metrics_are_read_or_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError):
        results.read_metrics(str(tmp_path), "val")
    path = tmp_path / "eval" / "val" / "metrics.json"
    path.parent.mkdir(parents=True)
    for text, message in (("{", "not JSON"), ('{"miou": 1}', "must hold miou, iou")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            results.read_metrics(str(tmp_path), "val")
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.write_text(json.dumps({"miou": 0.5, "iou": {}, "num_images": 1}))
    assert results.read_metrics(str(tmp_path), "val")["miou"] == 0.5
