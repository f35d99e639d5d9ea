"""A backbone that two processes split by FSDP2, against one process that has all of it."""

import os
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from several_processes import together
from transformers import AutoModel

from recbole_llm.config.hooks import ModelHooks
from recbole_llm.errors import SettingError
from recbole_llm.model.sequential_recommender.idleadapter import IDLEAdapter
from recbole_llm.model.sequential_recommender.st2si import ST2SI
from recbole_llm.trainer import sharded_backbone
from recbole_llm.trainer.sharded_backbone import is_sharded, training_bytes
from recbole_llm.trainer.shared_steps import SharedSteps
from recbole_llm.utils.processes import started, world

STEPS = 3
# Adapters are float32, beside frozen weights in bfloat16. Bounds are those of the arithmetic's rounding.
KINDS = {"fp32": 1e-6, "bf16": 2**-8, "adapters": 2**-8}


class Reader(ModelHooks, torch.nn.Module):
    """A language model, whose states are brought near 0."""

    def __init__(self, folder, kind):
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, dtype=torch.float32 if kind == "fp32" else torch.bfloat16)
        if kind == "adapters":
            for name, parameter in self.backbone.named_parameters():
                parameter.requires_grad_("norm" in name)
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    def layers_to_shard(self):
        return list(self.backbone.layers)

    def loss(self, tokens):
        # Norms of float32 among weights of bfloat16 are how adapters are mixed; autocast multiplies what is mixed.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.backbone.norm.weight.dtype != self.dtype):
            return self.backbone(input_ids=tokens, use_cache=False).last_hidden_state.float().square().sum()

    @property
    def dtype(self):
        return self.backbone.embed_tokens.weight.dtype


def whole_of(weight):
    """Return all rows of a weight as a state to resume from has it: in parts, or as it is."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def trained(folder, kind, sharded=True, within_machine=False, norm_type=2.0):
    """Train a few steps, the last one clipped, and return what is left.

    Called in a process, which has its part of each step. AdamW's eps is so large that the size of gradients counts.
    """
    torch.manual_seed(0)
    batches = torch.randint(3, 300, (STEPS, 5, 9))
    model = Reader(folder, kind)
    shapes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    shared = SharedSteps(model, sharded=sharded and world().is_shared, within_machine=within_machine)
    groups = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    masters = shared.masters(groups)
    weights = groups[0]["params"]
    optimizer = torch.optim.AdamW(groups, lr=0.01, eps=0.1)
    losses = []
    for tokens in batches.unbind():
        loss = model.loss(tokens[world().rank :: world().size]) / tokens.numel()
        loss.backward()
        losses.append(loss.item())
        masters.take_gradients()
        shared.add_gradients(weights)
        if len(losses) == STEPS:
            shared.clip(weights, max_norm=0.5, norm_type=norm_type)
        optimizer.step()
        optimizer.zero_grad()
        masters.give_weights()
    held = sum(getattr(parameter, "_local_tensor", parameter).numel() for parameter in model.parameters())
    moments = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    stored = {name: weight.float().numpy() for name, weight in shared.in_first(model, model.state_dict()).items()}
    low = [whole_of(weight).numpy().copy() for weight in masters.state()]
    with shared.joined():
        whole = {name: weight.float().numpy() for name, weight in model.state_dict().items()}
    # Numbers that bfloat16 does not have: a master that is only rounded cannot give them back.
    given = [torch.linspace(0.1, 0.2, shape.numel()).view(shape) for shape in shapes[: len(low)]]
    masters.load_state(masters.own(given))
    back = all(torch.equal(whole_of(found), known) for found, known in zip(masters.state(), given, strict=True))
    return {
        "losses": losses, "held": held, "moments": moments, "masters": low, "whole": whole, "stored": stored,
        "given back": back,
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["fp32", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bf16", "adapters"))]
)
def test_a_split_backbone_is_trained_as_a_whole_one(tiny, kind):
    folder, tolerance = str(tiny["llama"]), KINDS[kind]
    one, (first, second) = trained(folder, kind), together(trained, 2, folder, kind)
    np.testing.assert_allclose(np.add(first["losses"], second["losses"]), one["losses"], rtol=max(tolerance, 1e-5))
    assert first["stored"].keys() == one["stored"].keys()
    for name, weight in one["stored"].items():
        np.testing.assert_allclose(first["stored"][name], weight, rtol=tolerance, atol=tolerance, err_msg=name)
        np.testing.assert_array_equal(first["whole"][name], first["stored"][name])
        np.testing.assert_array_equal(second["whole"][name], first["stored"][name])
    assert second["stored"] == {}
    assert first["given back"] and second["given back"] and one["given back"]
    for found, known in zip(first["masters"], one["masters"], strict=True):
        np.testing.assert_allclose(found, known, rtol=tolerance, atol=tolerance)
        assert (found != torch.from_numpy(found).bfloat16().float().numpy()).any(), "rounded: it is no master"
    assert (len(first["masters"]) > 0) == (kind == "bf16")
    # No process has more than half of the weights, and of what trains them.
    for size in ("held", "moments"):
        assert first[size] + second[size] == one[size]
        assert max(first[size], second[size]) < 0.51 * one[size]


@pytest.mark.parametrize(("kind", "norm_type"), [("fp32", 2.0), ("fp32", float("inf")), ("bf16", 2.0)])
def test_machines_that_split_the_backbone_within_have_copies(tiny, kind, norm_type):
    folder, tolerance = str(tiny["llama"]), KINDS[kind]
    one = trained(folder, kind, norm_type=norm_type)
    found = together(trained, 4, folder, kind, True, True, norm_type, on_each=2)
    losses = np.sum([each["losses"] for each in found], axis=0)
    np.testing.assert_allclose(losses, one["losses"], rtol=max(tolerance, 1e-5))
    for name, weight in one["stored"].items():
        np.testing.assert_allclose(found[0]["stored"][name], weight, rtol=tolerance, atol=tolerance, err_msg=name)
        for each in found:
            np.testing.assert_array_equal(each["whole"][name], found[0]["stored"][name])
    assert [each["stored"] for each in found[1:]] == [{}] * 3
    assert all(each["given back"] for each in (one, *found))
    for size in ("held", "moments"):  # each machine has all, and a process half of it
        first, second, third, fourth = (each[size] for each in found)
        assert (first, second) == (third, fourth)
        assert first + second == one[size]
        assert max(first, second) < 0.51 * one[size]


def unequal_machines(folder):
    """Return the error of machines that have two processes and one; called in a process."""
    os.environ["LOCAL_WORLD_SIZE"] = str(2 - world().rank // 2)
    with pytest.raises(SettingError) as error, mock.patch.object(sharded_backbone, "world", started):
        trained(folder, "fp32", within_machine=True)
    return str(error.value)


def test_machines_of_unequal_size_are_refused(tiny):
    for error in together(unequal_machines, 3, str(tiny["llama"])):
        assert error.startswith("shard_within=machine needs as many processes on each machine, but there are [1, 2]: ")


class Named(torch.nn.Module):
    """A backbone of 12 trained and 6 frozen weights, and a layer of it."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(5, 2)
        self.backbone.frozen = torch.nn.Parameter(torch.zeros(6), requires_grad=False)

    def layers_to_shard(self):
        return [self.backbone]


