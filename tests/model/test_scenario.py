"""Scenarios: what is swapped gives the scores of the model that was built there, and nothing else is let in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_data import small_settings, write_dataset
from tiny_models import tiny_llama

from recbole_llm.backbone.fingerprint import weights_fingerprint
from recbole_llm.backbone.loading import load_backbone
from recbole_llm.backbone.pretrained import save_backbone
from recbole_llm.config.config import Config
from recbole_llm.errors import CheckpointError, StorageError
from recbole_llm.model.sequential_recommender.st2si.scenario import load_scenario, save_scenario, scenario_of, swap
from recbole_llm.quick_start import run as quick_start

TEA = {"a": "Green Tea", "t": "Black Tea, loose", "h": "Honey", "s": "Scones", "c": "Clotted cream"}
AFTERNOONS = {"x": "aths", "y": "thsca", "z": "scath", "w": "caths"}


@pytest.fixture
def scenario_settings(small, tiny):
    write_dataset(small, AFTERNOONS, TEA, name="tea")

    def make(dataset, **more):
        defaults = {"backbone": str(tiny["llama"]), "tuning": "ilp", "epochs": 2, "learning_rate": 0.05, "topk": [1, 2]}
        defaults |= {"valid_metric": "NDCG@2", "warmup_steps": 0, "train_batch_size": 4}
        return small_settings(small, **{**defaults, "dataset": dataset, **more})

    return make


def run_folder_of(settings):
    return Path(quick_start.run(settings=settings)["path"]).parent


def scores(model, parts):
    """Scores of all items for the test part of `parts`."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model.full_sort_predict(batch[0].to(model.device)) for batch in parts.test])


VARIANTS = [
    {},
    {"multi_query": False, "max_sequence_tokens": 40},
    {"query_token": "[Q]"},
    {"alignment_token": "[A]"},
    {"MAX_ITEM_LIST_LENGTH": 2},
    {"alignment": False, "precision": "bf16"},
]


@pytest.mark.parametrize("more", VARIANTS, ids=str)
def test_swapped_scenarios_give_the_scores_of_the_models_built_there(scenario_settings, more):
    folders = {name: run_folder_of(scenario_settings(name, **more)) for name in ("small", "tea")}
    parts = {name: quick_start.load(folder) for name, folder in folders.items()}
    expected = {name: scores(part.model, part) for name, part in parts.items()}
    scenarios = {name: load_scenario(folder / "scenario.safetensors") for name, folder in folders.items()}
    model = parts["small"].model
    backbone = model.backbone
    for name in ("tea", "small", "tea"):
        swap(model, scenarios[name], parts[name].dataset)
        assert model.backbone is backbone
        assert torch.equal(scores(model, parts[name]), expected[name])
        interaction = next(iter(parts[name].test))[0]
        target = interaction["item_id"]
        found = model.predict(interaction.to(model.device))
        assert torch.allclose(found, expected[name][torch.arange(len(target)), target][: len(found)], atol=1e-5)
        assert model.extra_results()["ilp_accuracy"] == parts[name].model.extra_results()["ilp_accuracy"]


def test_file_holds_the_catalogue(scenario_settings):
    folder = run_folder_of(scenario_settings("tea"))
    parts = quick_start.load(folder)
    scenario = load_scenario(folder / "scenario.safetensors")
    assert scenario.dataset == "tea"
    assert set(scenario.tokens[1:]) == set(TEA)
    assert scenario.tokens == [str(token) for token in parts.dataset.field2id_token["item_id"]]
    assert torch.equal(scenario.weight, load_file(folder / "model.safetensors")["projection.weight"])
    assert (scenario.query_token, scenario.item_text_fields, scenario.max_sequence_tokens) == (".", ["title"], 100)
    decoded = parts.model.tokenizer.decode(scenario.text.row(scenario.tokens.index("h")))
    assert decoded == "Honey"
    assert (folder / "scenario.safetensors").stat().st_size < 8000


def test_full_tuning_leaves_no_scenario_by_itself(scenario_settings):
    assert not (run_folder_of(scenario_settings("tea", tuning="full", epochs=1)) / "scenario.safetensors").exists()


# -- which backbone ----------------------------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_weights(tiny, tmp_path):
    first = weights_fingerprint(load_backbone(str(tiny["llama"])).model)
    assert weights_fingerprint(load_backbone(str(tiny["llama"]), dtype=torch.bfloat16).model) == first
    assert weights_fingerprint(load_backbone(str(tiny_llama(tmp_path, seed=1))).model) != first
    model = load_backbone(str(tiny["llama"])).model
    assert weights_fingerprint(model) == first
    weight = model.layers[1].mlp.up_proj.weight
    with torch.no_grad():  # remembered, but not beyond a change
        weight[3, 3] += 0.1
    changed = weights_fingerprint(model)
    assert changed != first
    with torch.no_grad():
        weight[3, 3] -= 0.1
    torch.optim.SGD([weight], lr=0.0).step()
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()
    assert weights_fingerprint(model) not in (first, changed)


