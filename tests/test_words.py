"""How figures stand in a table."""

from ss_gan_tf import words


def test_figures_by_hand():
    assert words.number(1.005) == "1.00" and words.number(-2) == "-2.00"
    assert words.signed(0.126) == "+0.13" and words.signed(-1) == "-1.00"
    assert words.interval((-0.5, 2.25)) == "-0.50 to +2.25"
    # 1, 2, 6: mean 3, s^2 = (4 + 1 + 9) / 2 = 7.
    assert words.spread([1.0, 2.0, 6.0]) == "3.00 ± 2.65 (3)"
    assert words.spread([5.0]) == "5.00 (1)"
    assert words.difference([1.0, 2.0], 3.0) == "-1.50"


def test_what_was_not_measured_is_a_dash():
    missing = (
        words.number(None),
        words.interval(None),
        words.spread([]),
        words.difference([], 1.0),
        words.difference([1.0], None),
    )
    assert set(missing) == {"-"}
