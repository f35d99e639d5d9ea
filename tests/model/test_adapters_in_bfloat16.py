"""Low-rank adapters in float32 on a bfloat16 base: a step, and scores as those of a float32 base."""

import pytest
import torch
from small_data import build_parts

MODELS = {
    "ST2SI": {},
    "P5": {"indexing": "sequential", "MAX_ITEM_LIST_LENGTH": 3},
    "MoRec": {},
    "LLMRec": {},
}


@pytest.mark.parametrize("model", MODELS)
def test_a_step_and_scores(small, tiny, model):
    scores = {}
    for precision in ("fp32", "bf16"):
        parts = build_parts(
            small, model=model, backbone=str(tiny["llama"]), tuning="lora", lora_rank=2, precision=precision,
            seed=1, warmup_steps=0,
            **MODELS[model],
        )  # fmt: skip
        adapters = {name: p for name, p in parts.model.named_parameters() if "lora_" in name}
        assert adapters and all(p.dtype == torch.float32 for p in adapters.values())
        frozen = {p.dtype for name, p in parts.model.named_parameters() if ".layers." in name and name not in adapters}
        assert frozen == {torch.float32 if precision == "fp32" else torch.bfloat16}
        trainer = parts.trainer()
        before = {name: p.detach().clone() for name, p in adapters.items()}
        trainer._train_epoch(parts.train, 0)
        assert any(not torch.equal(p, before[name]) for name, p in adapters.items())
        parts.model.eval()
        with torch.no_grad():
            scores[precision] = parts.model.full_sort_predict(next(iter(parts.test))[0]).float().flatten()
    known = torch.isfinite(scores["fp32"]) & torch.isfinite(scores["bf16"])
    assert known.any()
    assert float((scores["fp32"] - scores["bf16"])[known].norm() / scores["fp32"][known].norm()) < 0.05
