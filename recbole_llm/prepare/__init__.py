"""From the publishers' files to the papers' data sets, as RecBole atomic files with a manifest.

The settings of a data set stand under `prepare:` in ``dataset_configs/<dataset>.yaml``; docs/add_a_dataset.md describes
them.
"""

from recbole_llm.prepare.command import add_arguments, ensure, prepare, prepare_command
from recbole_llm.prepare.pipeline import PreparedDataset

__all__ = ["PreparedDataset", "add_arguments", "ensure", "prepare", "prepare_command"]
