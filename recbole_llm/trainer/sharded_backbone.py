"""A backbone that is split over the processes of a run while it is trained, by torch's FSDP2 (`fully_shard`).

Every process keeps ceil(rows / processes) rows of each weight, of its gradient and of the optimiser's state; the
processes are all of the run, or those of a machine, and machines have copies then (HSDP). A pass has
the whole weights of one layer at a time: they are gathered before the layer is computed, forward and backward, and its
gradients are added up over processes and split after that. So all processes compute the same number of passes.

The optimiser updates the rows of this process as plain tensors, which share their memory with FSDP2's own: one list of
weights serves clipping, averaging and the optimiser, whatever else the model trains. Evaluation, in which the processes
have different numbers of passes, reads a twin of the backbone that has whole weights for that time and no hooks.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.errors import SettingError
from recbole_llm.trainer.master_weights import MasterWeights
from recbole_llm.trainer.split_rows import SplitWeight
from recbole_llm.utils.collectives import numbers_of_all
from recbole_llm.utils.processes import world

BACKBONE = "backbone"  # the value of the setting `shard`, and the model's attribute
_TRAINED_BYTES = 16  # a trained weight in float32, its gradient and AdamW's two moments
_SHARE = 0.25  # of a device's memory that a whole backbone may take for training


def is_sharded(setting: str | None, model: Any, device: torch.device) -> bool:
    """Tell whether the processes of this run split the model's backbone. All of them call it together.

    Args:
        setting: ``shard``: auto, none or backbone; None for a model without it.
        model: a `TextRecommender`.
        device: of this process.

    Raises:
        SettingError: if this version of torch cannot.
    """
    if setting in (None, "none") or not model.layers_to_shard():
        return False
    if setting == BACKBONE:
        _require_fsdp()
        return True
    if device.type != "cuda" or not _has_fsdp():
        return False
    memory = torch.cuda.get_device_properties(device).total_memory
    return bool(numbers_of_all([training_bytes(model.backbone) > _SHARE * memory]).any())


def training_bytes(backbone: nn.Module) -> int:
    """Return how much memory a whole backbone takes with all that trains it."""
    return sum(
        parameter.numel() * (_TRAINED_BYTES if parameter.requires_grad else parameter.element_size())
        for parameter in backbone.parameters()
    )


def _has_fsdp() -> bool:
    from torch.distributed import fsdp

    module = getattr(fsdp, "FSDPModule", None)
    return hasattr(module, "set_force_sum_reduction_for_comms") and hasattr(module, "set_gradient_divide_factor")


def _require_fsdp() -> None:
    if not _has_fsdp():
        raise SettingError(
            f"shard=backbone adds up gradients, which FSDP2 of torch {torch.__version__} cannot do: set shard=none, or "
            f"install a later torch"
        )


class ShardedBackbone:
    """Splits `model.backbone`, whose weights are the same in every process.

    Trained weights become float32; if they were of lower precision, layers still compute with them in that, and the
    float32 rows are the masters that `MasterWeights` keeps in one process.

    Args:
        model: a `TextRecommender`, on its device; its `backbone_is_sharded` becomes True.
        within_machine: whether the processes of each machine split it, and not all processes. What a layer gathers
            then stays within the machine; gradients are added up over machines after that, [rows / processes of one].

    Attributes:
        splits: the rows of this process of every weight, by the weight's name in the model.
    """

    def __init__(self, model: Any, within_machine: bool = False) -> None:
        self._model = model
        self._whole = _without_weights(model.backbone)
        self._places = _places(self._whole)
        dtypes = {name: parameter.dtype for name, parameter in model.backbone.named_parameters()}
        mesh = _mesh(next(model.backbone.parameters()).device, within_machine)
        _fully_shard(model.backbone, model.layers_to_shard(), mesh)
        self._sharded = model.backbone
        # FSDP2's parameter and the rows that the optimiser updates, by name.
        self._pairs: dict[str, tuple[Any, Tensor]] = {}
        self.splits: dict[str, SplitWeight] = {}
        for name, parameter in self._sharded.named_parameters():
            rows = parameter.to_local().detach().requires_grad_(parameter.requires_grad)
            self._pairs[name] = parameter, rows
            self.splits[f"{BACKBONE}.{name}"] = SplitWeight(rows, len(parameter), dtypes[name], mesh)
        model.backbone_is_sharded = True

    def masters(self, groups: list[dict[str, Any]]) -> "ShardMasters":
        """Put own rows in the place of the sharded parameters of optimiser groups."""
        pairs = list(self._pairs.values())
        splits = [self.splits[f"{BACKBONE}.{name}"] for name in self._pairs]
        return ShardMasters(groups, pairs, splits)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Give the model its backbone with whole weights, in their stored precision, until the block ends.

        All processes call it together. What the block writes into them is lost.
        """
        self._fill()
        self._model.backbone = self._whole
        try:
            yield
        finally:
            self._model.backbone = self._sharded
            self._empty()

    def join(self) -> None:
        """Give the model its backbone with whole weights, for good: it is not trained any more."""
        if not self._model.backbone_is_sharded:
            return
        self._fill()
        self._model.backbone = self._whole
        self._model.backbone_is_sharded = False
        self.splits = {}

    def _fill(self) -> None:
        weights = {
            name: nn.Parameter(split.whole(split.rounded()), requires_grad=split.weight.requires_grad)
            for name, split in self.splits.items()
        }
        for module, leaf, name in self._places:
            setattr(module, leaf, weights[f"{BACKBONE}.{name}"])
        self._whole.train(self._sharded.training)

    def _empty(self) -> None:
        for module, leaf, _ in self._places:
            parameter = getattr(module, leaf)
            setattr(module, leaf, nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad))


