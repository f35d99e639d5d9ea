"""The kinds of pictures, for whoever only names them."""

KINDS = ("curves", "bars", "groups", "sensitivity", "backbones", "scaling", "pretraining", "trade_off")
"""Of finished runs or of a comparison."""

REPRESENTATIONS = "representations"
"""Of the vectors of one run's model."""
