"""Imported once, by the server of `child_runs`: what every run would otherwise do again in a process of its own.

What was imported is left out of garbage collections: to look through it takes a third of a second, and copies the
memory that a fork shares.
"""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from recbole_llm.config.declared import names_of_all_models
from recbole_llm.config.registry import model_class

names_of_all_models()  # which reads two files for each of RecBole's models
model_class("SASRec")  # with which RecBole imports all others
get_checkpoint_conversion_mapping("llama")  # compiles a thousand regular expressions
gc.collect()
gc.freeze()
