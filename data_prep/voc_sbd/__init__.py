"""TFDS builder of the `voc_sbd` data set."""
