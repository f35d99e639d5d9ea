"""A comparison with everything that a comparison.json can hold, and single results, both made of plain numbers."""

import itertools
import statistics

import numpy as np

DATASETS, LABELS, METRICS, SEEDS = (
    ["Scientific", "ml-100k"],
    ["SASRec", "ST2SI", "IDLEAdapter"],
    ["ndcg@10", "mrr"],
    [1, 2],
)
SIZES = {"SASRec": None, "ST2SI": "opt-125m", "IDLEAdapter": "sbert-minilm"}
REASON = "the language model sbert-minilm is not here: install its package"


def result(model="SASRec", dataset="ml-100k", seed=2020, backbone=None, tuning=None, settings=None, **test):
    """What result.json holds, as far as plots read it."""
    test = test or {"ndcg@10": 0.05, "mrr": 0.04}
    return {
        "model": model,
        "dataset": dataset,
        "backbone": backbone,
        "tuning": tuning,
        "seed": seed,
        "valid": dict(test),
        "test": dict(test),
        "epochs": 2,
        "best_epoch": 1,
        "seconds": {"prepare": 1.0, "fit": 10.0, "evaluate": 0.5},
        "parameters": {"trained": 1000, "frozen": 0},
        "peak_memory_bytes": 2**30,
        "peak_gpu_memory_bytes": None,
        "device": "cpu",
        "counts": {"users": 943, "items": 1682, "train": 97171, "valid": 943, "test": 943},
        "history": [{"epoch": e, "train_loss": 5.0 - e, "valid": dict(test)} for e in range(2)],
        "settings": {"model": model, "dataset": dataset, "seed": seed, **(settings or {})},
        "commit": None,
    }


def comparison(datasets=DATASETS):
    """Three models on datasets with two seeds; IDLEAdapter failed on ml-100k, and lacks one run on Scientific."""
    draw = np.random.default_rng(0)

    def number(scale=0.1):
        return round(float(draw.uniform(0.1, 1) * scale), 4)

    cells = []
    for dataset, label, seed in itertools.product(datasets, LABELS, SEEDS):
        status, reason = "done", None
        if label == "IDLEAdapter" and dataset == "ml-100k":
            status, reason = "failed", REASON
        elif label == "IDLEAdapter" and seed == 2:
            status = "missing"
        history = [
            {"epoch": e, "train_loss": number(9), "valid": {m: number() for m in METRICS}} for e in range(4)
        ]  # fmt: skip
        done = {
            "valid": {m: number() for m in METRICS},
            "test": {m: number() for m in METRICS},
            "epochs": 4,
            "best_epoch": 2,
            "seconds": {"prepare": number(20), "fit": number(900), "evaluate": number(3)},
            "parameters": {"trained": int(draw.integers(10**5, 10**6)), "frozen": int(draw.integers(10**7, 10**8))},
            "device": "cpu",
            "peak_memory_bytes": int(draw.integers(2**30, 2**33)),
            "peak_gpu_memory_bytes": None,
            "history": history,
        }
        nothing = {
            **dict.fromkeys(("epochs", "best_epoch", "device", "peak_memory_bytes", "peak_gpu_memory_bytes")),
            **{"valid": {}, "test": {}, "seconds": {}, "parameters": {}, "history": []},
        }
        cells.append(
            {
                **{
                    "dataset": dataset,
                    "label": label,
                    "model": label,
                    "seed": seed,
                    "status": status,
                    "reason": reason,
                },
                "run": f"saved/{label}-{dataset}-{seed}" if status == "done" else None,
                "command": f"recbole-llm run --model={label} --dataset={dataset} --seed={seed}",
                **(done if status == "done" else nothing),
                **{"settings": {"epochs": 4, "loss_type": "CE"}, "backbone": SIZES[label], "tuning": None},
            }
        )
    summary, intervals, groups, tests = [], [], [], []
    for dataset, metric in itertools.product(datasets, METRICS):
        means = {}
        for label in LABELS:
            values = [
                c["test"][metric] for c in cells if (c["dataset"], c["label"]) == (dataset, label) and c["test"]
            ]  # fmt: skip
            if values:
                means[label] = (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
        ranked = sorted(means, key=lambda label: -means[label][0])
        for label, (mean, deviation) in means.items():
            where = {"dataset": dataset, "label": label, "metric": metric}
            better = label != "SASRec"
            summary.append(
                {
                    **where, "mean": mean, "deviation": deviation, "seeds": 2 if deviation is not None else 1,
                    "best": label == ranked[0], "second": label == ranked[1],
                    "improvement": 100 * (mean / means["SASRec"][0] - 1) if better else None,
                    "mark": "**" if better else "",
                }
            )  # fmt: skip
            intervals.append({**where, "mean": mean, "low": mean - number(0.01), "high": mean + number(0.01)})
            if better:
                tests.append(
                    {
                        **where, "against": "SASRec", "difference": mean - means["SASRec"][0], "low": -number(0.01),
                        "high": number(0.01), "p_t": number(0.05), "p_wilcoxon": number(0.05), "p_t_holm": number(0.09),
                        "p_wilcoxon_holm": 3e-7, "users": 943, "mark": "*",
                    }
                )  # fmt: skip
    for dataset, by, (order, group) in itertools.product(
        datasets, ("popularity", "history_length"), enumerate(("head", "tail", "never"))
    ):
        for label in LABELS if dataset == "Scientific" else LABELS[:2]:
            metrics = {}
            for metric in METRICS:
                mean = number()
                metrics[metric] = {"mean": mean, "low": mean - number(0.01), "high": mean + number(0.01)}
            groups.append(
                {"dataset": dataset, "label": label, "by": by, "group": group, "order": order, "targets": 100 + order,
                 "metrics": metrics}
            )  # fmt: skip
    return {
        "version": "0.1.0",
        "created": "2026-11-21T21:50:10+00:00",
        "command": "recbole-llm compare --models=SASRec,ST2SI,IDLEAdapter --dataset=Scientific,ml-100k --seeds=2",
        "datasets": datasets,
        "models": LABELS,
        "metrics": METRICS,
        "seeds": SEEDS,
        "cells": cells,
        "summary": summary,
        "significance": tests,
        "intervals": intervals,
        "groups": groups,
        "counts": {
            "Scientific": {"users": 8317, "items": 4344, "train": 33541, "valid": 8317, "test": 8317},
            "ml-100k": {"users": 943, "items": 1682, "train": 97171, "valid": 943, "test": 943},
        },
        "packages": {"recbole": "1.2.1", "torch": "2.13.0"},
        "papers": {"Scientific": {"SASRec": {"ndcg@10": 0.0797}, "UniSRec": {"ndcg@10": 0.0862}}},
        "notes": ["ml-100k: a note"],
    }
