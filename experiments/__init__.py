"""The programs: flags in, one library call, result out.

Each module is one command, `python -m experiments.NAME --help`.
"""

import os

# TensorFlow's own start-up lines would bury the one line that an error gets.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
