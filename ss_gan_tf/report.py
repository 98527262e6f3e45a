"""From finished runs to one page: what the adversary adds, and how sure that is.

Every figure of the page is read from the runs.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from ss_gan_tf import (
    comparison,
    config_rules,
    figures,
    panels,
    results,
    study,
    summaries,
    variants,
    visualize,
)
from ss_gan_tf.comparison import Comparison
from ss_gan_tf.config import PRESETS, Config
from ss_gan_tf.datasets import DATASETS
from ss_gan_tf.page import Picture, Pictures, Section, Table, Text, write_page
from ss_gan_tf.tables import Tables
from ss_gan_tf.words import DASH, slug

# Tag of TensorBoard, title, unit, value with a meaning, what it says.
CURVES = (
    (
        "loss/loss_d",
        "loss_d, eq. 6",
        "nats",
        (1.386, "cannot tell"),
        "2 ln 2 = 1.386 is an adversary that cannot tell truth from prediction.",
    ),
    (
        "adversary/accuracy_paired",
        "verdicts: pairs told apart",
        "share of cells",
        (0.5, "chance"),
        "Share of cells in which d(truth) > d(prediction).",
    ),
    (
        "gradient/ratio",
        "adversarial / segmentation gradient",
        "ratio of norms",
        None,
        "What the push can change: weighted, at G's logits.",
    ),
    (
        "val/miou",
        "validation mIoU",
        "fraction",
        None,
        "Phase 2, of the validation images that training looked at.",
    ),
)

PAIR = "control", "adversarial"

# --- The page ----------------------------------------------------------------


def write_report(
    output_dir: str,
    *,
    runs: Sequence[str] = (),
    study_dir: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    draw_panels: bool = True,
) -> list[Section]:
    """Writes report.html, report.md and pictures/ for a set of runs.

    Args:
        output_dir: the page's folder.
        runs: folders of runs.
        study_dir: a study, whose runs are added; those that never began are a dash.
        split: that the tables are about; None takes test where a run was evaluated on
            it, else val.
        data_dir: prepared data for the pictures; None for the runs' own.
        draw_panels: whether images are predicted and shown, which needs checkpoints
            and data.

    Returns:
        The sections of the page.

    Raises:
        FileNotFoundError: a named folder holds no run or no study.
        NotADirectoryError: output_dir is a file.
        ValueError: a file is damaged, or two runs have the same place.
    """
    if os.path.isfile(output_dir):
        raise NotADirectoryError(f"output_dir is a file: {output_dir}")
    found, facts = [comparison.read_result(path) for path in runs], None
    if study_dir:
        facts = study.read_study(study_dir)
        for name, entry in facts["runs"].items():
            path = os.path.join(study_dir, name)
            if entry.get("trained"):
                told = entry.get("train_seconds"), entry.get("variant")
                found.append(comparison.read_result(path, *told))
        facts["runs"] |= {n: {"status": "not begun"} for n in study.not_begun(facts)}
    if not found:
        raise ValueError("nothing to report: no run is finished")
    compared = Comparison(found)
    split = split or _default_split(found)
    tables = Tables(compared, split, facts)
    sections = [
        Section("What may be concluded", tables.conclusions()),
        Section(
            "Gains of the adversarial arm", [*_gain_pictures(tables), *tables.gains()]
        ),
        *([Section("Variants", found)] if (found := variants.tables(tables)) else []),
        Section("mIoU, as in Table 3", tables.table3()),
        Section("IoU by class, as in Table 4", tables.table4()),
        Section("Every run", tables.runs()),
        Section("Gain by class", tables.classes()),
        Section("Granulation and boundaries", tables.full_metrics()),
        Section("Training", _curves(tables)),
        Section("Pictures, as in Fig. 6", _pictures(tables, data_dir, draw_panels)),
        Section("Settings, versions, hardware", _settings(tables)),
    ]
    names = ", ".join(dict.fromkeys(dataset for dataset, _ in compared.groups))
    write_page(f"What the adversary adds: {names}", sections, output_dir)
    return sections


def _default_split(found) -> str:
    return "test" if any("test" in result.metrics for result in found) else "val"


# --- Pictures ----------------------------------------------------------------


def _gain_pictures(tables: Tables) -> list:
    """Gains with their intervals, drawn."""
    pictures = []
    for group in tables.groups:
        rows = [
            (f"{role.replace('_', ' ')}, seed {gain.seed}", gain.points, gain.interval)
            for role in results.ROLES
            for gain in tables.compared.gains(group, role, tables.split)
            if role != "adversarial"
            and not tables.compared.unfair(group, role, tables.split)
        ]
        if rows:
            drawn = figures.draw_gains(rows, f"{tables.name(group)}, {tables.split}")
            caption = (
                "Right of the line the adversarial arm is better than the run that is "
                "named; the bar is the 95 % interval over images."
            )
            pictures.append(Picture(f"{slug(*group)}-gains.svg", caption, drawn))
    return [Pictures("Gain of mIoU over", pictures, large=True)] if pictures else []


def _curves(tables: Tables) -> list:
    """Curves of the event files."""
    blocks = []
    tags = [tag for tag, *_ in CURVES]
    for group in tables.groups:
        names = tables.compared.variants(group)
        read = {
            role: {
                seed: summaries.read_scalars(result.run.workdir, tags)
                for seed in tables.compared.seeds(group)
                if (result := tables.compared.get(group, seed, role))
            }
            for role in (*results.ROLES, *names)
        }

        lines, means, notes = {}, {}, {}
        for tag in tags:
            found = {
                role: [run[tag] for run in runs.values()] for role, runs in read.items()
            }
            # Phase 1 has a time axis of its own.
            roles = [role for role in results.ROLES if role != "phase1"]
            if not any(any(found[role]) for role in roles):
                roles = ["phase1"]
            lines[tag] = {role: found[role] for role in roles}
            means[tag] = {
                role: [figures.mean_curve(found[role])]
                for role in ("adversarial", *names)
            }
            notes[tag] = _numbers_of_seeds({role: found[role] for role in means[tag]})
        blocks += _drawn(tables.name(group), slug(*group), lines)
        blocks += tables.during_training(
            group, *({s: run["val/miou"] for s, run in read[r].items()} for r in PAIR)
        )
        if names:
            title = f"{tables.name(group)}: variants, mean over the seeds of each"
            if any(notes.values()):
                title += ", their number in brackets"
            blocks += _drawn(title, f"{slug(*group)}-variants", means, notes)
    return blocks or [Text("The runs have no event files.")]


def _numbers_of_seeds(curves) -> dict[str, str]:
    """Of each line, where they differ in that: what the legend says behind its name."""
    counts = {role: sum(map(bool, seeds)) for role, seeds in curves.items()}
    if len({*counts.values()} - {0}) < 2:
        return {}
    return {role: f" ({count})" for role, count in counts.items()}


def _drawn(title: str, stem: str, lines, notes=None) -> list:
    """A picture of each of CURVES; `lines` and `notes` are of each tag, by role."""
    pictures = []
    for tag, name, unit, landmark, meaning in CURVES:
        drawn = figures.draw_curves(
            lines[tag], name, unit, landmark, (notes or {}).get(tag)
        )
        if drawn:
            pictures.append(Picture(f"{stem}-{slug(tag)}.svg", meaning, drawn))
    return [Pictures(title, pictures, large=True)] if pictures else []


def _pictures(tables: Tables, data_dir, draw) -> list:
    """Images chosen by rule, and what the runs make of them."""
    if not draw:
        return [Text("Left out on request.")]
    blocks = [
        Text(
            "Chosen by rule, not by hand: of the smallest seed that has both runs, "
            "the images with the largest gain, the median and the largest loss of "
            "mIoU, adversarial arm against control. Orange is wrong, white has no "
            "class."
        )
    ]
    for group in tables.groups:
        try:
            found = _panels(tables, group, data_dir)
            if any(isinstance(block, Pictures) for block in found):
                blocks += legend(tables, group)
            blocks += found
        except (FileNotFoundError, ValueError) as error:
            blocks.append(Text(f"{tables.name(group)}: no pictures, {error}"))
    return blocks


def legend(tables: Tables, group) -> list:
    """Which colour is which class, and the terms of the images."""
    run = next(r.run for r in tables.compared.runs if r.group == group)
    drawn = visualize.legend(run.class_names, run.class_colors)
    name = tables.name(group)
    picture = Picture(
        f"{slug(*group)}-classes.png", "classes", figures.encode(drawn, ".png")
    )
    facts = DATASETS.get(run.config.dataset)
    terms = [Text(facts.terms)] if facts and facts.terms else []
    return [*terms, Pictures(f"{name}: colours of the classes", [picture])]


def _panels(tables: Tables, group, data_dir) -> list:
    for seed in tables.compared.seeds(group):
        ours = tables.compared.get(group, seed, "adversarial")
        other = tables.compared.get(group, seed, "control")
        if ours and other and tables.split in ours.counts.keys() & other.counts.keys():
            break
    else:
        return [
            Text(
                f"{tables.name(group)}: no pictures, because adversarial arm and "
                f"control have no counts of each image on {tables.split}: "
                f"python -m experiments.evaluate --workdir=RUN --split={tables.split} "
                "writes them."
            )
        ]
    chosen = comparison.telling_images(
        ours.counts[tables.split], other.counts[tables.split]
    )
    shown = {
        results.in_words(role): result.run
        for role in ("phase1", "control", "adversarial")
        if (result := tables.compared.get(group, seed, role))
    }
    names = list(dict.fromkeys(name for name, _ in chosen.values()))
    drawn = panels.draw_panels(shown, tables.split, names, data_dir)
    blocks = []
    for what, (name, points) in chosen.items():
        pictures = []
        for number, (caption, tile) in enumerate(drawn[name]):
            suffix = ".jpg" if caption == "image" else ".png"
            file = f"{slug(*group, what)}-{number}{suffix}"
            pictures.append(Picture(file, caption, figures.encode(tile, suffix)))
        title = (
            f"{tables.name(group)}, seed {seed}, {what}: {name}, {points:+.2f} points"
        )
        blocks.append(Pictures(title, pictures))
    return blocks


# --- Settings ----------------------------------------------------------------


def _settings(tables: Tables) -> list:
    """In what the runs differ, what they share, versions and machine."""
    datasets = {result.config.dataset for result in tables.compared.runs}
    # Of one data set the paper's way of evaluating it.
    given = {"dataset": datasets.pop()} if len(datasets) == 1 else {}
    paper_preset = Config(**PRESETS["paper"] | given)
    unread_there = config_rules.unused(paper_preset)
    differ, shared = [], []
    for field in dataclasses.fields(Config):
        if field.name in ("arm", "seed", "init_generator"):
            continue
        places: dict[Any, list[str]] = {}
        for result in tables.compared.runs:
            value = getattr(result.config, field.name)
            if field.name in results.unread_fields(result.config):
                if field.name != "lambda_adv" or not result.config.uses_adversary:
                    continue
                value = "by gradient ratio"  # and not the control's
            places.setdefault(value, []).append(_name(tables, result))
        if len(places) > 1:
            differ.append([field.name, _by_value(places)])
        for value in places if len(places) == 1 else ():
            theirs = getattr(paper_preset, field.name)
            if field.name in unread_there:
                shared.append([field.name, str(value), DASH])
            elif value != theirs:
                shared.append([field.name, str(value), str(theirs)])
    blocks = [
        Table("In what the runs differ", ["setting", "value: runs"], differ, True),
        Table(
            "What they share and the preset paper does not have",
            ["setting", "here", "paper"],
            shared,
            True,
        ),
        Table("Versions", ["package", "version"], _versions(tables.compared), True),
    ]
    blocks.append(_machines(tables))
    partial = [d for d in dict(tables.groups) if tables.is_partial(d)]
    if partial:
        blocks.append(
            Text(
                f"{', '.join(partial)}: prepared from a partial source, so its "
                "figures are not those of the complete data set.",
                strong=True,
            )
        )
    return blocks


def _name(tables, result) -> str:
    """A run's role, behind its group where there are several."""
    role = results.in_words(result.role)
    return role if len(tables.groups) < 2 else f"{tables.name(result.group)} {role}"


def _by_value(places) -> str:
    """`value: runs` of each, runs of other seeds named once."""
    return "; ".join(f"{v}: {', '.join(dict.fromkeys(r))}" for v, r in places.items())


def _machines(tables) -> Table:
    """What the runs were made on, by their own word, else by the study's."""
    of_study = (tables.facts or {}).get("machine", {})
    rows = []
    for field in ("processor", "cores", "memory_kb", "gpus", "system", "commit"):
        places: dict[str, list[str]] = {}
        for result in tables.compared.runs:
            for machine in result.run.provenance.get("machines", [of_study]):
                value = _words(machine.get(field))
                places.setdefault(value, []).append(_name(tables, result))
        value = _by_value(places) if len(places) > 1 else next(iter(places), DASH)
        rows.append([field.replace("_", " "), value])
    return Table("Machine of the study", ["what", "value"], rows, True)


def _versions(compared):
    rows = {}
    for result in compared.runs:
        for name, version in result.run.provenance.get("versions", {}).items():
            rows.setdefault(name, []).append(str(version))
    return [[name, ", ".join(dict.fromkeys(v))] for name, v in rows.items()]


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return DASH if value is None else str(value)