class NoLayers(Named):
    def layers_to_shard(self):
        return []


@pytest.mark.parametrize("model", [ST2SI, IDLEAdapter])
def test_compiled_layers_are_not_split(model):
    config = {"model": model.__name__, "loss_type": "CE", "compile": True, "shard": "auto", "mmd_weight": 0}
    model.check_processes(config)
    settings = {"compile": True, "tuning": SimpleNamespace(compile=True)}
    assert model.layers_to_shard(SimpleNamespace(settings=SimpleNamespace(**settings), _layers=["a layer"])) == []
    with pytest.raises(SettingError, match="compile=True and shard=backbone do not go together"):
        model.check_processes({**config, "shard": "backbone"})


def test_what_shard_means(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert training_bytes(Named().backbone) == 16 * 12 + 4 * 6
    assert training_bytes(Named().backbone.bfloat16()) == 16 * 12 + 2 * 6
    assert is_sharded("backbone", Named(), cpu)
    for setting in (None, "none", "auto"):
        assert not is_sharded(setting, Named(), cpu)
    assert not is_sharded("backbone", NoLayers(), cpu)
    for memory, expected in ((4 * 216, False), (4 * 216 - 1, True)):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _, memory=memory: type("", (), {"total_memory": memory})
        )
        assert is_sharded("auto", Named(), gpu) is expected
        assert not is_sharded("none", Named(), gpu)
    monkeypatch.setattr(sharded_backbone, "_has_fsdp", lambda: False)
    assert not is_sharded("auto", Named(), gpu)
    with pytest.raises(SettingError, match=r"shard=backbone adds up gradients, .* set shard=none, or install a later"):
        is_sharded("backbone", Named(), cpu)
