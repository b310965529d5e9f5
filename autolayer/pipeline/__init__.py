"""The flow of `pick` and `train`."""
