"""Whether a difference between two runs could be the luck of the images or the seeds.

Two evaluations of the same images are compared by drawing images with replacement: an
image brings its counts of both runs along, so what makes it hard for both cancels.
The interval says what other images of the same kind could have shown for *these two*
networks; what another seed of training would have given it does not say.  For that
there is `seed_spread` over pairs of runs.

Shapes: N images, R resamples, C classes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from ss_gan_tf import metrics

_BLOCK = 2**22  # counts of resamples that are in memory at a time, 32 MB


@dataclasses.dataclass(frozen=True)
class Difference:
    """A figure of a second run less that of a first one.

    Attributes:
        value: on the images as they are.
        low: lower end of the interval.
        high: upper end.
        confidence: share of the resamples that the interval holds.
        share_above: share of the resamples with a difference above 0.
        num_images: N.
        num_resamples: R, without those in which a figure does not exist.
    """

    value: float
    low: float
    high: float
    confidence: float
    share_above: float
    num_images: int
    num_resamples: int


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    figure: Callable[[np.ndarray], np.ndarray] = metrics.mean_iou_of_true,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Percentile interval of the paired bootstrap over images (Efron 1979).

    For r = 1..R, N images are drawn with replacement, w_r(n) times image n:

        D_r = f(sum_n w_r(n) second(n)) - f(sum_n w_r(n) first(n))

    and the interval holds the middle of the D_r.  Every figure of a run that is made
    from sums of counts can be f.  A class that no drawn image has drops out of both
    runs' mean IoU, also where one of them predicts it.  Of one image every D_r is the
    same: an interval of no width says nothing.

    Args:
        first: [N, ...] counts of each image, e.g. confusion matrices [N, C, C].
        second: [N, ...] of the same images in the same order.
        figure: sums [R, ...] -> [R]; mIoU unless told otherwise, over the classes
            that the truth of the drawn images has.
        num_resamples: R.
        confidence: share in (0, 1) that the interval holds.
        seed: of the draws; the same seed draws the same images for any counts.

    Returns:
        The difference; in units of the figure, for mIoU a fraction.

    Raises:
        ValueError: shapes that differ, no image, a setting out of range, or a figure
            that does not exist on the images themselves.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"counts must be of the same images, not {first.shape} and {second.shape}"
        )
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            f"confidence={confidence} must be in (0, 1), "
            f"num_resamples={num_resamples} at least 1"
        )
    value = float(
        np.subtract(*(figure(c.sum(axis=0)[None])[0] for c in (second, first)))
    )
    if np.isnan(value):
        raise ValueError("the figure does not exist: no pixel was counted")
    size, shape = len(first), first.shape[1:]
    flat = [np.asarray(c, np.float64).reshape(size, -1) for c in (first, second)]
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(size, flat[0].shape[1]))
    differences = []
    for start in range(0, num_resamples, block):
        number = min(block, num_resamples - start)
        weights = rng.multinomial(size, np.full(size, 1 / size), size=number)
        low, high = (figure((weights @ c).reshape(number, *shape)) for c in flat)
        differences.append(high - low)
    differences = np.concatenate(differences)
    differences = differences[~np.isnan(differences)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Difference(
        value=value,
        low=float(low),
        high=float(high),
        confidence=confidence,
        share_above=float(np.mean(differences > 0)),
        num_images=size,
        num_resamples=len(differences),
    )


@dataclasses.dataclass(frozen=True)
class Spread:
    """Differences of pairs of runs, a pair for each seed.

    Attributes:
        num_pairs: K.
        mean: of the differences.
        std: their standard deviation with K - 1; NaN for one pair.
        low: lower end of Student's interval of the mean; NaN for one pair.
        high: upper end.
        confidence: of that interval.
        smallest: of the differences.
        largest: of the differences.
        num_above: pairs with a difference above 0.
    """

    num_pairs: int
    mean: float
    std: float
    low: float
    high: float
    confidence: float
    smallest: float
    largest: float
    num_above: int


def seed_spread(differences: Sequence[float], confidence: float = 0.95) -> Spread:
    """What several seeds say together.

        mean +- t_{K-1, (1 + confidence) / 2} std / sqrt(K)

    The interval takes the differences for draws of one normal distribution, which a
    handful of seeds cannot check.

    Args:
        differences: K of them, second run less first, any unit.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"differences must be finite numbers, at least one: {values}")
    number, mean = len(values), float(values.mean())
    std = reach = float("nan")
    if number > 1:
        std = float(values.std(ddof=1))
        quantile = stats.t.ppf((1 + confidence) / 2, number - 1)
        reach = float(quantile) * std / number**0.5
    return Spread(
        num_pairs=number,
        mean=mean,
        std=std,
        low=mean - reach,
        high=mean + reach,
        confidence=confidence,
        smallest=float(values.min()),
        largest=float(values.max()),
        num_above=int(np.sum(values > 0)),
    )
