"""What can be known to fail before a network is built."""

import logging
import os

import tensorflow as tf

from ss_gan_tf import checkpoints, config_rules, resources, strict_json
from ss_gan_tf.config import Config
from ss_gan_tf.input_pipeline import PreparedDataset

_LOG = logging.getLogger(__name__)


def check(config: Config, data: PreparedDataset, workdir: str):
    """Warns of what is seldom meant, and refuses what cannot come to its end.

    Args:
        config: the run.
        data: what it reads.
        workdir: RUN; it exists.

    Raises:
        FileNotFoundError: the weights, or the run to start from, are missing.
        ValueError: the run to start from has other classes or another network, or the
            run does not fit on the disk or into the memory.
    """
    for text in config_rules.unwise(config, _largest_image(data, config.train_split)):
        _LOG.warning(text)
    if config.init_generator:
        checkpoints.check_start(config, data.class_names)
    weights = config.backbone_weights
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise FileNotFoundError(f"backbone_weights={weights}: no such file")
    _check_room(config, workdir)


def _check_room(config: Config, workdir: str):
    generator, adversary = resources.count_parameters(
        config.backbone, config.width, config.uses_adversary
    )
    disk = resources.disk_bytes(
        generator,
        adversary,
        keep=config.keep_checkpoints,
        phases=1 + config.uses_phase2 - bool(config.init_generator),
    )
    _check_fits(
        f"workdir={workdir}",
        "disk",
        disk,
        resources.free_disk(workdir),
        "lower --keep_checkpoints or make room",
    )
    if tf.config.list_physical_devices("GPU"):
        return  # what counts is the device's memory, which is not estimated
    memory = resources.memory_bytes(
        config.backbone,
        generator,
        width=config.width,
        batch_size=config.batch_size // config.accumulate_steps,
        crop_size=config.crop_size,
    )
    _check_fits(
        f"batch_size={config.batch_size}, crop_size={config.crop_size}",
        "memory",
        memory,
        resources.free_memory(),
        "lower one of them or end other programs",
    )


def _check_fits(what: str, kind: str, need: int, have: int | None, remedy: str):
    text = f"about {need / resources.GIB:.2f} GiB of {kind} are needed"
    if have is None:
        _LOG.info("%s; how much is free is not known here", text)
        return
    text = f"{text}, {max(have, 0) / resources.GIB:.2f} GiB are free"
    if need > have:
        raise ValueError(f"{what}: {text}; {remedy}")
    _LOG.info(text)


def _largest_image(data: PreparedDataset, split: str) -> tuple[int, int] | None:
    """Greatest (H, W) of a split, from the summary beside the data; None without."""
    try:
        summary = strict_json.read(os.path.join(data.builder.data_dir, "summary.json"))
        count = summary["splits"][split]
        return int(count["height"][1]), int(count["width"][1])
    except (OSError, ValueError, LookupError, TypeError):
        return None
