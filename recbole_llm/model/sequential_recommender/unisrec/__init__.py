"""UniSRec (Hou et al., KDD 2022): SASRec over text vectors that pass a mixture of whitening experts."""

from recbole_llm.model.sequential_recommender.unisrec.model import UniSRec

__all__ = ["UniSRec"]
