"""The runs of a study as programs, and what they start from.

    FOLDER/plan.json                 settings, runs and their stages, classes, machine
    FOLDER/order.npz                 which example each step of a stage reads
    FOLDER/data/SPLIT.npz            encoded images and labels, names
    FOLDER/BACKBONE/manifest.json    variables; for each program what it takes and gives
    FOLDER/BACKBONE/NAME.mlir.gz     a program: some steps of a stage, or evaluation
    FOLDER/BACKBONE/shared.npz       first values that all seeds have: ImageNet's
    FOLDER/BACKBONE/seedN.npz        those of a seed, but for large random weights

A program has static shapes and does several steps in a loop, because each call of one
costs time for every variable. Large random weights are drawn anew where the programs
run, from the distribution that they had here.
"""

import dataclasses
import gzip
import json
import math
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.benchmarks import write_programs
from ss_gan_tf import convolution, guard, input_pipeline, stages, study
from ss_gan_tf.backbones import MEAN_RGB, normalize
from ss_gan_tf.inference import make_network
from ss_gan_tf.machine import describe_machine

# A random weight with more elements is drawn anew.
LARGEST_STORED = 2**16
# Steps of one call, at most; under the guard it decides after each call.
STEPS_A_CALL = 50
EVALUATION_BATCH = 8
# Written last: a folder that is still being written lacks it.
COMPLETE = "complete"

PARTS = (
    "generator",
    "generator_optimizer",
    "adversary",
    "extractor",
    "adversary_optimizer",
)


