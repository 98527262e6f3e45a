"""The paired bootstrap on cases whose answer is known, and the spread over seeds."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ss_gan_tf import bootstrap, metrics


def matrices(number=20, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    right = np.eye(num_classes, dtype=int) * rng.integers(50, 99, (number, 1, 1))
    return right + rng.integers(0, 20, (number, num_classes, num_classes))


def test_identical_runs_differ_by_exactly_nothing():
    counts = matrices()
    result = bootstrap.paired_difference(counts, counts, num_resamples=500)
    assert (result.value, result.low, result.high) == (0, 0, 0)
    assert result.share_above == 0
    assert (result.num_images, result.num_resamples) == (20, 500)


def test_a_shift_that_all_images_share_has_no_width():
    # Every image alike: 90 of 100 right and 80 of 100.  IoU of both classes is
    # 45 / 55 and 40 / 60, whatever is drawn.
    better = np.tile([[45, 5], [5, 45]], (7, 1, 1))
    worse = np.tile([[40, 10], [10, 40]], (7, 1, 1))
    result = bootstrap.paired_difference(worse, better, num_resamples=200)
    for value in (result.value, result.low, result.high):
        assert value == pytest.approx(45 / 55 - 40 / 60, rel=1e-12)
    assert result.share_above == 1
    # The other way round it is the negative.
    result = bootstrap.paired_difference(better, worse, num_resamples=200)
    assert result.high == pytest.approx(40 / 60 - 45 / 55, rel=1e-12)
    assert result.share_above == 0


def test_three_images_agree_with_all_their_resamples():
    """27 ordered draws, each as likely: the bootstrap's own distribution."""
    first, second = matrices(3, seed=1), matrices(3, seed=2)
    exact = sorted(
        metrics.mean_iou(second[list(draw)].sum(axis=0))
        - metrics.mean_iou(first[list(draw)].sum(axis=0))
        for draw in itertools.product(range(3), repeat=3)
    )
    result = bootstrap.paired_difference(
        first, second, num_resamples=40_000, confidence=0.5
    )
    whole = metrics.mean_iou(second.sum(axis=0)) - metrics.mean_iou(first.sum(axis=0))
    assert result.value == pytest.approx(whole, rel=1e-12)
    # The quarters of 27 values lie inside a step, where no draw's chance moves them.
    assert result.low == pytest.approx(exact[6])
    assert result.high == pytest.approx(exact[20])
    above = np.mean(np.array(exact) > 0)
    assert result.share_above == pytest.approx(above, abs=4 * 0.5 / 40_000**0.5)


def test_pairing_takes_out_what_is_hard_for_both():
    # Images differ by 40 points, the runs on each image by one.
    rng = np.random.default_rng(3)
    right = rng.integers(30, 70, 50)
    first = np.stack([[[r, 100 - r], [100 - r, r]] for r in right])
    second = np.stack([[[r + 1, 99 - r], [99 - r, r + 1]] for r in right])
    paired = bootstrap.paired_difference(first, second, num_resamples=2_000)
    assert 0 < paired.low < paired.value < paired.high < 2 * paired.value
    apart = bootstrap.paired_difference(first, second[::-1], num_resamples=2_000)
    assert apart.low < 0 < apart.high
    assert apart.value == pytest.approx(paired.value)


def test_seeded_and_independent_of_the_block(monkeypatch):
    first, second = matrices(seed=1), matrices(seed=2)
    one = bootstrap.paired_difference(first, second, num_resamples=300, seed=4)
    assert one == bootstrap.paired_difference(first, second, num_resamples=300, seed=4)
    assert one != bootstrap.paired_difference(first, second, num_resamples=300, seed=5)
    monkeypatch.setattr(bootstrap, "_BLOCK", 1)
    assert one == bootstrap.paired_difference(first, second, num_resamples=300, seed=4)


