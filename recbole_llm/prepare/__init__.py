"""From the publishers' files to the papers' datasets, as RecBole atomic files with a manifest.

The settings of a dataset stand under `prepare:` in ``dataset_configs/<dataset>.yaml``; docs/add_a_dataset.md describes
them.
"""

from recbole_llm.prepare.make import ensure, prepare
from recbole_llm.prepare.pipeline import PreparedDataset

__all__ = ["PreparedDataset", "ensure", "prepare"]
