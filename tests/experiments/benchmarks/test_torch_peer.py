"""The peer does the same job as our step: same weights in, same weights out."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import losses, train_step
from ss_gan_tf.adversary import build_adversary, build_extractor
from ss_gan_tf.backbones import normalize, scaled
from ss_gan_tf.generator import build_generator

torch = pytest.importorskip("torch", reason="the extra `peers` is not installed")

from experiments.benchmarks import (  # noqa: E402
    inference,
    torch_networks,
    torch_step,
    workers,
)
from experiments.benchmarks.step_rows import KEEPS  # noqa: E402

CLASSES, WIDTH, CROP = 5, 0.0625, 96  # verdict grid: 6 cells pooled to 4


@pytest.fixture(scope="module", params=["vgg16", "resnet50"])
def pair(request):
    """Our networks and the peer's with the same weights, none of them 0 or 1."""
    backbone, rng = request.param, np.random.default_rng(3)
    keras.utils.set_random_seed(1)
    ours = {
        "generator": build_generator(backbone, CLASSES, width=WIDTH, dropout=0.0),
        "extractor": build_extractor(backbone, width=WIDTH),
        "adversary": build_adversary(
            CLASSES, scaled(128 if backbone == "vgg16" else 64, WIDTH), width=WIDTH
        ),
    }
    for model in ours.values():
        for weight in model.weights:
            if "seed" not in weight.path and len(weight.shape) == 1:
                weight.assign(weight + rng.uniform(0.0, 0.3, weight.shape))
            if weight.path.endswith("pool_score/kernel"):  # zero at the start
                weight.assign(rng.normal(0, 0.05, weight.shape))
    theirs = {"generator": torch_networks.build_generator(backbone, CLASSES, WIDTH, 0)}
    theirs["extractor"], theirs["adversary"] = torch_networks.build_adversary(
        backbone, CLASSES, WIDTH
    )
    for name, module in theirs.items():
        torch_networks.copy_weights(ours[name], module)
    return ours, theirs


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(4)
    image = rng.normal(0, 60, (2, CROP, CROP, 3)).astype(np.float32)
    label = rng.integers(0, CLASSES, (2, CROP, CROP)).astype(np.int32)
    label[0, :30] = 255
    return image, label


def as_torch(image, label):
    return torch.from_numpy(image).permute(0, 3, 1, 2), torch.from_numpy(label).long()


def close(theirs, ours, name=""):
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    assert np.abs(ours).max() > 0, name
    assert np.abs(theirs - ours).max() <= 1e-3 * np.abs(ours).max(), name


def test_outputs(pair, batch):
    ours, theirs = pair
    image, _ = as_torch(*batch)
    with torch.no_grad():
        logits = theirs["generator"](image)
        features = theirs["extractor"](image)
        verdicts = theirs["adversary"](logits.softmax(1), features)
    expected = ours["generator"](batch[0], training=False)
    close(logits.permute(0, 2, 3, 1), expected)
    expected_features = ours["extractor"](batch[0])
    close(features.permute(0, 2, 3, 1), expected_features)
    expected = ours["adversary"]([tf.nn.softmax(expected), expected_features])
    close(verdicts, expected)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["segmentation", "adversarial"])
def test_a_step_changes_the_weights_equally(pair, batch, phase):
    ours, theirs = pair
    saved = {name: model.get_weights() for name, model in ours.items()}
    theirs = copy.deepcopy(theirs)
    # Plain descent: what a step adds to a weight is its gradient.
    sgd = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)]
    trained = [theirs["generator"], theirs["adversary"]]
    peer_sgd = [
        torch.optim.SGD([w for w in model.parameters() if w.requires_grad], 0.1)
        for model in trained
    ]
    if phase == "segmentation":
        step = train_step.make_segmentation_step(ours["generator"], sgd[0])
        peer = torch_step.make_segmentation_step(trained[0], peer_sgd[0])
        names = ["generator"]
    else:
        # A lambda at which the adversary's part of G's gradient is seen.
        step = train_step.make_adversarial_step(
            ours["generator"], ours["adversary"], *sgd, lambda_adv=10.0,
            extractor=ours["extractor"],
        )  # fmt: skip
        peer = torch_step.make_adversarial_step(
            *trained, theirs["extractor"], *peer_sgd, lambda_adv=10.0
        )
        names = ["generator", "adversary"]
    before = copy.deepcopy(theirs)
    scalars, peer_scalars = step(*batch), peer(*as_torch(*batch))
    for name, value in peer_scalars.items():
        close(value, scalars[name])
    for name in names:
        expected = copy.deepcopy(before[name])
        torch_networks.copy_weights(ours[name], expected)
        ours[name].set_weights(saved[name])
        rows = zip(
            before[name].named_parameters(),
            expected.parameters(),
            theirs[name].parameters(),
            strict=True,
        )
        with torch.no_grad():
            for (path, old), wanted, new in rows:
                if old.requires_grad:
                    close(new - old, wanted - old, path)


