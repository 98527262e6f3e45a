"""TFDS builders, one folder per data set, and the command that runs them."""
