"""Processes that prepare a dataset, from the one server of processes that the tests have.

A process of the tests has a single fork server, whose list of what it imports ahead is set in one place. It has
imported polars and never used it: a fork of a process that has hangs on the threads it lost.
"""

from child_runs import SERVER as CONTEXT

__all__ = ["CONTEXT"]
