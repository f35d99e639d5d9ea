"""What a model declares that it needs first, made: arguments of its constructor, and settings that its run stores."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.model.needs import IdModel, OwnPretraining, PretrainedBackbone, PretrainedState
from recbole_llm.runs.context import RunContext
from recbole_llm.stages import id_model, s3rec
from recbole_llm.stages.runner import Runner
from recbole_llm.stages.store import Supplied


def _pretrained(name: str) -> Callable[..., Supplied]:
    """Return a maker of `stages.pretraining`, which imports transformers: models without a language model never do."""

    def make(*given: Any) -> Supplied:
        from recbole_llm.stages import pretraining

        found: Supplied = getattr(pretraining, name)(*given)
        return found

    return make


# Each takes (declaration, settings, dataset, context, runner).
_MAKERS: dict[type, Callable[..., Supplied]] = {
    PretrainedBackbone: _pretrained("fulfil"),
    PretrainedState: _pretrained("fulfil_state"),
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
        made: whether any of it was made now, rather than found.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    made: bool = False


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
    arguments: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    made = False
    for need in needs:
        supplied = _MAKERS[type(need)](need, config, dataset, context, runner)
        arguments[need.argument] = supplied.value
        settings.update(supplied.settings)
        made |= supplied.made
    return Fulfilled(arguments, settings, made)
