"""What can be known to fail before a network is built."""

import logging
import os

import tensorflow as tf

from ss_gan_tf import checkpoints, config_rules, resources
from ss_gan_tf.backbones import check_weights_file
from ss_gan_tf.config import Config
from ss_gan_tf.input_pipeline import PreparedDataset, split_counts

_LOG = logging.getLogger(__name__)

# An estimate of memory is rough: only a need this many times what is free is refused.
_MEMORY_TOLERANCE = 1.5


def check(
    config: Config, data: PreparedDataset, workdir: str, *, resumes: bool = False
):
    """Warns of what is seldom meant, and refuses what cannot come to its end.

    Args:
        config: the run.
        data: what it reads.
        workdir: RUN; it exists.
        resumes: whether RUN holds a state to go on from, so that what the run started
            from is not needed any more.

    Raises:
        FileNotFoundError: the weights, or the run to start from, are missing.
        ValueError: the run to start from has other classes or another network, the
            weights file is none or cut short, RUN is the data's folder, a split has no
            labelled pixel, or the run does not fit on the disk or, by far, into the
            memory.
    """
    _check_data(config, data, workdir, resumes)
    for text in config_rules.unwise(config, _largest_image(data, config.train_split)):
        _LOG.warning(text)
    if config.precision == "mixed_float16" and not _has_gpu():
        _LOG.warning(
            "precision=mixed_float16: is for GPUs, and there is none here; use float32"
        )
    if not resumes:
        _check_start(config, data)
    _check_room(config, workdir)


def _check_data(config: Config, data: PreparedDataset, workdir: str, resumes: bool):
    folder = os.path.realpath(data.builder.data_dir)  # DATA/NAME/VERSION
    folders = folder, os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))
    if not resumes and os.path.realpath(workdir) in folders:
        raise ValueError(
            f"workdir={workdir}: is the data's folder; a run needs one of its own"
        )
    for field in ("train_split", "val_split"):
        split = getattr(config, field)
        pixels = split_counts(data.builder.data_dir).get(split, {}).get("class_pixels")
        if isinstance(pixels, list) and pixels and not any(pixels):
            raise ValueError(
                f"{field}={split}: not one pixel has a class of {config.dataset}; look "
                "at its masks with data_prep.browse"
            )


def _check_start(config: Config, data: PreparedDataset):
    if config.init_generator:
        checkpoints.check_start(config, data.class_names)
    check_weights_file(config.backbone, config.backbone_weights)


def _check_room(config: Config, workdir: str):
    generator, adversary = resources.count_parameters(
        config.backbone, config.width, config.uses_adversary, config.fc_filters
    )
    disk = resources.disk_bytes(
        generator,
        adversary,
        keep=config.keep_checkpoints,
        phases=1 + config.uses_phase2 - bool(config.init_generator),
        guarded=config.guard and config.uses_adversary and config.placebo == "none",
        average=config.ema_decay > 0,
    )
    _check_fits(
        f"workdir={workdir}",
        "disk",
        disk,
        resources.free_disk(workdir),
        "lower --keep_checkpoints or make room",
    )
    if _has_gpu():
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
        max(memory - resources.own_memory(), 0),  # what it holds is not free any more
        resources.free_memory(),
        "lower one of them or end other programs",
        tolerance=_MEMORY_TOLERANCE,
    )


def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def _check_fits(
    what: str,
    kind: str,
    need: int,
    have: int | None,
    remedy: str,
    tolerance: float = 1.0,
):
    text = f"about {need / resources.GIB:.2f} GiB of {kind} are needed"
    if have is None:
        _LOG.info("%s; how much is free is not known here", text)
        return
    have = max(have, 0)
    text = f"{text}, {have / resources.GIB:.2f} GiB are free"
    if need > tolerance * have:
        raise ValueError(f"{what}: {text}; {remedy}")
    if need > have:
        _LOG.warning("%s: %s; %s if it ends for want of it", what, text, remedy)
    else:
        _LOG.info(text)


def _largest_image(data: PreparedDataset, split: str) -> tuple[int, int] | None:
    """Greatest (H, W) of a split, from the summary beside the data; None without."""
    count = split_counts(data.builder.data_dir).get(split, {})
    try:
        return int(count["height"][1]), int(count["width"][1])
    except (ValueError, LookupError, TypeError):
        return None
