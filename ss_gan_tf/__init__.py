"""SS-GAN: adversarial training for semantic segmentation, in TensorFlow and Keras.

A segmentation network is trained as usual, then trained further against an adversary
that tells its label maps from the ground truth. The network itself stays as it was:
the same layers, the same parameters, the same cost at inference.

The path of an image: `input_pipeline` reads it, `generator` labels it, `adversary`
judges the labels, `losses` turns both into numbers, `train_step` into an update, and
`train` repeats that.
"""

import importlib.util
import os

__version__ = "0.1.0"

# Two wheels provide the module `tensorflow`, and pip cannot require "one of them":
# the choice is an extra, and a plain installation has to learn about it somewhere.
# `experiments.study_programs` goes through written programs without it.
_NEEDED = "SS_GAN_TF_WITHOUT_TENSORFLOW" not in os.environ
if _NEEDED and importlib.util.find_spec("tensorflow") is None:
    raise ImportError(
        "ss_gan_tf needs TensorFlow, which is chosen by an extra: install"
        " ss_gan_tf[cpu], or ss_gan_tf[gpu] for an NVIDIA GPU."
    )
