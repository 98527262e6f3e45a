"""TFDS builder of the `camvid` data set."""
