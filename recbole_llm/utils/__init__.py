"""Files, paths and hashes: what every other package may use."""
