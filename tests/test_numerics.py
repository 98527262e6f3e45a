"""What is compared with what, and that an equal run is equal."""

import dataclasses

import pytest

from ss_gan_tf import numerics
from ss_gan_tf.config import Config


def run(*losses, miou):
    return {"losses": {"phase1 mce": list(losses)}, "miou": miou}


def test_differences_by_hand():
    runs = {
        ("float32", 0): run(3.0, 1.0, miou=0.50),
        ("float32", 1): run(9.0, 9.0, miou=0.53),
        ("bfloat16", 0): run(3.0, 1.2, miou=0.52),
        ("float32-xla", 0): run(3.01, 1.0, miou=0.46),
    }
    result = numerics.compare(runs, 0)
    bfloat16, xla = result["rows"]
    # 0.2 of a mean of 2, in one of two steps.
    assert bfloat16["largest"] == pytest.approx(0.1) and not bfloat16["within"]
    assert bfloat16["mean"] == pytest.approx(0.05) and bfloat16["float32"] == 2
    assert xla["largest"] == pytest.approx(0.005) and xla["within"]
    assert result["spread"] == pytest.approx(0.03)  # of float32's seeds alone
    # 2 points against 3, and 4 against 3.
    assert [end["within"] for end in result["miou"]] == [True, False]
    text = numerics.format_table(result)
    assert (
        "| bfloat16 | phase1 mce | 2.0000 | 10.00% | 5.00% | 6%, 2.0% | **outside**"
        in (text)
    )
    assert "float32-xla: 46.00, -4.00 points, **outside**" in text


def test_a_mean_above_a_third_is_outside():
    runs = {
        ("float32", 0): run(1.0, 1.0, miou=0.5),
        ("bfloat16", 0): run(1.03, 1.03, miou=0.5),
    }
    (row,) = numerics.compare(runs, 0)["rows"]
    assert row["largest"] < row["tolerance"] and not row["within"]


def test_unknown_variants_are_named():
    with pytest.raises(ValueError, match="variants=float8: must be among float32, "):
        numerics.run_variants(Config(), "DATA", "RUNS", ["float8"])


def test_runs_are_made_kept_and_told_apart(monkeypatch, tmp_path):
    made = []

    def train(config, data_dir, workdir, progress):
        made.append(config)
        (tmp_path / workdir).mkdir(parents=True)
        for step in (1, 2):
            progress("phase1", step, 2, {"loss/mce": 1.0 / step, "gradient/x": 5.0})
        return {"miou": 0.5 + config.seed / 100}

    monkeypatch.setattr(numerics, "train", train)
    config = Config(seed=3)
    lines = []
    result = numerics.run_variants(
        config, "DATA", str(tmp_path), ["bfloat16"], 2, lines.append
    )
    assert [(c.precision, c.jit_compile, c.seed, c.log_every) for c in made] == [
        ("float32", "off", 3, 1),
        ("float32", "off", 4, 1),
        ("mixed_bfloat16", "off", 3, 1),
    ]
    assert [row["loss"] for row in result["rows"]] == ["phase1 mce"]
    assert result["rows"][0]["float32"] == 0.75 and len(lines) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "bfloat16-3.json", "float32-3.json", "float32-4.json",
    ]  # fmt: skip
    again = numerics.run_variants(config, "DATA", str(tmp_path), ["bfloat16"], 2)
    assert again == result and len(made) == 3
    other = dataclasses.replace(config, crop_size=321)
    with pytest.raises(ValueError, match="other settings"):
        numerics.run_variants(other, "DATA", str(tmp_path), ["bfloat16"], 2)
