"""What models with text towers do together with others: new items, other models that read them, pre-training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction
from safetensors.torch import load_file
from small_data import SHORT, build_parts, small_settings, write_dataset
from st2si_parts import prefix_rows
from transformers import LongformerModel

from recbole_llm.errors import CheckpointError, DataError
from recbole_llm.inference.recommender import Recommender
from recbole_llm.model.id_model.scores import log_probabilities
from recbole_llm.quick_start import run as quick_start

SIZES = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2}
MODELS = {
    "LLMRec": ({"item_loss": "table", "two_stage": True}, "opt"),
    "MoRec": (SIZES, "bert"),
    "Recformer": ({}, "bert"),
    "TwinBERT": ({"crossing": "residual", "item_loss": "bce"}, "bert"),
    "FrozenMoRec": ({"tuning": "frozen", **SIZES}, "llama"),
}
FOOD = {"a": "Green Tea", "b": "Dark Chocolate 70%", "c": "Olive Oil, 1 litre", "d": 'Salt "fine"'}
CELL = {"a": "Phone Case, black", "x": "USB Cable", "y": "Charger", "b": "White Chocolate"}


@pytest.fixture
def make(small, rough_models):
    write_dataset(small, titles=SHORT)

    def parts(name, **more):
        own, backbone = MODELS[name]
        model = name.removeprefix("Frozen")
        built = build_parts(small, model=model, backbone=str(rough_models[backbone]), **{**own, **more})
        built.model.eval()
        return built

    return parts


@pytest.mark.parametrize("second_stage", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_new_item_is_what_its_text_says(make, name, second_stage):
    """A twin scores as its item does, wherever either stands; all others score as before."""
    parts = make(name)
    model = parts.model
    if second_stage:
        if model.training_stages != 2:
            pytest.skip("one stage")
        model.begin_stage(2)
    rows = next(prefix_rows(parts.test))[0]
    before = model.full_sort_predict(rows)
    twin = model.n_items
    recommender = Recommender(
        model, parts.train._dataset, new_items=pd.DataFrame({"title": [SHORT["d"], "USB Cable"]}, index=["twin", "usb"])
    )
    after = model.full_sort_predict(rows)
    d = parts.dataset.token2id("item_id", "d")
    torch.testing.assert_close(after[:, :twin], before, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(after[:, twin], before[:, d], atol=1e-4, rtol=1e-5)
    assert (after[:, twin + 1] - before[:, d]).abs().max() > 1e-4
    by_twin, by_item = (recommender.recommend(["a", item], k=10) for item in ("twin", "d"))
    ranked = [dict(zip(found.items, found.scores, strict=True)) for found in (by_twin, by_item)]
    assert ranked[0] == pytest.approx(ranked[1], abs=1e-4)
    assert set(ranked[0]) == {*SHORT, "twin", "usb"}


def test_a_new_item_without_text_is_refused(make):
    parts = make("Recformer")
    with pytest.raises(DataError, match="the new item 'usb' has no text in 'title': give it one or leave it out"):
        parts.model.add_items(pd.DataFrame({"title": [""]}, index=["usb"]))


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("ST2SI", {"tuning": "ilp", "id_weight": 0.5}),
        ("IDLEAdapter", {"max_prompt_tokens": 100, "prompt": "Recommend {noun}: {history}.", "id_weight": 0.5}),
    ],
)
@pytest.mark.parametrize("name", ["MoRec", "Recformer"])
def test_other_models_read_it_as_their_id_model(small, tiny, model, own, name):
    """Its scores are mixed in, and IDLE-Adapter takes its user vectors: those of the ID model's own run."""
    write_dataset(small, titles=SHORT)
    sizes, backbone = MODELS[name]
    inner = {"backbone": str(tiny[backbone]), **sizes, "epochs": 1, **({} if sizes else {"max_sequence_tokens": 100})}
    outer = {"ST2SI": "llama", "IDLEAdapter": "bert"}[model]
    parts = build_parts(
        small, model=model, backbone=str(tiny[outer]), id_model=name, id_model_settings=inner, MAX_ITEM_LIST_LENGTH=6,
        **own,
    )  # fmt: skip
    found = quick_start.load(parts.model.id_run.folder)
    for rows, other in zip(parts.test, found.test, strict=True):
        expected = log_probabilities(found.model.full_sort_predict(other[0]))
        torch.testing.assert_close(parts.model.id_scores(rows[0])[:, 1:], expected[:, 1:], atol=1e-4, rtol=1e-4)
        if model == "IDLEAdapter":
            vectors = parts.model.user_vectors(rows[0])
            torch.testing.assert_close(vectors, found.model.user_vectors(other[0]).float(), atol=1e-5, rtol=1e-4)


