"""Small finished runs that the probes of experiments/ read."""

from pathlib import Path
from typing import Any

from small_data import small_settings

from recbole_llm.quick_start.run import run

FULL = {"train_neg_sample_args": None}
SMALL = {"hidden_size": 16, "inner_size": 16, "n_heads": 2}
RUNS = {
    "SASRec": {**FULL, **SMALL, "hidden_dropout_prob": 0.1},
    "GRU4Rec": {**FULL, "embedding_size": 16, "hidden_size": 16},
    "BPR": {"embedding_size": 16},
    "ComiRec": {**FULL, "embedding_size": 8, "num_interests": 1},
    "ST2SI": {"backbone": "llama", "max_sequence_tokens": 40, "learning_rate": 1e-3},
    "IDLEAdapter": {"backbone": "bert", "max_prompt_tokens": 100, "prompt": "Recommend {noun}: {history}."},
}


class FinishedRuns:
    """Gives the folder of a finished run by model and settings; each is trained once.

    Args:
        root: where the dataset is.
        tiny: the folders of small language models by name.
        given: settings of all runs.
    """

    def __init__(self, root: Path, tiny: dict[str, Path], **given: Any) -> None:
        self._root, self._tiny, self._given = root, tiny, given
        self._known: dict[tuple[str, str], Path] = {}

    def __call__(self, model: str, **other: Any) -> Path:
        key = (model, repr(other))
        if key not in self._known:
            given = {"epochs": 4, "learning_rate": 0.01, "topk": [5, 10], "valid_metric": "NDCG@10"}
            given |= {"model": model, "MAX_ITEM_LIST_LENGTH": 6, **self._given}
            settings = small_settings(self._root, **{**given, **RUNS[model], **other})
            if model == "IDLEAdapter":
                settings["id_model_path"] = str(self("ComiRec"))
            if "backbone" in settings:
                settings["backbone"] = str(self._tiny[settings["backbone"]])
            self._known[key] = Path(run(settings=settings)["path"]).parent
        return self._known[key]
