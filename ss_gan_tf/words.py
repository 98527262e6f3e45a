"""Figures as the words of a table; what was not measured is a dash."""

import re
import statistics
from collections.abc import Sequence

DASH = "-"


def number(value: float | None) -> str:
    """Two decimals."""
    return DASH if value is None else f"{value:.2f}"


def signed(value: float) -> str:
    """Two decimals and the sign."""
    return f"{value:+.2f}"


def interval(ends: tuple[float, float] | None) -> str:
    """Its ends, in points."""
    return DASH if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def spread(values: Sequence[float]) -> str:
    """Mean, sample standard deviation where there are several, and their number."""
    if not values:
        return DASH
    return f"{mean_of(values)} ({len(values)})"


def mean_of(values: Sequence[float]) -> str:
    """Mean, and sample standard deviation where there are several."""
    if not values:
        return DASH
    mean = f"{statistics.fmean(values):.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} \N{PLUS-MINUS SIGN} {statistics.stdev(values):.2f}"


def difference(ours: Sequence[float], theirs: float | None) -> str:
    """Of our mean from the paper's figure."""
    if not ours or theirs is None:
        return DASH
    return signed(statistics.fmean(ours) - theirs)


def slug(*words: str) -> str:
    """Words as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def differ(unfair: Sequence[str]) -> str:
    """Why two runs are not comparable: the end of a sentence."""
    return f"the runs differ in {', '.join(unfair)} too."
