"""TALLRec."""

from recbole_llm.model.sequential_recommender.tallrec.model import TALLRec

__all__ = ["TALLRec"]
