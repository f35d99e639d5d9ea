"""Hyper-parameter search: which settings of a model are best on validation."""
