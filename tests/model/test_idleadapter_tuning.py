"""IDLE-Adapter with a language model that is trained, too."""

import numpy as np
import pytest
import torch
from adapter_parts import loss_of, trainer_of
from small_data import small_settings
from testing.interruption import interrupted_after_first_epoch

from recbole_llm.errors import SettingError
from recbole_llm.quick_start.run import load, run


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_trained_language_model_changes_and_is_stored(build, tuning):
    """One step moves the weights named, leaves all others as they are, and the checkpoint holds what moved."""
    parts = build(tuning=tuning, lora_rank=2, learning_rate=0.01, train_batch_size=64, epochs=1)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    trainer = trainer_of(parts)
    trainer._train_epoch(None, 0)
    moved = {name for name, value in parts.model.state_dict().items() if not torch.equal(value, before[name])}
    of_backbone = {name for name in moved if name.startswith("backbone.")}
    assert of_backbone and all(("lora_" in name) == (tuning == "lora") for name in of_backbone)
    assert not any(name.startswith("id_model.") for name in moved)
    assert moved <= set(parts.model.stored_state())
    groups = parts.model.parameter_groups()
    assert len(groups) == 3 and len({group["lr"] for group in groups}) == 1
    other = build(tuning=tuning, backbone_learning_rate=1e-5, head_learning_rate=1e-2, learning_rate=1e-3)
    assert [group["lr"] for group in other.model.parameter_groups()] == [1e-3, 1e-2, 1e-5]


def test_low_rank_adapters_start_at_the_frozen_model(build):
    """peft's second factor is 0 at first: the loss is that of the frozen model, with gradients for the adapters."""
    frozen, lora = build(), build(tuning="lora", lora_rank=2)
    lora.model.load_state_dict(frozen.model.stored_state(), strict=False)
    losses = []
    for parts in (frozen, lora):
        trainer_of(parts)
        _, passes = parts.model.prepared_step(parts.model.training_samples(np.random.default_rng(0)))
        losses.append(sum(parts.model.pass_loss_sum(part) for part in passes))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    losses[1].backward()
    second = [p for name, p in lora.model.backbone.named_parameters() if "lora_B" in name]
    assert second and all(p.grad.abs().max() > 0 for p in second)


def test_a_run_with_a_trained_language_model_is_loaded_as_it_was(small, rough_models, id_runs):
    settings = small_settings(
        small, model="IDLEAdapter", backbone=str(rough_models["bert"]), id_model_path=id_runs(), tuning="lora",
        lora_rank=2, max_prompt_tokens=128, MAX_ITEM_LIST_LENGTH=6, epochs=2, train_batch_size=8, learning_rate=0.01,
    )  # fmt: skip
    result = run(settings=settings)
    parts = load(result["path"])
    ranks = []
    with torch.no_grad():
        for interaction, *_ in parts.test:
            scores = parts.model.full_sort_predict(interaction)
            own = scores.gather(1, interaction["item_id"][:, None])
            ranks += (scores >= own).sum(dim=1).tolist()
    assert result["test"]["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)), abs=6e-5)


def test_unknown_tuning_of_the_language_model_is_refused(build):
    with pytest.raises(SettingError, match="tuning=ilp must be frozen, lora or full"):
        build(tuning="ilp")


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_resumed_run_aligns_with_the_same_states(small, rough_models, id_runs, tuning):
    """H~ (eq. 12) is that of the language model before any of it was trained, also for a run that was interrupted."""
    settings = small_settings(
        small, model="IDLEAdapter", backbone=str(rough_models["llama"]), id_model_path=id_runs(), lora_rank=2,
        tuning=tuning, mmd_weight=1.0, max_prompt_tokens=128, MAX_ITEM_LIST_LENGTH=6, epochs=3,
        train_batch_size=8, learning_rate=0.01, resume_seconds=0,
    )  # fmt: skip
    whole = run(settings=settings)
    with interrupted_after_first_epoch():
        run(settings=settings, folder=small / "half")
    assert run(resume=small / "half")["history"] == whole["history"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone_learning_rate": "fast"}, "backbone_learning_rate=fast must be a number from 0"),
        ({"backbone_learning_rate": -1}, "backbone_learning_rate=-1 must be a number from 0"),
        ({"lora_alpha": "x"}, "lora_alpha=x must be a number above 0"),
        ({"weight_average": "x"}, "weight_average=x must be a number above 0 and below 1"),
    ],
)
def test_wrong_settings_of_its_training(build, small, settings, message):
    with pytest.raises(SettingError, match=message):
        build(tuning="lora", id_model_path=None, **settings)
    assert not list(small.glob("saved/id-*")), "nothing was trained before"


@pytest.mark.parametrize("backbone", ["bert", "llama"])
@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_checkpointed_layers_give_the_same_gradients_and_keep_their_inputs_alone(build, backbone, tuning):
    losses, gradients, kept = [], [], []
    for checkpointing in (False, True):
        parts = build(backbone, tuning=tuning, lora_rank=2, gradient_checkpointing=checkpointing, mmd_weight=0.5)
        trainer_of(parts)
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(parts)
        loss.backward()
        losses.append(loss.item())
        kept.append(sum(sizes.values()))
        gradients.append({name: p.grad for name, p in parts.model.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1]
    assert gradients[0].keys() == gradients[1].keys() and any("adapter" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert kept[1] < kept[0] / 2
