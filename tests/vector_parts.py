"""The sizes that models on text vectors have in tests."""

SIZES = {"hidden_size": 8, "inner_size": 12, "n_layers": 2, "n_heads": 2}
