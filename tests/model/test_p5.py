"""P5: its loss and scores against transformers' own forward, its IDs, and where ranking is exact or a beam."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_data import HISTORIES, TITLES, build_parts, small_settings, write_dataset
from tiny_models import rough
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from recbole_llm.config.config import Config
from recbole_llm.errors import BackboneError, DataError, SettingError
from recbole_llm.quick_start.run import fit, load

P5 = {"model": "P5", "id_clusters": 2, "cluster_items": 2, "MAX_ITEM_LIST_LENGTH": 6, "warmup_steps": 0}


def parts_of(small, tiny, backbone="llama", **settings):
    return build_parts(small, **{**P5, "backbone": str(tiny[backbone]), **settings})


def stirred(model):
    """The model with larger weights everywhere, whole words included, in eval mode."""
    rough(model)
    with torch.no_grad():
        if model.word_embedding is not None:
            model.word_embedding.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    return model.eval()


class Plain:
    """transformers' own model with a larger vocabulary, reading one text of tokens and words at a time."""

    def __init__(self, model, folder):
        self.causal = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.causal.base_model.load_state_dict(model.backbone.state_dict())
        self.weight = torch.cat([self.causal.get_input_embeddings().weight, model.id_embedding.weight]).detach()
        self.words = model.word_embedding

    @torch.no_grad()
    def log_probabilities(self, tokens, words):
        """log p of the next token at every place: [tokens, vocabulary with IDs]."""
        embedded = F.embedding(torch.tensor(tokens), self.weight)
        if self.words is not None:
            embedded = embedded + self.words(torch.tensor(words) - 1)
        hidden = self.causal.base_model(inputs_embeds=embedded[None]).last_hidden_state[0]
        return (hidden @ self.weight.T).log_softmax(-1)


def written(model, texts):
    """The tokens and words of every text, by plain loops."""
    found, begin = [], 0
    for count in texts.counts.tolist():
        tokens, words, number = [], [], 0
        for row in texts.rows[begin : begin + count].tolist():
            for token, starts in zip(model.table.row(row), model.word_starts.row(row), strict=True):
                number += int(starts)
                tokens.append(int(token))
                words.append(number)
        found.append((tokens, words))
        begin += count
    return found


SETTINGS = [
    {},
    {"indexing": "sequential"},
    {"indexing": "independent", "whole_word_embeddings": False},
    {"indexing": "random", "tuning": "lora", "backbone": "opt"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_scores_are_sums_of_transformers_log_probabilities(small, tiny, settings):
    parts = parts_of(small, tiny, **settings)
    model = stirred(parts.model)
    if settings.get("tuning") == "lora":  # its layers have other names
        model.backbone = AutoModelForCausalLM.from_pretrained(tiny["opt"]).model.eval()
        model.head._embedding = (model.backbone.get_input_embeddings(),)
        model.backbone.set_attn_implementation("recbole_llm_packed")
    plain = Plain(model, tiny[settings.get("backbone", "llama")])
    rows = next(iter(parts.test))[0]
    found = model.full_sort_predict(rows)
    assert (found[:, 0] == -torch.inf).all()
    items, ends, lengths, _ = model.histories.rows(rows, model.ITEM_SEQ, model.ITEM_SEQ_LEN)
    users = rows["user_id"].numpy()
    prompts = model.prompts(items, ends, lengths, users, np.zeros(len(ends), dtype=np.int64))
    for row, (tokens, words) in enumerate(written(model, prompts)):
        for item in range(1, model.n_items):
            path = [token for token in model.ids[item].tolist() if token >= 0]
            logs = plain.log_probabilities([*tokens, *path], [*words, *[words[-1] + 1] * len(path)])
            expected = sum(float(logs[len(tokens) - 1 + place, token]) for place, token in enumerate(path))
            assert float(found[row, item]) == pytest.approx(expected, abs=1e-3)


def test_loss_is_the_cross_entropy_of_the_answers_tokens(small, tiny):
    parts = parts_of(small, tiny, train_batch_tokens=60)
    model = stirred(parts.model)
    plain = Plain(model, tiny["llama"])
    samples = model.training_samples(np.random.default_rng(0)).select(np.arange(3, 11))
    count, passes = model.prepared_step(samples)
    assert len(passes) > 1
    targets = samples.targets
    lengths = np.minimum(targets.lengths, 6)
    users = parts.train._dataset.inter_feat["user_id"].numpy()[3:11]
    prompts = model.prompts(model.histories.flat, targets.ends, lengths, users, samples.prompts)
    expected, tokens_of_answers = 0.0, 0
    for (tokens, words), item in zip(written(model, prompts), targets.labels.tolist(), strict=True):
        path = [token for token in model.ids[item].tolist() if token >= 0]
        logs = plain.log_probabilities([*tokens, *path], [*words, *[words[-1] + 1] * len(path)])
        expected -= sum(float(logs[len(tokens) - 1 + place, token]) for place, token in enumerate(path))
        tokens_of_answers += len(path)
    assert count == tokens_of_answers
    found = sum(float(model.pass_loss_sum(part)) for part in passes)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_probabilities_of_all_items_have_the_sum_1(small, tiny, settings):
    parts = parts_of(small, tiny, id_probability="children", **settings)
    scores = stirred(parts.model).full_sort_predict(next(iter(parts.test))[0])
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(scores)))


