"""Loss and gradients of a batch as one CUDA graph.

A step of a small model such as SASRec is some hundreds of small kernels, and starting them one by one from Python takes
longer than running them. A graph starts them at once. The kernels are the same and draw the same random numbers
(a replay moves the generator on as far as the kernels would have), so losses and weights are the same, too. The
optimiser stays outside: RecBole's Adam keeps its step count on the CPU.
"""

from collections.abc import Callable
from logging import getLogger
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

_WARM_UP = 3  # passes one kernel at a time before the capture, as CUDA graphs require
# RecBole's models whose loss is a function of the batch, the weights and the device's random numbers alone: it neither
# waits for the device, nor draws from Python's or numpy's generators, nor keeps anything between batches.
_CAPTURABLE = ("SASRec", "GRU4Rec")


def is_capturable(config: Any, model: torch.nn.Module, device: torch.device) -> bool:
    """Tell whether the loss of `model` can be replayed from a graph."""
    known = type(model).__module__.startswith("recbole.model.") and type(model).__name__ in _CAPTURABLE
    precise = not config["enable_amp"] and not config["enable_scaler"]
    return bool(config["device_table"]) and known and precise and device.type == "cuda"


class GraphedLoss:
    """Computes the loss of a batch and leaves the gradients in the parameters, from a graph for batches of one shape.

    Args:
        model: in training mode when called.
        loss_function: from an Interaction to a scalar.
        pool: the memory of other graphs, of which one is replayed at a time and its gradients are used before the
            next; None for memory of its own.
    """

    def __init__(
        self, model: torch.nn.Module, loss_function: Callable[[Interaction], Tensor], pool: Any = None
    ) -> None:
        self._pool = pool
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._loss_function = loss_function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False

    def __call__(self, batch: Interaction) -> Tensor:
        """Return the loss of `batch`, a scalar on the device that later calls do not change."""
        if self._graph is None and not self._failed:
            self._capture(batch)
        if self._graph is None or not self._has_shape_of(batch):
            return self._single(batch)
        for name, values in self._inputs.items():
            values.copy_(batch[name])
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a batch of another shape has put its own there
        return self._loss.clone()

    def _single(self, batch: Interaction) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._loss_function(batch)
        loss.backward()
        return loss.detach()

    def _has_shape_of(self, batch: Interaction) -> bool:
        return all(values.shape == batch[name].shape for name, values in self._inputs.items())

    def _capture(self, batch: Interaction) -> None:
        self._inputs = {name: values.clone() for name, values in batch.interaction.items()}
        inputs = Interaction(self._inputs)
        random = torch.cuda.get_rng_state()
        graph = torch.cuda.CUDAGraph()
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._single(inputs)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            for parameter in self._parameters:
                parameter.grad = None
            with torch.cuda.graph(graph, pool=self._pool):
                loss = self._loss_function(inputs)
                loss.backward()
        except RuntimeError as error:  # a kernel that cannot be captured, or no memory left
            getLogger().warning("no CUDA graph can be made, the plain path is taken: %s", error)
            self._failed = True
        else:
            self._graph, self._loss = graph, loss.detach()
            self._gradients = [parameter.grad for parameter in self._parameters]
        torch.cuda.set_rng_state(random)  # as if nothing had been drawn
