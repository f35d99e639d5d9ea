"""Metrics, ranks and tables."""
