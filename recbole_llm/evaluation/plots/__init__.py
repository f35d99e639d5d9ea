"""Plots of finished runs and of comparisons, as PNG and SVG."""
