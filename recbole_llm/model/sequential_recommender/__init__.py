"""Sequential recommenders that read text: one file per model."""