@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_a_beam_as_wide_as_the_catalogue_is_the_exact_ranking(small, tiny, settings):
    exact = parts_of(small, tiny, **settings)
    model = stirred(exact.model)
    rows = next(iter(exact.test))[0]
    expected = model.full_sort_predict(rows)
    model._beam = model.n_items - 1
    torch.testing.assert_close(model.full_sort_predict(rows), expected, atol=1e-4, rtol=1e-4)
    model._beam = 3
    narrow = model.full_sort_predict(rows)
    assert (narrow.isfinite().sum(dim=1) == 3).all()
    inside = narrow.isfinite()
    torch.testing.assert_close(narrow[inside], expected[inside], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("indexing", ["collaborative", "sequential", "random", "independent"])
def test_a_held_out_interaction_changes_no_id(tmp_path, tiny, indexing):
    """The published code numbers items along whole sequences, so that a target is often the next number."""
    found = []
    # For validation and for the test, but the first two interactions of a user are trained on in any case.
    kept = {user: max(len(items) - 2, 2) for user, items in HISTORIES.items()}
    others = {user: items[: kept[user]] + "ga"[: len(items) - kept[user]] for user, items in HISTORIES.items()}
    assert others["u4"] != HISTORIES["u4"]
    for number, histories in enumerate((HISTORIES, others)):
        root = write_dataset(tmp_path / str(number), histories)
        model = parts_of(root, tiny, indexing=indexing).model
        found.append(model.item_ids())
    assert found[0].keys() == found[1].keys() == set(TITLES)
    assert found[0] == found[1]


def test_a_loaded_run_writes_its_own_ids(small, tiny):
    """Whatever a clustering would give now: IDs are stored with the weights."""
    config = Config(config_dict=small_settings(small, **P5, backbone=str(tiny["llama"]), epochs=1, tuning="lora"))
    folder = Path("run").resolve()
    fit(config, folder)
    weights = load_file(folder / "model.safetensors")
    swapped = weights["ids"][[0, 2, 1, *range(3, len(weights["ids"]))]].contiguous()
    assert not torch.equal(swapped, weights["ids"])
    with safe_open(folder / "model.safetensors", "pt") as file:
        save_file({**weights, "ids": swapped}, folder / "model.safetensors", file.metadata())
    model = load(folder).model
    assert torch.equal(model.ids, swapped)
    for item in (1, 2):
        path = [token for token in swapped[item].tolist() if token >= 0]
        assert model.table.row(item).tolist() == path
        node = int((model.trie().items == item).nonzero())
        assert int(model.trie().tokens[node]) == path[-1]
        assert int(model.trie().depths[node]) == len(path)


def test_templates_of_evaluation_are_not_trained_on(small, tiny):
    model = parts_of(small, tiny, eval_id_prompt="Next after {history}:").model
    samples = model.training_samples(np.random.default_rng(0))
    assert set(samples.prompts.tolist()) == {1, 2}
    assert model.id_prompts.reads_users


def test_users_are_read_where_a_template_names_them(small, tiny):
    parts = parts_of(small, tiny)
    with pytest.raises(DataError, match="P5 also reads 'user_id': give users"):
        parts.recommend([["a", "b"]], k=2)
    assert len(parts.recommend([["a", "b"]], k=2, users=["u1"])[0].items) == 2
    silent = parts_of(small, tiny, id_prompts=["What comes after {history}?"])
    assert len(silent.recommend([["a", "b"]], k=2)[0].items) == 2


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"backbone": "bert"}, BackboneError, "writes no text: choose a decoder"),
        ({"MAX_ITEM_LIST_LENGTH": 60}, SettingError, "more than the 128 positions of .*: lower MAX_ITEM_LIST_LENGTH"),
        ({"id_prompts": ["{histories}"]}, SettingError, "did you mean 'history'"),
    ],
)
def test_what_cannot_be_is_refused(small, tiny, settings, error, message):
    with pytest.raises(error, match=message):
        parts_of(small, tiny, **settings)


def test_a_tokenizer_that_tells_numbers_not_apart_is_refused(small, tiny, monkeypatch):
    monkeypatch.setattr("recbole_llm.data.item_indexing.numbers", lambda order: ["", *["1001"] * len(order)])
    with pytest.raises(DataError, match=r"IDs of the items '.' and '.' so that one is, or begins, the other"):
        parts_of(small, tiny, indexing="sequential")


def test_result_tells_how_much_is_ranked(small, tiny):
    exact, beam = parts_of(small, tiny).model, parts_of(small, tiny, decoding="beam", num_beams=3).model
    assert exact.extra_results()["ranked_items"] == len(TITLES)
    assert beam.extra_results()["ranked_items"] == 3
    assert exact.extra_results()["ids"] == beam.extra_results()["ids"]


def test_rates(small, tiny):
    model = parts_of(small, tiny, tuning="lora", learning_rate=0.1, id_learning_rate=0.2).model
    first, second = model.parameter_groups()
    assert (first["lr"], second["lr"]) == (0.1, 0.2)
    assert sum(p.numel() for p in second["params"]) == (len(model.id_embedding.weight) + 512) * 32
    assert all(p.requires_grad for p in [*first["params"], *second["params"]])
