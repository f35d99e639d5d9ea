"""What tests inherit."""
