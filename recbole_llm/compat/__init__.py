"""Repairs of RecBole: each names the line that it repairs."""