def test_scenario_of_a_tuned_backbone_fits_that_backbone_alone(scenario_settings, small):
    run = run_folder_of(scenario_settings("small", tuning="full", learning_rate=0.01))
    tuned = quick_start.load(run)
    save_scenario(tuned.model, tuned.dataset, small / "tuned.safetensors")
    scenario = load_scenario(small / "tuned.safetensors")
    preset = quick_start.build(Config(config_dict=scenario_settings("tea"))).model
    with pytest.raises(CheckpointError, match="the scenario of small belongs to the backbone"):
        swap(preset, scenario)
    save_backbone(small / "kept", tuned.model.backbone, tuned.model.tokenizer, {}, {})
    settings = {**scenario_settings("tea", backbone=str(small / "kept")), "learning_rate": None}
    kept = quick_start.build(Config(config_dict=settings)).model
    swap(kept, scenario, tuned.dataset)
    assert torch.equal(scores(kept, tuned), scores(tuned.model, tuned))


def test_lora_adapters_are_part_of_the_backbone(scenario_settings):
    parts = quick_start.build(Config(config_dict=scenario_settings("tea", tuning="lora")))
    own = scenario_of(parts.model, parts.dataset)
    plain = quick_start.build(Config(config_dict=scenario_settings("tea"))).model
    assert own.fingerprint != weights_fingerprint(plain.backbone)
    swap(parts.model, own, parts.dataset)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def made(scenario_settings):
    """(a model on `small`, the file of a scenario of `tea`)."""
    file = run_folder_of(scenario_settings("tea", epochs=1)) / "scenario.safetensors"
    return quick_start.build(Config(config_dict=scenario_settings("small"))), file


def unchanged(model):
    return model.n_items, model.projection.weight.data_ptr(), id(model.inputs)


def test_another_backbone(made, scenario_settings, tmp_path):
    _, file = made
    other = tiny_llama(tmp_path / "other", seed=5)
    for more in ({"backbone": str(other)}, {"query_token": "[Q]"}):
        model = quick_start.build(Config(config_dict=scenario_settings("small", **more))).model
        before = unchanged(model)
        with pytest.raises(CheckpointError, match=r"tea belongs to the backbone .* query token '\.'"):
            swap(model, load_scenario(file))
        assert unchanged(model) == before


def test_another_catalogue(made, scenario_settings, small):
    parts, file = made
    before = unchanged(parts.model)
    with pytest.raises(CheckpointError, match="catalogue of tea with 6 ids, but the dataset is small with 9 ids"):
        swap(parts.model, load_scenario(file), parts.dataset)
    # the same items, met in another order
    write_dataset(small, dict(reversed(AFTERNOONS.items())), TEA, name="tea")
    again = quick_start.build(Config(config_dict=scenario_settings("tea")))
    with pytest.raises(CheckpointError, match="in another order"):
        swap(parts.model, load_scenario(file), again.dataset)
    assert unchanged(parts.model) == before


@pytest.mark.parametrize("left", [0, 5, 200, 0.5, -1])
def test_file_cut_short(made, left):
    _, file = made
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    with pytest.raises(CheckpointError, match="is broken or cut short"):
        load_scenario(file)


def test_other_files(made, tmp_path):
    _, file = made
    with pytest.raises(CheckpointError, match="there is no scenario"):
        load_scenario(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is not a scenario"):
        load_scenario(file.with_name("model.safetensors"))
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    for broken in (
        {**tensors, "projection": tensors["projection"][1:]},
        {**tensors, "tokens": tensors["tokens"].flip(0)},
        {**tensors, "text": tensors["text"][:-1]},
    ):
        save_file({name: tensor.contiguous() for name, tensor in broken.items()}, file, metadata)
        with pytest.raises(CheckpointError, match="its parts do not belong together"):
            load_scenario(file)
    save_file(tensors, file, {**metadata, "scenario": "{}"})
    with pytest.raises(CheckpointError, match="broken"):
        load_scenario(file)


def test_another_data_set_is_not_saved(made, scenario_settings, tmp_path):
    parts, _ = made
    tea = quick_start.build(Config(config_dict=scenario_settings("tea")))
    with pytest.raises(CheckpointError, match="has 9 ids, but tea has 6"):
        save_scenario(parts.model, tea.dataset, tmp_path / "x.safetensors")


def test_folder_that_may_not_be_written(made, tmp_path):
    parts, _ = made
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save_scenario(parts.model, parts.dataset, tmp_path / "file" / "x.safetensors")


def test_recommendations_after_a_swap(scenario_settings):
    from recbole_llm.inference.recommender import Recommender

    folders = {name: run_folder_of(scenario_settings(name)) for name in ("small", "tea")}
    parts = {name: quick_start.load(folder) for name, folder in folders.items()}
    expected = Recommender(parts["tea"].model, parts["tea"].dataset).recommend(["a", "h"], k=3)
    model = parts["small"].model
    swap(model, load_scenario(folders["tea"] / "scenario.safetensors"), parts["tea"].dataset)
    assert Recommender(model, parts["tea"].dataset).recommend(["a", "h"], k=3) == expected