@pytest.mark.slow
def test_bfloat16_costs_our_gradient_what_it_costs_the_peers(pair, batch, request):
    """As far from float32's, in a step that no other follows."""
    ours, theirs = pair
    backbone = request.node.callspec.params["pair"]
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        rounds = build_generator(backbone, CLASSES, width=WIDTH, dropout=0.0)
    finally:
        keras.config.set_dtype_policy(policy)
    rounds.set_weights(ours["generator"].get_weights())

    def gradient(generator):
        with tf.GradientTape() as tape:
            logits = generator(batch[0], training=True)
            loss = losses.segmentation_loss(logits, batch[1], 255)
        found = tape.gradient(loss, generator.trainable_variables)
        return np.concatenate([np.ravel(tf.convert_to_tensor(x)) for x in found])

    def peer_gradient(bfloat16):
        module = copy.deepcopy(theirs["generator"])
        sgd = torch.optim.SGD(module.parameters(), 0.0)
        step = torch_step.make_segmentation_step(module, sgd, bfloat16=bfloat16)
        step(*as_torch(*batch))
        found = [w.grad for w in module.parameters() if w.requires_grad]
        return np.concatenate([x.numpy().ravel() for x in found])

    def off(float32, bfloat16):
        return np.linalg.norm(bfloat16 - float32) / np.linalg.norm(float32)

    of_ours = off(gradient(ours["generator"]), gradient(rounds))
    of_theirs = off(peer_gradient(False), peer_gradient(True))
    assert of_theirs / 3 < of_ours < 1.5 * of_theirs


def test_the_peer_of_inference_has_the_same_probabilities(pair, tmp_path, request):
    """Through the file that its own process reads."""
    generator = pair[0]["generator"]
    settings = {
        "arm": f"{request.node.callspec.params['pair']}_g", "num_classes": CLASSES,
        "width": WIDTH, "folder": str(tmp_path), "sizes": ["500x500"],
    }  # fmt: skip
    inference._write_torch(generator, settings)
    stored = torch.load(tmp_path / inference.TORCH_FILE)
    module = inference._torch_module(settings)
    module.load_state_dict(stored["weights"])
    image = tf.cast(inference._images(settings)["500x500"], tf.float32)
    logits = generator(normalize(image), training=False)
    seen = torch.from_numpy(normalize(image).numpy()).permute(0, 3, 1, 2)
    with torch.no_grad():
        close(module.eval()(seen).permute(0, 2, 3, 1), logits)
    probs = tf.nn.softmax(logits)[0, 0, 0]
    first, class_id = inference.build_torch(settings)["500x500"]()
    close(first, probs[0])
    assert class_id == np.argmax(probs)


def test_its_batch_normalisation_can_be_folded():
    torch.manual_seed(0)
    module = torch_networks.build_generator("resnet50", CLASSES, WIDTH)
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        for values in (norm.running_mean, norm.weight, norm.bias):
            torch.nn.init.normal_(values)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    module.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = module(image)
        torch_networks.fold_batch_norm(module)
        torch.testing.assert_close(module(image), before, rtol=1e-3, atol=1e-3)
    assert len(norms) == 53
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())


def test_no_tensorflow_where_the_peer_is_measured(tmp_path):
    (tmp_path / "measured.py").write_text(
        "import sys\n"
        "from experiments.benchmarks.torch_step import build_peer\n"
        "def build(settings):\n"
        "    work = build_peer(settings)\n"
        "    return work | {'loaded': lambda: 'tensorflow' in sys.modules}\n"
    )
    settings = {
        "arm": "vgg16_g", "crop_size": 64, "batch_size": 1, "num_classes": 3,
        "width": 0.03125, "precision": "float32", "phases": ["phase1"],
        "library": f"torch{KEEPS}",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with workers.Worker("measured:build", settings) as worker:
            assert worker.call("phase1")["loss/mce"] > 0
            assert not worker.call("loaded")
