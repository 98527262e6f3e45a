"""Images a second of an exported network, alone and against other runtimes.

The SavedModel is what `experiments.export` writes; ONNX Runtime gets the same graph,
PyTorch the same weights in float32. All take uint8 pixels and give class ids and
probabilities; each has a process of its own.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks import peers, timing, workers

TORCH_FILE = "torch.pt"  # the weights for PyTorch, beside the export
SIZES = {"500x500": (500, 500), "2048x1024": (1024, 2048)}  # name -> (H, W)

flags.disclaim_key_flags()  # they are the program's: --help lists them

READS = ("arm", "num_classes", "width", "peer", "image_size")
PEERS = ("torch", "onnxruntime", "tf2onnx")


def define_flags():
    """The flags of this measurement; `step` defines those of the networks."""
    flags.DEFINE_multi_enum(
        "image_size", list(SIZES), list(SIZES), "inference: width x height."
    )


def check(values: flags.FlagValues):
    """Lets pass what can be measured.

    Raises:
        ValueError: the peers are not installed, or there is a GPU.
    """
    if values.peer == "torch":
        peers.require(*PEERS)
        peers.require_cpu()


def run(
    values: flags.FlagValues, keep: Callable[[dict[str, Any]], None] = lambda part: None
) -> dict[str, Any]:
    """Times one image at a time.

    Args:
        values: the parsed flags.
        keep: called with the result up to then, after each size.

    Returns:
        "settings", and "rows" with seconds, images_per_second, peak_memory of the
        process up to then (bytes) and to_peer (seconds over PyTorch's, None without).

    Raises:
        ValueError: the peers are not installed, or a measured process failed.
    """
    check(values)
    with_peers = values.peer == "torch"
    settings = {name: getattr(values, name) for name in ("arm", "num_classes", "width")}
    result = {"settings": settings | {"repeats": values.repeats}, "rows": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        spec = settings | {"folder": folder, "sizes": values.image_size}
        export = spec | {"peers": with_peers}
        with workers.Worker(f"{__name__}:build_export", export) as w:
            w.call("export")
        builders = {"ours": "build_saved_model"}
        if with_peers:
            builders |= {"torch": "build_torch", "onnxruntime": "build_onnx"}
        running = {
            library: stack.enter_context(workers.Worker(f"{__name__}:{name}", spec))
            for library, name in builders.items()
        }
        for size in values.image_size:  # the large one last: memory is a peak
            variants = {
                library: lambda worker=worker, size=size: worker.call(size)
                for library, worker in running.items()
            }
            seconds = timing.interleave(variants, values.repeats)
            spreads = {name: timing.spread(times) for name, times in seconds.items()}
            for library, spread in spreads.items():
                peer = spreads.get("torch")
                result["rows"].append(
                    {
                        "library": library,
                        "size": size,
                        "seconds": spread,
                        "images_per_second": 1 / spread["median"],
                        "peak_memory": running[library].peak_memory(),
                        "to_peer": peer and spread["median"] / peer["median"],
                    }
                )
            keep(result)
    return result


def format(result: dict[str, Any]) -> str:
    """The rows as a table."""
    settings = result["settings"]
    table = [["size", "library", "s", "lowest", "highest", "images/s", "GB", "/ torch"]]
    for row in result["rows"]:
        seconds = (row["seconds"][name] for name in ("median", "lowest", "highest"))
        table.append(
            [
                row["size"],
                row["library"],
                *(f"{value:.3g}" for value in seconds),
                f"{row['images_per_second']:.3g}",
                f"{row['peak_memory'] / 1e9:.2f}",
                "-" if row["to_peer"] is None else f"{row['to_peer']:.2f}",
            ]
        )
    head = (
        f"{settings['arm']}, one image at a time, {settings['num_classes']} classes, "
        f"width {settings['width']:g}, {settings['repeats']} rounds"
    )
    return f"{head}\n\n{timing.table(table)}"


# --- In the workers ----------------------------------------------------------


def _generator(settings):
    import keras

    from ss_gan_tf.generator import build_generator

    keras.utils.set_random_seed(0)
    return build_generator(
        settings["arm"].removesuffix("_g"),
        settings["num_classes"],
        width=settings["width"],
    )


def _images(settings):
    rng = np.random.default_rng(0)
    return {
        size: rng.integers(0, 256, (1, *SIZES[size], 3), dtype=np.uint8)
        for size in settings["sizes"]
    }


def build_export(settings):
    """Writes what the others read."""
    from ss_gan_tf.backbones import normalize
    from ss_gan_tf.export import export
    from ss_gan_tf.onnx_export import add_onnx

    def write():
        classes = settings["num_classes"]
        folder = os.path.join(settings["folder"], "model")
        generator = _generator(settings)
        export(
            generator,
            folder,
            class_names=[str(number) for number in range(classes)],
            class_colors=[(number, 0, 0) for number in range(classes)],
            ignore_label=255,
            normalize=normalize,
            metadata={},
        )
        if settings["peers"]:
            add_onnx(folder)
            _write_torch(generator, settings)

    return {"export": write}


def build_saved_model(settings):
    """The SavedModel's own signature."""
    import tensorflow as tf

    model = tf.saved_model.load(os.path.join(settings["folder"], "model"))
    serve = model.signatures["serving_default"]

    def work(image):
        out = serve(images=tf.constant(image))
        return float(out["probabilities"][0, 0, 0, 0]), int(out["class_ids"][0, 0, 0])

    images = _images(settings)
    return {name: lambda image=image: work(image) for name, image in images.items()}


def build_onnx(settings):
    """ONNX Runtime on all cores, on the graph of the SavedModel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = workers.available_cores()
    session = onnxruntime.InferenceSession(
        os.path.join(settings["folder"], "model", "model.onnx"),
        options,
        providers=["CPUExecutionProvider"],
    )

    def work(image):
        ids, probs = session.run(["class_ids", "probabilities"], {"images": image})
        return float(probs[0, 0, 0, 0]), int(ids[0, 0, 0])

    images = _images(settings)
    return {name: lambda image=image: work(image) for name, image in images.items()}


def _torch_module(settings):
    from experiments.benchmarks import torch_networks

    backbone = settings["arm"].removesuffix("_g")
    return torch_networks.build_generator(
        backbone, settings["num_classes"], settings["width"]
    )


def _write_torch(generator, settings):
    """The same weights for PyTorch, and what it takes off the pixels."""
    import torch

    from experiments.benchmarks import torch_networks
    from ss_gan_tf.backbones import MEAN_RGB

    module = _torch_module(settings)
    torch_networks.copy_weights(generator, module)
    stored = {"weights": module.state_dict(), "mean": torch.tensor(MEAN_RGB)}
    torch.save(stored, os.path.join(settings["folder"], TORCH_FILE))


def build_torch(settings):
    """The peer's network, channels last, without gradients; TensorFlow is not here.

    Its batch normalisation is folded into the convolutions, as that of our export is.
    """
    import torch

    from experiments.benchmarks import torch_networks

    torch.set_num_threads(workers.available_cores())
    with torch.device("meta"):  # no numbers are drawn that are not used
        module = _torch_module(settings)
    stored = torch.load(os.path.join(settings["folder"], TORCH_FILE))
    module.load_state_dict(stored["weights"], assign=True)
    torch_networks.fold_batch_norm(module.eval())
    mean = stored["mean"]

    @torch.inference_mode()
    def work(image):
        x = (torch.from_numpy(image).float() - mean).flip(3).permute(0, 3, 1, 2)
        probs = module(x.contiguous(memory_format=torch.channels_last)).softmax(1)
        ids = probs.argmax(1).to(torch.uint8)
        return float(probs[0, 0, 0, 0]), int(ids[0, 0, 0])

    images = _images(settings)
    return {name: lambda image=image: work(image) for name, image in images.items()}
