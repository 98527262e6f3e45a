"""The variants of a study: which one is chosen on validation, and what it does then."""

from collections.abc import Container, Mapping, Sequence

from ss_gan_tf import comparison, figures
from ss_gan_tf.bootstrap import seed_spread
from ss_gan_tf.page import Picture, Pictures, Table, Text
from ss_gan_tf.tables import NAMES, ONE_IN_TWENTY, UNFAIR, Tables, over_seeds
from ss_gan_tf.words import DASH, differ, interval, signed, slug


def choose(
    gains: Mapping[str, Sequence[comparison.Gain]], left_out: Container[str] = ()
) -> str | None:
    """The variant to be reported, by a rule that was fixed before the runs.

    Of those that are not left out and have the most seeds, the one with the largest
    mean gain; of equal ones the first.

    Args:
        gains: name -> gains on the split that is chosen on.
        left_out: names of those whose weights are phase 1's in a seed, by the guard,
            or that cannot be compared.

    Returns:
        Its name; None where nothing was measured, or all are left out.
    """
    gains = {name: found for name, found in gains.items() if name not in left_out}
    seeds = max(map(len, gains.values()), default=0)
    means = {
        name: seed_spread([gain.points for gain in found]).mean
        for name, found in gains.items()
        if len(found) == seeds > 0
    }
    return max(means, key=means.get, default=None)


def tables(made: Tables) -> list[Table | Pictures | Text]:
    """Gains over the control on validation, and those of the chosen one elsewhere.

    Args:
        made: the tables of the comparison.

    Returns:
        For each group that has variants a table, a picture of their means where one
        has several seeds, a sentence, and a table of what was not chosen by.
    """
    blocks = []
    for group in made.groups:
        names = made.compared.variants(group)
        if not names:
            continue
        gains = {
            name: made.compared.gains(group, "control", made.val, of=name)
            for name in ("adversarial", *names)
        }
        spreads = {
            name: seed_spread([gain.points for gain in found])
            for name, found in gains.items()
            if found
        }
        outcomes = {name: made.guard_outcomes(group, name) for name in gains}
        ended = {
            name
            for name, found in outcomes.items()
            if any(outcome["ended"] for outcome in found.values())
        }
        unfair = {
            name
            for name in gains
            if made.compared.unfair(group, "control", made.val, of=name)
        }
        seeds = made.compared.seeds(group)
        header = ["variant", "mean", "95 % interval over seeds"]
        header += [*(f"seed {seed}" for seed in seeds), "changes"]
        blocks.append(
            Table(
                f"{made.name(group)}: points of mIoU on {made.val} over the control, "
                "with 95 % intervals over images; chosen is the largest mean of those "
                "that the guard ended in no seed",
                header,
                [
                    _row(
                        made,
                        name,
                        gains[name],
                        spreads.get(name),
                        seeds,
                        outcomes[name],
                        name in unfair,
                    )
                    for name in gains
                ],
            )
        )
        shown = {k: v for k, v in spreads.items() if k not in unfair}
        blocks += _picture(made, group, shown, ended)
        chosen = choose(gains, ended | unfair)
        text = _sentence(made, group, chosen, ended, unfair)
        blocks += [Text(text, strong=True), _elsewhere(made, group, [*gains])]
    return blocks


def _elsewhere(made, group, names) -> Table:
    """Each variant over the arm that it varies, and over the control elsewhere."""
    seeds = made.compared.seeds(group)
    header, columns = ["variant"], []
    for kind in dict.fromkeys((made.val, made.split)):
        if kind != made.val:
            header += [f"{kind}: over the control", *(f"seed {s}" for s in seeds)]
            columns.append(("control", kind))
        header.append(f"{kind}: over the adversarial arm")
        columns.append(("adversarial", kind))
    rows = []
    for name in names:
        cells = []
        for against, kind in columns:
            gains = made.compared.gains(group, against, kind, of=name)
            unfair = made.compared.unfair(group, against, kind, of=name)
            if unfair or name == against:
                gains = []
            told = over_seeds([gain.points for gain in gains])
            cells.append(UNFAIR if unfair else told)
            if against == "control":
                cells += [_of_seeds(gains).get(seed, DASH) for seed in seeds]
        rows.append([name, *cells])
    caption = (
        f"{made.name(group)}: points of mIoU, mean over seeds with its 95 % interval "
        "(Student's t), for single seeds with that over images; nothing is chosen by "
        f"this table, and {ONE_IN_TWENTY}"
    )
    return Table(caption, header, rows)


