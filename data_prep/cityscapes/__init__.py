"""TFDS builder of the `cityscapes` data set."""