def write_study(
    settings: study.Settings,
    folder: str,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes everything that `run` needs.

    Args:
        settings: of the study.
        folder: is made; files in it are replaced.
        report: called with a line for each program.

    Raises:
        FileNotFoundError: no data, or no weights.
        ValueError: the study has what programs cannot do.
    """
    data = input_pipeline.open_dataset(settings.config.dataset, settings.data_dir)
    runs = study.plan(settings, "STUDY")
    for run in runs:
        _check(run.config)
    if settings.prune:
        raise ValueError("prune=True: a study as programs keeps no weights anyway")
    os.makedirs(folder, exist_ok=True)
    for name in ("plan.json", *(f"{b}/{COMPLETE}" for b in settings.backbones)):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))  # until all is there again
    sizes = _write_data(settings, data, os.path.join(folder, "data"))
    order: dict[str, np.ndarray] = {}
    plan = {
        "runs": [_describe_run(run, data, order) for run in runs],
        "splits": list(settings.splits),
        "machine": describe_machine(),
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "data_digests": data.digests,
        "class_names": list(data.class_names),
        "ignore_label": data.ignore_label,
        "pad_color": list(MEAN_RGB),
        "evaluation_batch": EVALUATION_BATCH,
    }
    np.savez_compressed(os.path.join(folder, "order.npz"), **order)
    for backbone in settings.backbones:
        mine = [run for run in runs if run.name.split("/")[1] == backbone]
        _Backbone(mine, data, os.path.join(folder, backbone), report).write(sizes)
    with open(os.path.join(folder, "plan.json"), "w", encoding="utf-8") as file:
        json.dump(plan, file, indent=1)


def _check(config):
    """Refuses what the programs would silently do differently."""
    wanted = {
        "ema_decay": 0.0,
        "distribute": "none",
        "eval_mode": "whole",
        "eval_scales": (1.0,),
        "eval_flip": False,
        "eval_metrics": "basic",
        "extractor": "frozen",
        "accumulate_steps": 1,
        "deterministic": False,
        "profile_steps": (),
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}={getattr(config, name)}: a study as programs has {value}"
            )
    if config.precision == "mixed_float16":
        raise ValueError("precision=mixed_float16: a study as programs has no scales")


# --- Data and plan -----------------------------------------------------------


def _write_data(settings, data, folder) -> set[tuple[int, int]]:
    """Writes the splits as stored; returns the sizes of what is evaluated."""
    os.makedirs(folder, exist_ok=True)
    config, sizes = settings.config, set()
    for split in dict.fromkeys(
        (config.train_split, config.val_split, *settings.splits)
    ):
        # Every label is checked here, and none where the programs run.
        for example in input_pipeline.eval_examples(data, split):
            if split in settings.splits or split == config.val_split:
                sizes.add(tuple(example["label"].shape))
        if len(sizes) > 1:
            raise ValueError(
                f"dataset={config.dataset}: its images have {len(sizes)} sizes; a "
                "study as programs needs one"
            )
        source = data.source(split)
        examples = [source[index] for index in range(len(source))]
        arrays = {}
        for kind in ("image", "label"):
            files = [bytes(example[kind]) for example in examples]
            # One string of bytes and where each file ends: nothing is unpickled.
            arrays[kind] = np.frombuffer(b"".join(files), np.uint8)
            arrays[f"{kind}_ends"] = np.cumsum([len(file) for file in files])
        names = np.array([bytes(e["name"]).decode() for e in examples], np.str_)
        np.savez(os.path.join(folder, f"{split}.npz"), names=names, **arrays)
    return sizes


def _describe_run(run, data, order) -> dict[str, Any]:
    config, size = run.config, data.split_sizes[run.config.train_split]
    described = []
    for stage, steps in stages.stage_lengths(config).items():
        seed = stages.stage_seed(config.seed, stage)
        key = f"{config.seed}-{stage}-{steps}"
        if key not in order:
            numbers = tf.range(steps * config.batch_size, dtype=tf.int64)
            shuffled = tf.function(
                lambda n, size=size, seed=seed: tf.map_fn(
                    lambda x: input_pipeline.shuffled_index(x, size, seed), n
                )
            )
            order[key] = shuffled(numbers).numpy().astype(np.int32)
        described.append(
            {
                "stage": stage,
                "steps": steps,
                "seed": seed,
                "order": key,
                "program": _program_name(run, stage),
                "steps_a_call": _steps_a_call(config, stage, steps),
            }
        )
    return {
        "name": run.name,
        "role": run.role,
        "variant": run.variant.name if run.variant else None,
        "needs": run.needs,
        "backbone": run.name.split("/")[1],
        "config": json.loads(config.to_json()),
        "stages": described,
    }


def _steps_a_call(config, stage, steps) -> int:
    # All warm-ups are one program.
    often = config.can_go_back or stage == "warmup"
    most = guard.CHECK_EVERY if often else STEPS_A_CALL
    return math.gcd(most, steps, config.eval_every)


def _program_name(run, stage) -> str:
    """Programs that compute the same share a name."""
    role = run.variant.name if run.variant else run.role
    if stage == "warmup" and run.config.placebo != "none":
        role = "adversarial"  # a placebo's adversary is warmed up as the real one
    return f"{role}-{stage}"


# --- Programs ----------------------------------------------------------------


class _Backbone:
    """Networks, variables and programs of one backbone."""

    def __init__(self, runs, data, folder, report):
        self._runs, self._data, self._folder = runs, data, folder
        self._report = report
        self._manifest: dict[str, Any] = {"variables": {}, "programs": {}}
        self._shapes: dict[str, tuple] = {}

    def write(self, sizes):
        os.makedirs(self._folder, exist_ok=True)
        first = [run for run in self._runs if run.config.seed == 0]
        (size,) = sizes
        done = set()
        for run in first:
            networks, weakening = self._networks(run.config)
            made = stages.make_stages(
                dataclasses.replace(run.config, jit_compile="on"),
                networks,
                self._data.ignore_label,
                weakening if run.config.can_go_back else None,
            )
            names = self._names(networks, weakening, run.config)
            for stage in made:
                program = _program_name(run, stage.name)
                if program in done:
                    continue
                done.add(program)
                count = _steps_a_call(run.config, stage.name, stage.num_steps)
                self._write_steps(program, stage.step, run.config, count, names)
            if run.role == "phase1":
                self._write_evaluation(networks, size, names)
        self._write_variables(first)
        path = os.path.join(self._folder, "manifest.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._manifest, file, indent=1)
        with open(os.path.join(self._folder, COMPLETE), "w", encoding="utf-8"):
            pass

    def _networks(self, config):
        """All parts, whatever the run uses of them, so that names mean the same."""
        whole = dataclasses.replace(
            config,
            arm=f"{config.backbone}_g",
            init_generator="",
            lambda_adv=config.lambda_adv or 1e-2,
            jit_compile="on",
        )
        names = self._data.class_names
        networks = stages.create_networks(whole, names)
        stages.load_first_weights(networks, whole, names)
        # Built here, so that their variables exist; a step may not use them.
        networks.generator_optimizer.build(networks.generator.trainable_variables)
        networks.adversary_optimizer.build(networks.adversary.trainable_variables)
        return networks, stages.Weakening()

    def _names(self, networks, weakening, config) -> dict[int, str]:
        named = _named(networks, weakening, config)
        for name, variable in named.items():
            shape = tuple(variable.shape)
            if self._shapes.setdefault(name, shape) != shape:
                raise ValueError(
                    f"{name} is {shape} in one run and {self._shapes[name]} in "
                    "another: a study as programs has one adversary"
                )
            if "_optimizer" in name:
                value = np.asarray(variable)
                self._manifest["variables"][name] = _described(value) | {
                    "constant": value.flat[0].item()
                }
        return {id(_handle(v)): name for name, v in named.items()}

    def _write_steps(self, program, step, config, count, names):
        side, batch = config.crop_size, config.batch_size
        image = tf.TensorSpec([count, batch, side, side, 3], tf.uint8)
        label = tf.TensorSpec([count, batch, side, side], tf.uint8)
        pair = image.shape[1:], label.shape[1:]
        example = [tf.zeros(pair[0], tf.uint8), tf.zeros(pair[1], tf.uint8)]
        model = input_pipeline.to_model(
            dict(zip(("image", "label"), example, strict=True)), normalize
        )
        with convolution.on_another_device():
            gives = sorted(step.get_concrete_function(*model).structured_outputs)

        def one(images, labels, number):
            batch = {"image": images[number], "label": labels[number]}
            scalars = step(*input_pipeline.to_model(batch, normalize))
            return tf.stack([tf.cast(scalars[name], tf.float32) for name in gives])

        @tf.function(jit_compile=True)
        def steps(images, labels):
            rows = tf.TensorArray(tf.float32, count, element_shape=[len(gives)])
            _, rows = tf.while_loop(
                lambda number, _: number < count,
                lambda number, rows: (
                    number + 1,
                    rows.write(number, one(images, labels, number)),
                ),
                [tf.constant(0), rows],
                parallel_iterations=1,
            )
            return rows.stack()

        self._write_program(program, steps, (image, label), names, gives)

    def _write_evaluation(self, networks, size, names):
        network = make_network(networks.generator, normalize)
        images = tf.TensorSpec([EVALUATION_BATCH, *size, 3], tf.uint8)

        @tf.function(jit_compile=True)
        def evaluate(images):
            probs = network(images)
            ids = tf.cast(tf.argmax(probs, axis=-1), tf.uint8)
            return ids, tf.reduce_max(probs, axis=-1)

        self._write_program(
            "evaluate", evaluate, (images,), names, ["class_ids", "confidence"]
        )

    def _write_program(self, program, function, specs, names, gives):
        arguments = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
        with convolution.on_another_device():
            traced = function.get_concrete_function(*arguments)
            text = function.experimental_get_compiler_ir(*arguments)(stage="stablehlo")
        takes = [
            write_programs.name_of(x, names, program) for x in traced.captured_inputs
        ]
        path = os.path.join(self._folder, f"{program}.mlir.gz")
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(write_programs.portable(text))
        self._manifest["programs"][program] = {
            "arguments": [[list(spec.shape), spec.dtype.name] for spec in specs],
            "takes": takes,
            "gives": gives,
        }
        self._report(f"{program}: {len(takes)} variables")

    def _write_variables(self, runs):
        """First values: those that all seeds have, then those of each."""
        taken = {n for p in self._manifest["programs"].values() for n in p["takes"]}
        widest = next(run.config for run in runs if run.role == "adversarial")
        seeds = sorted({run.config.seed for run in self._runs})
        shared, own = {}, {}
        for seed in [*seeds, seeds[-1] + 1]:  # two at least tell what is random
            config = dataclasses.replace(widest, seed=seed)
            networks, weakening = self._networks(config)
            named = _named(networks, weakening, config)
            values = {
                name: np.asarray(variable)
                for name, variable in named.items()
                if name in taken and "_optimizer" not in name
            }
            own[seed] = values
            shared = {
                name: value
                for name, value in (shared or values).items()
                if np.array_equal(value, values[name])
            }
        del own[seeds[-1] + 1]
        described, stored = self._manifest["variables"], {}
        for name, value in shared.items():
            described[name] = _described(value)
            if np.all(value == value.flat[0]):
                described[name]["constant"] = value.flat[0].item()
            else:
                stored[name] = _halved(value)
        np.savez_compressed(os.path.join(self._folder, "shared.npz"), **stored)
        for seed, values in own.items():
            small = {}
            for name in sorted(values.keys() - shared.keys()):
                value = values[name]
                described[name] = _described(value)
                if value.size > LARGEST_STORED:
                    described[name]["drawn"] = distribution(value)
                else:
                    small[name] = value
            path = os.path.join(self._folder, f"seed{seed}.npz")
            np.savez_compressed(path, **small)
        states = [
            name
            for name, variable in named.items()
            if name in taken
            and getattr(variable, "path", "").endswith("seed_generator_state")
        ]
        self._manifest["dropout_states"] = states


def _named(networks, weakening, config) -> dict[str, Any]:
    """PART/N -> the N-th variable of a part: the same in all runs of a backbone."""
    named = {f"weakening/{k}": v for k, v in vars(weakening).items()}
    for part in PARTS:
        kind = f"/{config.adversary_optimizer}" * (part == "adversary_optimizer")
        for number, variable in enumerate(getattr(networks, part).variables):
            named[f"{part}{kind}/{number}"] = variable
    return named


def _described(value) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": value.dtype.name}


def _handle(variable):
    return write_programs.plain(variable).handle


def _halved(value: np.ndarray) -> np.ndarray:
    """The same in float16, where that loses nothing."""
    if value.dtype == np.float32:
        half = value.astype(np.float16)
        if np.array_equal(half.astype(np.float32), value):
            return half
    return value


def distribution(value: np.ndarray) -> list:
    """[kind, mean, standard deviation] of a random weight, by how far it reaches.

    Keras draws uniformly, from a normal distribution, or from one that ends at two
    standard deviations, whose own is 0.88 of it.
    """
    mean, deviation = float(value.mean()), float(value.std())
    reach = float(np.abs(value - mean).max()) / deviation
    kind = "uniform" if reach < 1.8 else "truncated" if reach < 2.4 else "normal"
    return [kind, mean, deviation]
