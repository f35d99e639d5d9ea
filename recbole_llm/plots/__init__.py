"""Pictures of finished runs and comparisons."""
