"""A few of the fuzzer's inputs, and that it finds what it is there to find."""

import random
import warnings

import pytest

from ss_gan_tf import predict
from tests import fuzz


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return fuzz.Fuzzer(tmp_path_factory.mktemp("fuzz"))


def run(fuzzer, numbers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            rng = random.Random(f"0 {number}")
            yield fuzz.finding(fuzzer.door(rng, number), rng)


def test_broken_files_end_in_a_result_or_one_line(fuzzer):
    # With those that were findings once.
    numbers = [*range(300), 397, 455, 1059, 1067, 17666, 17895]
    assert not list(filter(None, run(fuzzer, numbers)))


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), ValueError("two\nlines"), ValueError("")]
)
def test_another_end_is_a_finding(fuzzer, monkeypatch, error):
    def read_image(*_, **__):
        raise error

    monkeypatch.setattr(predict, "read_image", read_image)
    assert fuzz.finding(fuzzer.photograph, random.Random(0))
