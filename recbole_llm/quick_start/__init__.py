"""Runs as functions: what the command line does, from Python."""