@pytest.fixture
def settings(small, tiny):
    """A target and two sources that number their items alike."""
    write_dataset(small, {"u1": "abcd", "u2": "dcba", "u3": "bcd", "u9": "ac"}, FOOD, name="food")
    write_dataset(small, {"u1": "axyb", "u2": "yxa", "u3": "bxyax"}, CELL, name="cell")

    def make(model, **more):
        defaults = {
            "backbone": str(tiny["bert"]), "pretrain_datasets": "food,cell", "pretrain_epochs": 2, "epochs": 2,
            "pretrain_learning_rate": 0.01, "pretrain_batch_size": 5, "MAX_ITEM_LIST_LENGTH": 6,
        }  # fmt: skip
        return small_settings(small, model=model, **{**defaults, **more})

    return make


@pytest.mark.parametrize("model", ["LLMRec", "Recformer"])
def test_a_pretraining_is_where_a_target_starts(model, settings, tiny):
    """All weights of both sources' training, zero-shot on the target bit for bit; other weights are refused."""
    folder = quick_start.pretrain(model, settings=settings(model))
    state = load_file(folder / "model.safetensors")
    assert not {"stage", "frozen_table"} & set(state)
    result = quick_start.run(settings=settings(model, epochs=0))
    stored = load_file(Path(result["path"]).parent / "model.safetensors")
    assert all(torch.equal(stored[name], weight) for name, weight in state.items())
    assert result["pretraining"]["folder"] == str(folder)
    untrained = quick_start.run(settings=settings(model, epochs=0, pretrain_datasets=None))
    first = load_file(Path(untrained["path"]).parent / "model.safetensors")
    assert sum(not torch.equal(first[name], weight) for name, weight in state.items()) > 10
    tuned = quick_start.run(settings=settings(model))
    assert len(tuned["history"]) == 2

    def refused(words, **more):
        with pytest.raises(CheckpointError, match=words):
            quick_start.run(settings=settings(model, pretrain_datasets=None, pretrained_state=str(folder), **more))

    if model == "LLMRec":
        refused("read items with another backbone", backbone=str(tiny["llama"]))
    else:
        refused("'tower.places.weight' of size \\(7, 32\\), this model of \\(5, 32\\)", MAX_ITEM_LIST_LENGTH=4)
    write_dataset(Path(settings(model)["data_path"]), titles={i: [t, "Acme"] for i, t in SHORT.items()},
                  columns=("title", "brand"))  # fmt: skip
    refused("other text fields behind the first", item_text_fields=["title", "brand"])


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param("LLMRec", marks=SLOW), pytest.param("MoRec", marks=SLOW), "TwinBERT"])
def test_items_of_a_longformer_are_read_as_transformers_reads_them(small, rough_models, name):
    """One text at a time, <s> global; and a step trains its weights, those of the global projections among them."""
    own = {"MoRec": SIZES, "TwinBERT": {"item_loss": "sampled"}}.get(name, {})
    folder = rough_models["longformer"]
    model = build_parts(small, model=name, backbone=str(folder), item_pooling="mean", **own).model.eval()
    plain = LongformerModel.from_pretrained(folder, add_pooling_layer=False).eval()
    singles = model.texts.singles(np.arange(1, model.n_items))
    with torch.no_grad():
        found = model.tower.encode(model.texts.passes(singles, 40))
        for item, vector in enumerate(found):
            tokens = torch.from_numpy(model.texts.table.gather(singles.rows[3 * item : 3 * item + 3])[0])[None]
            assert tokens[0, 0] == 0 and tokens[0, -1] == 2
            first = torch.zeros_like(tokens)
            first[0, 0] = 1
            states = plain(input_ids=tokens, global_attention_mask=first).last_hidden_state[0]
            torch.testing.assert_close(vector, states.mean(dim=0), atol=1e-4, rtol=1e-4)
    model.train()
    samples = model.training_samples(np.random.default_rng(0))
    _, passes = model.prepared_step(samples.select(np.arange(4)))
    model.pass_loss_sum(passes[0]).backward()
    grads = {name: each.grad for name, each in model.named_parameters() if "value_global" in name}
    assert grads and all(grad.abs().max() > 0 for grad in grads.values())


