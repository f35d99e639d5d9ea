"""Datasets, item text and packed batches."""
