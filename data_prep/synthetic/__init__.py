"""TFDS builder of the `synthetic` data set."""
