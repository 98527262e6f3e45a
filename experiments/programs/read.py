"""Makes of what `run` left the folder that `experiments.study` would have."""

import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from ss_gan_tf import (
    __version__,
    checkpoints,
    measures,
    panels,
    per_image,
    results,
    strict_json,
    study,
    summaries,
)
from ss_gan_tf.config import BOOKKEEPING
from ss_gan_tf.evaluate import write_evaluation
from ss_gan_tf.input_pipeline import open_dataset


def read_study(
    settings: study.Settings,
    output: str,
    workdir: str,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes STUDY of the runs that were finished.

    Args:
        settings: those that the study was written with.
        output: OUT.
        workdir: STUDY; what was read before stays as it is.
        report: called with a line for each run.

    Returns:
        What STUDY/study.json holds.

    Raises:
        FileNotFoundError: nothing was finished, or a file is missing.
        ValueError: a run was written with other settings or data, or STUDY holds
            another study or runs with weights.
    """
    needed = ("device", "jax", "cores", "written")
    machine = results.read_json(os.path.join(output, "machine.json"), needed)
    data = open_dataset(settings.config.dataset, settings.data_dir)
    written = machine["written"]
    if other := settings.other_splits(written.get("data_digests", {})):
        raise ValueError(
            f"{output}: its programs were written with other examples of "
            f"{' and '.join(other)} of {settings.config.dataset} than those prepared "
            "now"
        )
    made = study.open_study(settings, workdir)
    made["machine"] = {
        "processor": f"steps on {machine['device']}, JAX {machine['jax']}",
        "cores": machine["cores"],
        "gpus": [machine["device"]],
        "commit": written["commit"],
    }
    found = 0
    for run in study.plan(settings, workdir):
        place = os.path.join(output, run.name.replace("/", "--"))
        if made["runs"].get(run.name, {}).get("status") == "done":
            found += 1
            continue
        if not os.path.exists(f"{place}.json"):
            waiting = {"role": run.role, "status": "waiting"}
            waiting |= {"variant": run.variant.name} if run.variant else {}
            made["runs"].setdefault(run.name, waiting)
            continue
        found += 1
        record = _read_record(f"{place}.json", run)
        folder = os.path.join(workdir, run.name)
        if checkpoints.has_checkpoint(folder):
            raise ValueError(f"{folder}: holds a trained run; choose another --workdir")
        # A run is listed last, so one of which a part was read is read again.
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        _write_run(run, record, data, settings, machine, made["machine"], folder)
        _write_curves(run, record, folder)
        entry = {"role": run.role}
        entry |= {"variant": run.variant.name} if run.variant else {}
        entry |= {
            "status": "done",
            "trained": True,
            "train_seconds": round(record["seconds"], 3),
            "metrics": _write_figures(run, record, data, settings, place, folder),
            "validations": results.last_validations(
                folder, run.config, settings.last_validations
            ),
        }
        made["runs"][run.name] = entry
        study.write_study(made, workdir)
        report(f"{run.name}: read")
    if not found:
        raise FileNotFoundError(f"{output}: holds no finished run of this study")
    study.write_study(made, workdir)
    return made


def _read_record(path, run) -> dict[str, Any]:
    """What a run left, once it is known to be this one.

    Raises:
        ValueError: it is damaged, or its settings are others.
    """
    needed = ("config", "scalars", "validations", "best", "alarms", "seconds")
    record = results.read_json(path, needed)
    ours, theirs = strict_json.loads(run.config.to_json()), record["config"]
    differences = [
        f"{name}={theirs.get(name)!r} there, {ours[name]!r} here"
        for name in ours
        if name not in (*BOOKKEEPING, "init_generator")
        and theirs.get(name) != ours[name]
    ]
    if differences:
        raise ValueError(f"{path}: other settings ({'; '.join(differences)})")
    return record


def _write_run(run, record, data, settings, machine, description, folder):
    programs = {
        key: machine[key] for key in ("jax", "numpy", "opencv") if key in machine
    }
    checkpoints.write_run(
        checkpoints.Run(
            workdir=folder,
            config=run.config,
            data_dir=os.path.abspath(settings.data_dir),
            class_names=tuple(data.class_names),
            class_colors=tuple(data.class_colors),
            ignore_label=data.ignore_label,
            provenance={
                # As they were when the programs were written.
                "data_digests": machine["written"].get("data_digests", {}),
                "machines": [description],
                "execution": {"xla": True, "devices": [machine["device"]]},
                "versions": {"ss_gan_tf": __version__}
                | machine["written"]["versions"]
                | programs,
            },
        )
    )


def _write_curves(run, record, folder):
    config = run.config
    offset = 0 if config.init_generator else config.phase1_steps

    def at(stage, step):
        """Step of the curves, prefix of the tags."""
        if stage == "warmup":
            return step, "warmup/"
        return step + (offset if stage == "phase2" else 0), ""

    writer = summaries.Summaries(folder)
    writer.text("config", config.to_json())
    writer.hparams(config.hyperparameters())
    for stage, step, values in record["scalars"]:
        place, prefix = at(stage, step)
        writer.scalars(place, values, prefix)
    for stage, step, figures in record["validations"]:
        writer.validation(at(stage, step)[0], figures)
    for stage, step, alarm, factors in record["alarms"]:
        place, prefix = at(stage, step)
        writer.alarm(place, alarm, factors, prefix)
    writer.close()


def _write_figures(run, record, data, settings, place, folder) -> dict[str, Any]:
    """RUN/eval of the last weights and the best."""
    config, best, metrics = run.config, record["best"], {}
    last = config.phase2_steps if config.uses_phase2 else config.phase1_steps
    phase = "phase2" if config.uses_phase2 else "phase1"
    for split in settings.splits:
        for key, step in ((split, last), (f"{split}-best", best["step"])):
            source = split if best["is_last"] else key
            images = per_image.read_per_image(f"{place}--{source}.npz")
            figures: Mapping[str, Any] = {
                **measures.summarize(images.total(), data.class_names),
                "num_images": len(images.names),
                "mode": config.eval_mode,
                "scales": list(config.eval_scales),
                "flip": config.eval_flip,
                "dataset": config.dataset,
                "split": split,
                "partial": data.partial,
                "limit": 0,
                "phase": phase,
                "step": step,
            }
            target = os.path.join(folder, "eval", key)
            os.makedirs(target, exist_ok=True)
            if os.path.exists(f"{place}--{key}.ids.npz"):
                shutil.copyfile(
                    f"{place}--{key}.ids.npz", os.path.join(target, panels.CLASS_IDS)
                )
            write_evaluation(figures, images, target)
            metrics[key] = results.read_metrics(folder, key)
    return metrics
