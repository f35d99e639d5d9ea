"""Sequential recommenders that read text: one file a model."""