def test_any_figure_of_sums_can_be_compared():
    # Specks: 1 and 3 of 10 pixels, then 0 and 2: shares 4 / 20 and 2 / 20.
    first, second = np.array([[1, 10], [3, 10]]), np.array([[0, 10], [2, 10]])
    result = bootstrap.paired_difference(
        first, second, figure=lambda sums: sums[:, 0] / sums[:, 1], num_resamples=100
    )
    for value in (result.value, result.low, result.high):
        assert value == pytest.approx(-0.1)


def test_resamples_without_a_figure_are_left_out_and_counted():
    counts = np.zeros((2, 2, 2), int)
    counts[0] = [[3, 1], [0, 4]]  # the other image has no labelled pixel
    result = bootstrap.paired_difference(counts, counts, num_resamples=1_000)
    # The empty image alone is drawn in a quarter of the cases.
    assert 690 < result.num_resamples < 810
    with pytest.raises(ValueError, match="no pixel was counted"):
        bootstrap.paired_difference(counts[1:], counts[1:])


@pytest.mark.parametrize(
    "counts, settings, message",
    [
        ((np.ones((3, 2, 2)), np.ones((4, 2, 2))), {}, "the same images, not"),
        ((np.ones((0, 2, 2)), np.ones((0, 2, 2))), {}, "the same images, not"),
        ((np.ones((3, 2, 2)),) * 2, {"confidence": 1.0}, "confidence=1.0"),
        ((np.ones((3, 2, 2)),) * 2, {"num_resamples": 0}, "num_resamples=0"),
    ],
)
def test_what_cannot_be_compared_is_named(counts, settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap.paired_difference(*counts, **settings)


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Images drawn from a known population, 80 at a time, 400 times."""
    rng = np.random.default_rng(0)

    def draw(number):
        skill = rng.beta(6, 2, (number, 1))
        shift = rng.normal(0.02, 0.05, (number, 1))
        pair = []
        for rate in (skill, np.clip(skill + shift, 0, 1)):
            right = rng.binomial(200, np.broadcast_to(rate, (number, 2)))
            matrix = np.zeros((number, 2, 2), int)
            matrix[:, [0, 1], [0, 1]] = right
            matrix[:, [0, 1], [1, 0]] = 200 - right
            pair.append(matrix)
        return pair

    first, second = (metrics.mean_iou(c.sum(axis=0)) for c in draw(2_000_000))
    truth = second - first
    covered = 0
    for seed in range(400):
        result = bootstrap.paired_difference(
            *draw(80), num_resamples=1_000, confidence=0.9, seed=seed
        )
        covered += result.low <= truth <= result.high
    # 90 % of 400, standard error 1.5 %; percentile intervals run a little short.
    assert 0.85 < covered / 400 < 0.95


def test_spread_by_hand():
    # 1, 2, 6: mean 3, deviations -2, -1, 3, std sqrt(14 / 2); t(2, 97.5 %) = 4.3027.
    spread = bootstrap.seed_spread([1, 2, 6])
    assert (spread.num_pairs, spread.mean) == (3, 3)
    assert spread.std == pytest.approx(7**0.5)
    assert spread.high - 3 == pytest.approx(4.302653 * (7 / 3) ** 0.5, rel=1e-6)
    assert spread.high - 3 == pytest.approx(3 - spread.low)
    assert (spread.smallest, spread.largest, spread.num_above) == (1, 6, 3)
    assert bootstrap.seed_spread([-1, 0, 1]).num_above == 1


def test_the_spreads_interval_is_scipys():
    values = np.random.default_rng(0).normal(0.5, 2, 6)
    spread = bootstrap.seed_spread(values, confidence=0.8)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.8)
    assert (spread.low, spread.high) == pytest.approx(tuple(expected))


def test_one_pair_has_no_spread():
    spread = bootstrap.seed_spread([0.01])
    assert spread.mean == spread.smallest == spread.largest == 0.01
    assert np.isnan([spread.std, spread.low, spread.high]).all()
    for bad in ([], [float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap.seed_spread(bad)
