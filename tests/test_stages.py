"""Which stages a run has, what each changes, and that A does not disturb G's luck."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import losses, stages

CLASSES = ("road", "sky", "car")


@pytest.fixture
def make(tiny_config):
    """(networks, {stage name: Stage}) of the tiny config with changes."""

    def make(**changes):
        config = dataclasses.replace(tiny_config, **changes)
        networks = stages.create_networks(config, CLASSES)
        plan = stages.make_stages(config, networks, ignore_label=255)
        return networks, {stage.name: stage for stage in plan}

    return make


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    image = tf.constant(rng.normal(0, 50, [2, 64, 64, 3]), tf.float32)
    return image, tf.constant(rng.integers(0, 3, [2, 64, 64]), tf.int32)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"arm": "vgg16"}, ["phase1"]),
        ({}, ["phase1", "warmup", "phase2"]),
        ({"adversary_warmup_steps": 0}, ["phase1", "phase2"]),
        ({"lambda_adv": 0.0}, ["phase1", "phase2"]),
    ],
)
def test_stages_of_an_arm(make, changes, names):
    networks, plan = make(**changes)
    assert list(plan) == names
    has_adversary = "phase2" in names and changes.get("lambda_adv") != 0
    assert (networks.adversary is not None) == has_adversary
    assert (networks.extractor is not None) == has_adversary
    if "phase2" in plan:
        assert plan["phase2"].first_step == plan["phase1"].num_steps


def test_initial_generator_does_not_depend_on_the_adversary(make):
    with_a, _ = make()
    without, _ = make(lambda_adv=0.0)
    pairs = zip(with_a.generator.weights, without.generator.weights, strict=True)
    for ours, other in pairs:
        if "seed_generator" not in ours.path:
            np.testing.assert_array_equal(ours, other, err_msg=ours.path)


def run_steps(networks, stage, batch, num_steps, dropout_stage):
    for step in range(1, num_steps + 1):
        stages.seed_dropout(networks.generator, 0, dropout_stage, step)
        scalars = stage.step(*batch)
    return scalars


def test_the_control_is_phase_1_with_phase_2s_rates_bit_for_bit(make, batch):
    rates = {"generator_lr": 1e-3, "phase2_lr_decay": 0.1, "phase2_steps": 20}
    control, control_plan = make(lambda_adv=0.0, **rates)
    plain, plain_plan = make(
        arm="vgg16", phase1_lr=1e-3, phase1_lr_end=1e-4, phase1_steps=20
    )
    run_steps(control, control_plan["phase2"], batch, 20, "phase2")
    run_steps(plain, plain_plan["phase1"], batch, 20, "phase2")
    pairs = zip(control.generator.weights, plain.generator.weights, strict=True)
    for ours, other in pairs:
        np.testing.assert_array_equal(ours, other, err_msg=ours.path)


def test_a_frozen_adversary_never_moves_and_still_pushes(make, batch):
    networks, plan = make(placebo="frozen_adversary")
    assert list(plan) == ["phase1", "phase2"]  # no warm-up
    before = [w.numpy().copy() for w in networks.adversary.weights]
    for _ in range(2):
        scalars = plan["phase2"].step(*batch)
    for old, new in zip(before, networks.adversary.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(scalars["learning_rate/adversary"]) == 0
    assert float(scalars["gradient/ratio"]) == pytest.approx(0.3, rel=1e-3)


def test_the_entropy_placebo_changes_what_pushes_and_nothing_else(make, batch):
    """A and the first scalars are the adversarial arm's; G's push is another."""
    results = {}
    for placebo in ("none", "entropy"):
        networks, plan = make(placebo=placebo)
        stages.seed_dropout(networks.generator, 0, "phase2", 1)
        logits = networks.generator(batch[0], training=True)
        stages.seed_dropout(networks.generator, 0, "phase2", 1)
        scalars = plan["phase2"].step(*batch)
        results[placebo] = networks, {k: float(v) for k, v in scalars.items()}
    (first, ours), (second, placebo) = results.values()
    assert ours.keys() == placebo.keys()
    for one, other in zip(
        first.adversary.weights, second.adversary.weights, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    for name in ("loss/loss_d", "loss/mce", "adversary/accuracy_paired"):
        assert ours[name] == placebo[name], name
    entropy = losses.entropy_loss(logits, batch[1], 255)
    assert placebo["loss/adversarial"] == pytest.approx(float(entropy), rel=1e-4)
    assert placebo["gradient/ratio"] == pytest.approx(0.3, rel=1e-3)
    moved = zip(
        first.generator.trainable_weights,
        second.generator.trainable_weights,
        strict=True,
    )
    assert any(np.any(one.numpy() != other.numpy()) for one, other in moved)


def test_the_rate_of_phase_1_grows_and_falls_where_asked_for(make, batch):
    _, plan = make(
        phase1_lr=1e-3, phase1_lr_end=1e-4, phase1_steps=4, phase1_lr_warmup_steps=3
    )
    rates = [
        float(plan["phase1"].step(*batch)["learning_rate/generator"]) for _ in range(4)
    ]
    # Thirds of the line that falls by 2.25e-4 a step, then the line itself.
    expected = [1e-3 / 3, 7.75e-4 * 2 / 3, 5.5e-4, 3.25e-4]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_rates_of_the_phases(make, batch):
    networks, plan = make(
        phase1_lr=1e-3, phase1_lr_end=1e-4, generator_lr=3e-4, adversary_lr=5e-4
    )
    first = float(plan["phase1"].step(*batch)["learning_rate/generator"])
    second = float(plan["phase1"].step(*batch)["learning_rate/generator"])
    # Linear from 1e-3 to 1e-4 over 4 steps: 2.25e-4 less at each.
    assert first == pytest.approx(1e-3) and second == pytest.approx(7.75e-4)
    for _ in range(2):
        warm = float(plan["warmup"].step(*batch)["learning_rate/adversary"])
        assert warm == pytest.approx(5e-4)
    stages.reset_optimizer(networks.generator_optimizer)
    plan["phase2"].step(*batch)
    scalars = {k: float(v) for k, v in plan["phase2"].step(*batch).items()}
    # To a tenth over 4 steps: after one step 1 - 0.9 / 4 of the start.
    assert scalars["learning_rate/generator"] == pytest.approx(3e-4 * 0.775)
    assert scalars["learning_rate/adversary"] == pytest.approx(5e-4 * 0.775)


def test_reset_gives_adam_its_first_state(make, batch):
    networks, plan = make()
    plan["phase1"].step(*batch)
    optimizer = networks.generator_optimizer
    assert any(np.any(v) for v in optimizer.variables if "momentum" in v.path)
    stages.reset_optimizer(optimizer)
    for variable in optimizer.variables:
        if variable is not optimizer.learning_rate:
            assert not np.any(variable.numpy()), variable.path


@pytest.mark.parametrize("arm", ["vgg16", "vgg16_g"])
def test_the_average_by_hand(make, batch, arm):
    networks, plan = make(arm=arm, ema_decay=0.3)
    stage = plan["phase2" if arm.endswith("_g") else "phase1"]
    number = next(
        n for n, w in enumerate(networks.generator.weights) if w.path.endswith("bias")
    )
    expected = networks.generator.weights[number].numpy()
    for n in (1, 2, 3):
        stage.step(*batch)
        weight = networks.generator.weights[number].numpy()
        # d = (1 + n) / (10 + n) = 2/11, 3/12, then 0.3 for 4/13.
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        average = networks.average.weights[number].numpy()
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-8)
        assert np.any(average != weight)
    assert networks.evaluated is networks.average


def test_the_average_disturbs_no_step(make, batch):
    ends = []
    for decay in (0.0, 0.9):
        networks, plan = make(ema_decay=decay)
        plan["phase1"].step(*batch)
        plan["phase2"].step(*batch)
        ends.append([w.numpy() for w in networks.generator.trainable_weights])
    for ours, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(ours, other)


def test_the_guard_lowers_the_adversarys_rate_between_steps(tiny_config, batch):
    networks = stages.create_networks(tiny_config, CLASSES)
    weakening = stages.Weakening()
    stage = stages.make_stages(tiny_config, networks, 255, weakening)[-1]
    assert stage.step(*batch)["learning_rate/adversary"].numpy() == np.float32(5e-4)
    weakening.adversary_rate.assign(0.1)
    rate = float(stage.step(*batch)["learning_rate/adversary"])
    assert rate == pytest.approx(0.1 * 5e-4 * 0.775)  # see the rates above


def test_rates_and_ramp_follow_the_runs_clock_where_g_went_back(tiny_config, batch):
    config = dataclasses.replace(tiny_config, lambda_ramp_steps=4)
    networks = stages.create_networks(config, CLASSES)
    weakening = stages.Weakening()
    step = stages.make_stages(config, networks, 255, weakening)[-1].step
    for _ in range(3):
        rates = step(*batch)
    rates = {k: float(v) for k, v in rates.items() if k.startswith("learning_rate")}
    networks.generator_optimizer.iterations.assign(0)
    weakening.lost_steps.assign(2.0)
    scalars = step(*batch)
    assert {name: float(scalars[name]) for name in rates} == rates
    weighed = float(scalars["gradient/ratio"])  # 3/4 of the ratio that is held
    assert weighed == pytest.approx(0.75 * config.gradient_ratio, rel=1e-3)


def test_seeds_differ_between_stages_and_runs_and_fit_31_bits():
    seeds = [
        stages.stage_seed(seed, name)
        for seed in (0, 1, 2**31 - 1)
        for name in stages.STAGES
    ]
    assert len(set(seeds)) == 9
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_dropout_is_a_function_of_seed_stage_and_step(make, batch):
    networks, _ = make(dropout=0.5)
    generator = networks.generator

    def logits(*key):
        stages.seed_dropout(generator, *key)
        return generator(batch[0], training=True).numpy()

    once = logits(0, "phase1", 3)
    logits(0, "phase1", 4)
    np.testing.assert_array_equal(logits(0, "phase1", 3), once)
    for other in ((0, "phase1", 4), (0, "phase2", 3), (1, "phase1", 3)):
        assert np.any(logits(*other) != once)


def test_each_part_of_each_step_has_a_dropout_of_its_own(make, batch):
    networks, _ = make(dropout=0.5)
    generator = networks.generator
    seen = set()
    for step in range(1, 4):
        stages.seed_dropout(generator, 0, "phase1", step, num_parts=3)
        seen |= {generator(batch[0], training=True).numpy().tobytes() for _ in "123"}
    assert len(seen) == 9


def test_linear_decay():
    schedule = stages.linear_decay(1e-4, 1e-5, 100)
    assert float(schedule(0)) == pytest.approx(1e-4)
    assert float(schedule(50)) == pytest.approx(5.5e-5)
    assert float(schedule(100)) == pytest.approx(1e-5)


def test_the_dtype_policy_stays_as_it_was(make):
    before = keras.config.dtype_policy().name
    networks, _ = make(precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == before
    assert networks.generator.get_layer("fc7").compute_dtype == "bfloat16"
    assert networks.generator.dtype_policy.variable_dtype == "float32"


def test_loss_scales_are_part_of_a_checkpoint_and_outlive_the_change_of_phase(
    make, tmp_path
):
    optimizers = {}
    for which in ("saved", "restored"):
        networks, _ = make(precision="mixed_float16")
        parts = {k: v for k, v in vars(networks).items() if v is not None}
        optimizers[which] = networks.generator_optimizer, networks.adversary_optimizer
        checkpoint = tf.train.Checkpoint(**parts)
        if which == "saved":
            for optimizer, scale in zip(optimizers[which], (8.0, 2.0), strict=True):
                optimizer.dynamic_scale.assign(scale)
                optimizer.step_counter.assign(5)
            path = checkpoint.save(str(tmp_path / "state"))
    checkpoint.restore(path).assert_consumed()
    restored = optimizers["restored"]
    assert [float(o.dynamic_scale) for o in restored] == [8, 2]
    assert [int(o.step_counter) for o in restored] == [5, 5]
    stages.reset_optimizer(restored[0])
    assert float(restored[0].dynamic_scale) == 8


@pytest.mark.parametrize(
    "jit_compile, devices, distribute, compiles",
    [
        ("auto", [], "none", False),
        ("auto", ["GPU:0"], "none", True),
        ("auto", ["GPU:0"], "mirrored", False),
        ("on", [], "none", True),
        ("off", ["GPU:0"], "none", False),
    ],
)
def test_auto_compiles_on_gpus(
    monkeypatch, tiny_config, jit_compile, devices, distribute, compiles
):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    config = dataclasses.replace(
        tiny_config, jit_compile=jit_compile, distribute=distribute
    )
    assert stages.compiles(config) is compiles
