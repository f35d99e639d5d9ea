"""Models side by side: reads what runs leave on the disk, never a model."""