class ShardMasters(MasterWeights):
    """Puts own rows in the place of sharded parameters in optimiser groups, as `MasterWeights` puts float32 masters.

    Args:
        groups: AdamW's parameter groups; changed in place.
        pairs: FSDP2's parameters, and the rows of this process that share their memory.
        splits: of the same weights.
    """

    def __init__(
        self, groups: list[dict[str, Any]], pairs: list[tuple[Any, Tensor]], splits: list[SplitWeight]
    ) -> None:
        self._rows = {id(parameter): rows for parameter, rows in pairs}
        self._trained = [(parameter, rows) for parameter, rows in pairs if parameter.requires_grad]
        self._splits = {id(rows): split for (_, rows), split in zip(pairs, splits, strict=True)}
        self._low_splits: list[SplitWeight] = []
        super().__init__(groups)

    def _master(self, parameter: Tensor) -> Tensor:
        rows = self._rows.get(id(parameter))
        if rows is None:
            return super()._master(parameter)
        split = self._splits[id(rows)]
        if split.dtype != torch.float32:
            self.low.append(parameter)
            self.masters.append(rows)
            self._low_splits.append(split)
        return rows

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the gradients of the sharded parameters to the rows of this process."""
        for parameter, rows in self._trained:
            rows.data = parameter.to_local()  # which FSDP2 may have moved in the first pass
            rows.grad = None if parameter.grad is None else parameter.grad.to_local()
            parameter.grad = None

    def give_weights(self) -> None:
        """Nothing: FSDP2 rounds the rows when it gathers them."""

    def rounded(self, state: list[Tensor]) -> list[Tensor]:
        """Return what the rows of this process are with the masters that `own` returned."""
        return [master.to(split.dtype) for split, master in zip(self._low_splits, state, strict=True)]

    def state(self) -> list[Tensor]:
        """Return the masters, as `SplitWeight.stored` does. All processes call it together."""
        return [split.stored(split.weight.detach()) for split in self._low_splits]

    def own(self, state: list[Tensor]) -> list[Tensor]:
        """Return the rows of this process of whole masters."""
        return [split.own(stored) for split, stored in zip(self._low_splits, state, strict=True)]


def _without_weights(backbone: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters take no memory."""
    empty: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in backbone.parameters()
    }
    return copy.deepcopy(backbone, empty)


def _places(module: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Return the owner and attribute of every parameter, and the name under which it is met first."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        (owner, leaf, names[id(parameter)])
        for owner in module.modules()
        for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
    ]


def _mesh(device: torch.device, within_machine: bool) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    size = world().size
    if not within_machine:
        return init_device_mesh(device.type, (size,))
    local = numbers_of_all([world().local_size]).flatten().tolist()
    if len(set(local)) > 1 or size % local[0]:
        raise SettingError(
            f"shard_within=machine needs as many processes on each machine, but there are {sorted(set(local))}: start "
            f"as many on each, or set shard_within=all"
        )
    names = ("machine", "within machine")
    return init_device_mesh(device.type, (size // local[0], local[0]), mesh_dim_names=names)


def _fully_shard(backbone: nn.Module, layers: list[nn.Module], mesh: Any) -> None:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    low = [parameter.dtype for parameter in trained if parameter.dtype != torch.float32]
    # Inputs are cast where they are used: FSDP2 would hand copies of them to the layers, which write states into them.
    dtypes: dict[str, Any] = {"param_dtype": low[0], "reduce_dtype": torch.float32} if low else {}
    policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    if not trained:  # no backward pass would free what the last module gathered
        options["reshard_after_forward"] = True
    for module in (*layers, backbone):
        # Not all layers at once: a device holds the float32 weights of one.
        for parameter in module.parameters():
            if parameter.requires_grad and not hasattr(parameter, "to_local"):
                parameter.data = parameter.data.float()
        fully_shard(module, **options)
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            # The loss of a pass is a part of the step's, so gradients are added up, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
