"""The end of a run: its best epoch evaluated, and its result stored."""

from typing import Any

from recbole_llm.config.hooks import hooks_of, hooks_of_class
from recbole_llm.data.fingerprint import FINGERPRINT
from recbole_llm.evaluation import candidate_choices
from recbole_llm.quick_start.build import Parts
from recbole_llm.quick_start.outcome import outcome
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.runs.ranks import write_ranks
from recbole_llm.runs.result import RunResult
from recbole_llm.runs.resume_parts import remove as remove_parts
from recbole_llm.utils.processes import world


def evaluate_best(parts: Parts, trainer: Any, rankings: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Evaluate the best epoch under both answers to `repeatable` and write the ranks.

    Returns:
        The metrics ``test``, ``test_other`` and ``valid_other``; and whether validation was ranked, too.
    """
    folder, collector = trainer.run_folder, trainer.eval_collector
    trainer.both_protocols = True
    collector.candidates = rankings["test"]
    test = trainer.evaluate(parts.test, load_best_model=True, show_progress=parts.config["show_progress"])
    # A model that chooses ranks nothing: what it gives is under `candidates`.
    chooses = hooks_of_class(parts.config.model_class).chooses(parts.config)
    metrics = {"test": None if chooses else test, "test_other": trainer.other_result}
    if test is not None and collector.has_ranks() and world().is_first:
        write_ranks(folder / "ranks-test.tsv.gz", parts.dataset, *collector.collected())
    if isinstance(rankings["test"], candidate_choices.CandidateChoices):
        rankings["test"].write_of(folder, parts.test._dataset, parts.config["answer_rule"])
    validated = parts.valid is not None and trainer.best_valid_result is not None
    if validated:
        collector.candidates = rankings["valid"]
        trainer.evaluate(parts.valid, load_best_model=False)
        metrics["valid_other"] = trainer.other_result
        if collector.has_ranks() and world().is_first:
            write_ranks(folder / "ranks-valid.tsv.gz", parts.dataset, *collector.collected())
    return metrics, validated


def store(
    parts: Parts, trainer: Any, metrics: dict[str, Any], took: dict[str, Any], test: Any, valid: Any
) -> dict[str, Any]:
    """Write what a finished run leaves, and return its result.

    Args:
        parts: of the run.
        trainer: after training.
        metrics: see `evaluate_best`.
        took: ``seconds`` of each stage, and how many ``processes`` there were.
        test: what the test part was measured by among few candidates, see `candidate_choices`.
        valid: the same of the validation part; None if it was not measured.
    """
    folder, config = trainer.run_folder, parts.config
    hooks_of(parts.model).save_extras(folder, parts.dataset)
    found = {
        **outcome(parts, trainer, metrics, **took),
        **candidate_choices.results(test, valid, config["answer_rule"] or "strict"),
        "kind": config["MODEL_TYPE"].name.lower(),
        "fingerprint": parts.fingerprint,
    }
    result = RunResult.from_dict(found, folder / run_folder.RESULT)
    result.write(folder)
    remove_parts(folder / checkpoint.RESUME)  # the run is finished: nothing is left to resume from
    (folder / FINGERPRINT).unlink(missing_ok=True)
    return {**result.to_dict(), "path": str(folder / run_folder.RESULT)}
