"""What a run sees of its validation split."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import stages
from ss_gan_tf.input_pipeline import open_dataset
from ss_gan_tf.validation import Validation


@pytest.fixture(scope="module")
def make(tiny_config, tiny_data):
    def make(**changes):
        config = dataclasses.replace(tiny_config, **changes)
        data = open_dataset("synthetic", tiny_data)
        networks = stages.create_networks(config, data.class_names)
        return Validation(config, data, networks, tf.distribute.get_strategy())

    return make


def test_a_limit_counts_images_and_progress_hears_of_each(make):
    heard = []
    metrics = make().metrics(1, progress=lambda *counts: heard.append(counts))
    assert metrics["num_images"] == 1 and heard == [(1, 1)]
    assert np.sum(metrics["confusion_matrix"]) == metrics["num_pixels"] > 0


def test_verdicts_are_drawn_where_there_is_an_adversary(make):
    assert set(make(panels=1).pictures()) == {"panel/0", "verdicts/0"}
    assert set(make(panels=2, lambda_adv=0.0).pictures()) == {"panel/0", "panel/1"}
    assert make(panels=0).pictures() == {}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_validations_leave_no_file_open(make):
    validation, files = make(panels=1), []
    for _ in range(4):
        validation.metrics(2)
        validation.pictures()
        files.append(len(os.listdir("/proc/self/fd")))
    assert files[0] == files[3]
