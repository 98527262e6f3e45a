"""The variants of a study: which one is chosen on validation, and what it does then."""

from collections.abc import Mapping, Sequence

from ss_gan_tf import comparison
from ss_gan_tf.page import Table, Text
from ss_gan_tf.tables import NAMES, Tables
from ss_gan_tf.words import DASH, interval, number, signed


def choose(gains: Mapping[str, Sequence[comparison.Gain]]) -> str | None:
    """The variant to be reported, by a rule that was fixed before the runs.

    Of those with the most seeds the one with the largest mean gain; of equal ones the
    first.

    Args:
        gains: name -> gains on the split that is chosen on.

    Returns:
        Its name; None where nothing was measured.
    """
    seeds = max(map(len, gains.values()), default=0)
    means = {
        name: comparison.mean_and_error([gain.points for gain in found])[0]
        for name, found in gains.items()
        if len(found) == seeds > 0
    }
    return max(means, key=means.get, default=None)


def tables(made: Tables) -> list[Table | Text]:
    """Gains over the control on validation, and those of the chosen one elsewhere.

    Args:
        made: the tables of the comparison.

    Returns:
        For each group that has variants a table and a sentence.
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
        seeds = made.compared.seeds(group)
        header = ["variant", "mean", "standard error"]
        header += [*(f"seed {seed}" for seed in seeds), "changes"]
        blocks.append(
            Table(
                f"{made.name(group)}: points of mIoU on {made.val} over the control, "
                "with 95 % intervals over images; chosen is the largest mean",
                header,
                [_row(made, name, gains[name], seeds) for name in gains],
            )
        )
        blocks.append(Text(_sentence(made, group, choose(gains)), strong=True))
    return blocks


def _row(made, name, gains, seeds) -> list[str]:
    told = (made.facts or {}).get("settings", {}).get("variants", {})
    cells = {
        gain.seed: f"{signed(gain.points)} ({interval(gain.interval)})"
        for gain in gains
    }
    mean, error = DASH, DASH
    if gains:
        found = comparison.mean_and_error([gain.points for gain in gains])
        mean, error = signed(found[0]), number(found[1])
    row = [name, mean, error, *(cells.get(seed, DASH) for seed in seeds)]
    return [*row, " ".join(told.get(name, ())) or DASH]


def _sentence(made, group, name) -> str:
    """What the variant that was chosen does where nothing was chosen."""
    if name is None:
        return f"None can be chosen: no pair was evaluated on {made.val}."
    text = f"Chosen on {made.val}: {name}. "
    if made.split == made.val:
        return text + "The choice flatters its gain there, and no other split was read."
    if unfair := made.compared.unfair(group, "control", of=name):
        return text + f"Not comparable, the runs differ in {', '.join(unfair)} too."
    gains = made.compared.gains(group, "control", made.split, of=name)
    return f"{text}On {made.split}: {comparison.conclude(gains, NAMES['control'])}"
