"""ST2SI (Zhai et al.): a decoder language model, and a linear projection from its hidden states to item ids."""

from recbole_llm.model.sequential_recommender.st2si.model import ST2SI

__all__ = ["ST2SI"]
