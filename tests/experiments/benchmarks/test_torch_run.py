"""The run in PyTorch is the run in TensorFlow: every loss of every step."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

from ss_gan_tf import checkpoints, numerics, stages
from ss_gan_tf.generator import build_generator
from ss_gan_tf.optimizers import Adam
from ss_gan_tf.train import train

torch = pytest.importorskip("torch", reason="the extra `peers` is not installed")

from experiments.benchmarks import torch_networks, torch_run  # noqa: E402


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(
        tiny_config,
        arm="vgg16_g",
        dropout=0.0,
        guard=False,
        phase1_steps=6,
        phase1_lr=1e-4,
        phase1_lr_warmup_steps=3,
        phase2_steps=5,
        adversary_warmup_steps=4,
        eval_every=100,
        panels=0,
    )


PAPER = {
    "adversarial_weighting": "fixed",
    "adversarial_form": "saturating",
    "lambda_adv": 10.0,
    "adversary_optimizer": "momentum",
    "adversary_lr": 3e-3,
    "grid_size": 1,
}
CONTROL = {"lambda_adv": 0.0, "adversary_warmup_steps": 0}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="ratio"),
        pytest.param({"arm": "resnet50_g"}, id="resnet50", marks=pytest.mark.slow),
        pytest.param(PAPER, id="paper", marks=pytest.mark.slow),
        pytest.param(CONTROL, id="control", marks=pytest.mark.slow),
    ],
)
def test_every_loss_of_every_step(config, tiny_data, tmp_path, changed, monkeypatch):
    config = dataclasses.replace(config, **changed)
    if config.backbone == "resnet50":  # as it is with ImageNet weights
        frozen = functools.partial(build_generator, freeze_backbone_norm=True)
        monkeypatch.setattr(
            checkpoints,
            "build_generator",
            lambda *given, freeze_backbone_norm, **more: frozen(*given, **more),
        )
        monkeypatch.setattr(torch_run, "check", lambda _: None)
    result = numerics.run_variants(
        config,
        tiny_data,
        str(tmp_path),
        ["torch-float32"],
        num_seeds=2,
        make_torch_stages=torch_run.make_stages,
    )
    rows, ends = (  # without the yardstick, which runs beside it
        [row for row in result[part] if row["variant"] == "torch-float32"]
        for part in ("rows", "miou")
    )
    rows = {row["loss"]: row for row in rows}
    expected = {"phase1 mce", "phase2 mce"}
    if config.uses_adversary:
        expected |= {"warmup loss_d", "phase2 adversarial", "phase2 loss_d"}
        expected |= {"phase2 loss_g"}
    assert set(rows) == expected
    for name, row in rows.items():
        assert row["largest"] < 2e-3, (name, row)
    (end,) = ends
    assert abs(end["difference"]) < 0.02


def test_the_trained_weights_come_back(config, tiny_data, tmp_path):
    config = dataclasses.replace(config, arm="vgg16", phase1_steps=1)
    before, kept = {}, {}

    def make_stages(config, networks, *given):
        before["weights"] = networks.generator.get_weights()
        kept["generator"] = networks.generator
        return torch_run.make_stages(config, networks, *given)

    train(config, tiny_data, str(tmp_path / "run"), make_stages=make_stages)
    moved = [
        np.abs(new - old).max()
        for new, old in zip(
            kept["generator"].get_weights(), before["weights"], strict=True
        )
        if new.dtype == np.float32
    ]
    # Adam's first step moves a weight by its rate, a third of 1e-4 here.
    assert max(moved) == pytest.approx(1e-4 / 3, rel=1e-2)


def test_weights_go_there_and_back():
    generator = torch_networks.build_generator("resnet50", 5, 0.0625)
    ours = build_generator("resnet50", 5, width=0.0625)
    torch_networks.copy_weights(ours, generator)
    expected = ours.get_weights()
    ours.set_weights([np.zeros_like(weight) for weight in expected])
    torch_networks.copy_weights_back(generator, ours)
    for weight, value in zip(ours.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize(
    "ours, kind",
    [(keras.optimizers.SGD(1.0, 0.9), "momentum"), (Adam(1.0), "adam")],
    ids=["momentum", "adam"],
)
def test_falling_rates_and_small_gradients(ours, kind):
    start = np.array([1.0, 2.0, 3.0], np.float32)
    weight = keras.Variable(start)
    module = torch.nn.ParameterList(
        [torch.nn.Parameter(torch.from_numpy(start.copy()))]
    )
    theirs = torch_run._optimizer(module, kind)
    rng = np.random.default_rng(0)
    rate = stages.linear_decay(0.1, 0.01, 5)
    for step in range(5):
        # 1e-6: epsilon is felt.
        gradient = rng.normal(0, [1.0, 1e-3, 1e-6]).astype(np.float32)
        ours.learning_rate.assign(rate(step))
        ours.apply([gradient], [weight])
        module[0].grad = torch.from_numpy(gradient)
        torch_run._set_rate(theirs, float(rate(step)))
        theirs.step()
    moved = np.array(weight) - start
    assert np.abs(moved).min() > 0 or kind == "momentum"
    np.testing.assert_allclose(module[0].detach().numpy() - start, moved, rtol=1e-3)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"dropout": 0.5}, "dropout=0.5: must be 0.0 for the run in PyTorch"),
        ({"precision": "mixed_float16"}, "must be float32 or mixed_bfloat16"),
        ({"extractor": "none"}, "extractor=none: must be frozen"),
        ({"ema_decay": 0.9}, "ema_decay=0.9: must be 0.0"),
        ({"grid_size": 0}, "grid_size=0: must be above 0"),
        ({"arm": "resnet50_g"}, "backbone_weights=none: must be a file or imagenet"),
    ],
)
def test_what_the_peer_cannot_do_is_refused(config, changed, message):
    torch_run.check(config)
    # dropout is that of fc6 and fc7 alone
    resnet50 = {
        "arm": "resnet50_g",
        "backbone_weights": "FILE",
        "dropout": 0.5,
        "width": 1.0,
    }
    torch_run.check(dataclasses.replace(config, **resnet50))
    with pytest.raises(ValueError, match=message):
        torch_run.check(dataclasses.replace(config, **changed))


def test_a_batch_without_a_label_leaves_the_weights_finite(config):
    networks = stages.create_networks(
        dataclasses.replace(config, backbone_weights="none"), tuple("abcdefg")
    )
    phase2 = torch_run.make_stages(config, networks, 255)[-1]
    rng = np.random.default_rng(0)
    image = rng.normal(0, 60, (2, 64, 64, 3)).astype(np.float32)
    scalars = phase2.step(image, np.full((2, 64, 64), 255, np.int32))
    assert scalars["loss/loss_g"] == scalars["loss/mce"] == 0
    scalars = phase2.step(image, np.zeros((2, 64, 64), np.int32))
    assert all(map(np.isfinite, scalars.values())) and scalars["loss/mce"] > 0


def test_momentum_at_rate_0():
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2))])
    optimizer = torch_run._optimizer(module, "momentum")
    for _ in range(2):
        module[0].grad = torch.ones(2)
        torch_run._set_rate(optimizer, 0.0)
        optimizer.step()
    assert module[0].tolist() == [1, 1]