@pytest.mark.slow
def test_a_longformer_is_pretrained_and_tuned(settings, tiny):
    """Masked words and contrast, then two stages from these weights; windows of other sizes read otherwise."""

    def own(**more):
        return settings("Recformer", backbone=str(tiny["longformer"]), attention_window=4, **more)

    folder = quick_start.pretrain("Recformer", settings=own())
    result = quick_start.run(settings=own(epochs=4, first_stage_epochs=2))
    assert result["pretraining"]["folder"] == str(folder)
    assert len(result["history"]) >= 3
    with pytest.raises(CheckpointError, match="read items with other windows of attention"):
        quick_start.run(settings=own(pretrain_datasets=None, pretrained_state=str(folder)) | {"attention_window": 8})
    lora = quick_start.run(settings=own(pretrain_datasets=None, tuning="lora", gradient_checkpointing=True))
    assert all(entry["train_loss"] > 0 for entry in lora["history"])
    loaded = quick_start.load(lora["path"])
    assert loaded.model.tower.backbone.config.attention_window == [4, 4]


def test_rows_by_hand_need_no_place_in_the_dataset(make):
    """An ID model is asked for histories alone, on any device, without where they end."""
    for name in MODELS:
        parts = make(name)
        rows = next(prefix_rows(parts.test))[0]
        plain = Interaction({field: rows[field] for field in (parts.model.ITEM_SEQ, parts.model.ITEM_SEQ_LEN)})
        torch.testing.assert_close(parts.model.full_sort_predict(plain), parts.model.full_sort_predict(rows))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*MODELS, "Longformer"])
def test_training_and_ranking_on_a_gpu(small, tiny, name, precision):
    """Two epochs through pinned memory and the kernel of packed sequences; the CPU ranks by the weights as the GPU."""
    write_dataset(small, titles=SHORT)
    own, backbone = MODELS.get(name, ({"attention_window": 4}, "longformer"))
    model = name.removeprefix("Frozen") if name in MODELS else "Recformer"
    given = {
        "model": model, "backbone": str(tiny[backbone]), "epochs": 2, "precision": precision,
        "train_batch_size": 4, **own,
    }  # fmt: skip
    result = quick_start.run(settings=small_settings(small, **{**given, "use_gpu": True}))
    on_gpu = quick_start.load(result["path"])
    on_cpu = quick_start.load(result["path"], {"use_gpu": False, "precision": "fp32"})
    assert on_gpu.model.device != on_cpu.model.device
    tolerance = 1e-3 if precision == "fp32" else 0.1
    for rows, other in zip(on_gpu.test, on_cpu.test, strict=True):
        found = on_gpu.model.full_sort_predict(rows[0]).cpu()[:, 1:]
        expected = on_cpu.model.full_sort_predict(other[0])[:, 1:]
        torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)
