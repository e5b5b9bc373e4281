"""Evaluation: the inference forward over a data set, with metrics and validation losses."""
