"""Recall of a run on one split, measured on the same windows that an index would serve."""
