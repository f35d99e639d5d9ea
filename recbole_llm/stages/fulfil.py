"""What a model declares that it needs first, made: arguments of its constructor, and settings that its run stores."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.model.needs import IdModel, OwnPretraining, PretrainedBackbone, PretrainedState
from recbole_llm.runs.context import RunContext
from recbole_llm.stages import id_model, pretraining, s3rec
from recbole_llm.stages.runner import Runner

# Each takes (declaration, settings, dataset, context, runner) and returns the argument, and the settings to store.
_MAKERS: dict[type, Callable[..., tuple[Any, dict[str, Any]]]] = {
    PretrainedBackbone: pretraining.fulfil,
    PretrainedState: pretraining.fulfil_state,
    IdModel: id_model.fulfil,
    OwnPretraining: s3rec.fulfil,
}


@dataclass(frozen=True)
class Fulfilled:
    """What the stages of a model gave.

    Attributes:
        arguments: for the model's constructor, by name.
        settings: to store with the run beside those that were given, so that it is loaded and resumed with what it was
            built from.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def fulfil(needs: Iterable[Any], config: Any, dataset: Any, context: RunContext, runner: Runner) -> Fulfilled:
    """Find or make what a model needs, in the order of its declarations.

    Args:
        needs: the model's `stages`.
        config: the settings of the run.
        dataset: its dataset, all interactions.
        context: of the run.
        runner: trains and loads the runs that a stage consists of.

    Raises:
        RecBoleLLMError: one of its kinds, whose message says what to do.
    """
    found = Fulfilled()
    for need in needs:
        value, settings = _MAKERS[type(need)](need, config, dataset, context, runner)
        found.arguments[need.argument] = value
        found.settings.update(settings)
    return found
