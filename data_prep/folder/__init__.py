"""TFDS builder of the `folder` data set."""
