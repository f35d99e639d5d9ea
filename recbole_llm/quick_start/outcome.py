"""What a finished run found, as `result.json` holds it."""

from typing import Any

import torch

from recbole_llm.config.hooks import hooks_of
from recbole_llm.quick_start.build import Parts
from recbole_llm.runs import folder as run_folder
from recbole_llm.trainer.run_folder_trainer import best_epoch


def outcome(
    parts: Parts, trainer: Any, metrics: dict[str, Any], seconds: dict[str, float], processes: int = 1
) -> dict[str, Any]:
    """Return what a finished run found, by the names of `RunResult`.

    Args:
        parts: of the run.
        trainer: after training.
        metrics: ``test``, ``test_other`` and ``valid_other`` of the best epoch.
        seconds: of each stage.
        processes: how many shared the run.
    """
    config = parts.config
    metric = config["valid_metric"].lower()
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "backbone": config["backbone"],
        "tuning": config["tuning"],
        "seed": config["seed"],
        "valid": numbers(trainer.best_valid_result),
        **{name: numbers(found) for name, found in metrics.items()},
        "protocol": parts.dataset.item_protocol.entry(),
        "epochs": trainer.epochs_done,
        "best_epoch": best_epoch(trainer.history, metric, config["valid_metric_bigger"]),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "parameters": run_folder.parameter_counts(parts.model),
        **run_folder.peak_memory_bytes(),
        "device": _device_name(config["device"]),
        **({"processes": processes} if processes > 1 else {}),
        "counts": {
            "users": parts.dataset.user_num - 1,
            "items": parts.dataset.item_num - 1,
            "train": len(parts.train._dataset),
            "valid": 0 if parts.valid is None else len(parts.valid._dataset),
            "test": len(parts.test._dataset),
        },
        **hooks_of(parts.model).extra_results(),
        "history": trainer.history,
        "settings": run_folder.plain(parts.settings),
        "commit": run_folder.git_commit(),
    }


def numbers(result: Any) -> dict[str, float] | None:
    """Return metrics as plain numbers; None stays None."""
    return None if result is None else {name: float(value) for name, value in result.items()}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
