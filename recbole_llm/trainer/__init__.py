"""Optimisation, checkpoints and resuming."""
