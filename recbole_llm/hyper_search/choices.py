"""The ways to search, for whoever only names them."""

ALGOS = ("exhaustive", "random", "bayes")
PRUNERS = ("median", "halving", "hyperband", "none")
