"""IDLE-Adapter: an ID model's user vector enters every layer of a language model as gated virtual tokens."""

from recbole_llm.model.sequential_recommender.idleadapter.model import IDLEAdapter

__all__ = ["IDLEAdapter"]
