"""Processes that tests may kill.

They start from a server process that has never used polars: a fork of one that has hangs on the threads it lost.
"""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["recbole_llm.prepare"])
