"""Recommendations over HTTP: requests that come at about the same time are answered in one batch."""
