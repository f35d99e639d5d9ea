"""Containers of packed sequences, without any model."""
