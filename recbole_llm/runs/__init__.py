"""What a run leaves on the disk: its folder, result, weights and ranks."""
