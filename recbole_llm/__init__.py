"""RecBole-LLM: language-model recommenders inside RecBole 1.2.1."""

__version__ = "0.2.0"