def _row(made, name, gains, found, seeds, outcomes, is_unfair) -> list[str]:
    told = (made.facts or {}).get("settings", {}).get("variants", {})
    cells = _of_seeds(gains)
    for seed, outcome in outcomes.items():
        if outcome["ended"]:
            cells[seed] = f"{cells.get(seed, DASH)}, the guard ended it"
        elif outcome["ways_back"]:
            cells[seed] = f"{cells.get(seed, DASH)}, the guard went back"
    mean, reach = DASH, DASH
    if found:
        mean, reach = signed(found.mean), interval(_reach(found))
    title = name + " (not comparable)" * is_unfair
    row = [title, mean, reach, *(cells.get(seed, DASH) for seed in seeds)]
    return [*row, " ".join(told.get(name, ())) or DASH]


def _of_seeds(gains) -> dict[int, str]:
    """Seed -> points and their interval over images."""
    return {
        gain.seed: f"{signed(gain.points)} ({interval(gain.interval)})"
        for gain in gains
    }


def _picture(made, group, spreads, ended) -> list[Pictures]:
    """Mean and interval over seeds of each variant, one below the other."""
    rows = []
    for name, found in spreads.items():
        label = f"{name} ({found.num_pairs})"
        label += ", ended by the guard" if name in ended else ""
        rows.append((label, found.mean, _reach(found)))
    if all(reach is None for _, _, reach in rows):
        return []
    drawn = figures.draw_gains(rows, f"{made.name(group)}, {made.val}")
    caption = (
        "Mean gain over the control; the bar is the 95 % interval over seeds "
        "(Student's t), whose number stands in brackets."
    )
    picture = Picture(f"{slug(*group)}-variants-gains.svg", caption, drawn)
    return [Pictures(f"{made.name(group)}: variants", [picture], large=True)]


def _reach(found) -> tuple[float, float] | None:
    """The interval over seeds; None of a single one."""
    return None if found.num_pairs == 1 else (found.low, found.high)


def _sentence(made, group, name, ended, unfair) -> str:
    """What the variant that was chosen does where nothing was chosen."""
    if name is None:
        left = [f"the guard ended {', '.join(sorted(ended))}"] * bool(ended)
        left += [f"{', '.join(sorted(unfair))} cannot be compared"] * bool(unfair)
        no = "no other" if left else "no pair"
        why = ", and ".join([*left, f"{no} was evaluated on {made.val}"])
        return f"None can be chosen: {why}."
    guarded = made.guarded(group, name)
    return _conclusion(made, group, name) + (f" {guarded}" if guarded else "")


def _conclusion(made, group, name) -> str:
    on_val = made.compared.gains(group, "control", made.val, of=name)
    mean = seed_spread([gain.points for gain in on_val]).mean
    lost = "" if mean > 0 else f", though it gains nothing there ({signed(mean)})"
    text = f"Chosen on {made.val}: {name}{lost}. "
    if made.split == made.val:
        return text + "The choice flatters its gain there, and no other split was read."
    if unfair := made.compared.unfair(group, "control", made.split, of=name):
        return f"{text}Not comparable, {differ(unfair)}"
    gains = made.compared.gains(group, "control", made.split, of=name)
    return f"{text}On {made.split}: {comparison.conclude(gains, NAMES['control'])}"
