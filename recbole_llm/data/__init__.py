"""Data sets, item text and packed batches."""
