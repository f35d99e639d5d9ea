"""What a run would do: its settings, its data, what it would load and train first. Nothing is trained or written."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.backbone.resolve import locate
from recbole_llm.cli.show import show
from recbole_llm.config import names
from recbole_llm.config.config import Config
from recbole_llm.config.given_dataset import given_dataset
from recbole_llm.data.build import create_dataset, data_preparation
from recbole_llm.runs import checkpoint
from recbole_llm.runs import folder as run_folder
from recbole_llm.stages import id_model, pretraining, s3rec
from recbole_llm.stages.store import digest
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped
from recbole_llm.utils.values import write_value

Files = Sequence[str | Mapping[str, Any]]


def show_dry_run(files: Files, line: Sequence[str], resume: str | None, everything: bool) -> None:
    """Print what ``run`` would do.

    Args:
        files: YAML files with settings, or such settings.
        line: ``--name=value`` settings.
        resume: the folder of a run to resume; None for a new run.
        everything: whether all settings are printed, not only those that differ from the defaults.

    Raises:
        RecBoleLLMError: as the run would, for settings and data that cannot be.
    """
    stored = {} if resume is None else run_folder.open_existing(resume)[1]
    config = Config(config_file_list=files, config_dict=stored, command_line=line)
    here = names.has_folder(config.dataset, Path(config.merged["data_path"]))
    show("settings" if everything else "settings that differ from the defaults")
    _print_settings(config, _sources(config, files, stored, line), everything)
    show("\ndataset")
    _print_dataset(config, here)
    show("\nloaded")
    _print_backbone(config)
    show("\ntrained first")
    unknown = [] if here else ["  not known before the dataset is here"]
    show("\n".join(unknown or list(_trained_first(config)) or ["  nothing"]))
    show("\nrun folder")
    name = f"{config.model}-{config.dataset}-<time>-{run_folder.digest(config.merged)}"
    show(f"  {resume or Path(config['checkpoint_dir']) / name}")


# -- settings ----------------------------------------------------------------------------------------------------------


def _sources(config: Config, files: Files, stored: dict[str, Any], line: Sequence[str]) -> dict[str, str]:
    """Return where each setting comes from: the last place that names it."""
    recbole, ours = names.recbole_folder() / "properties", shipped("properties")
    of_run = [*names.model_files(config.model), *names.dataset_files(config.dataset)]
    of_recbole = [file for file in of_run if file.is_relative_to(recbole)]
    layers = [recbole / "overall.yaml", *sorted(recbole.glob("quick_start_config/*.yaml"))]
    layers += [recbole / "dataset" / "sample.yaml", *of_recbole, ours / "overall.yaml"]
    layers += [file for file in of_run if file not in of_recbole]
    found: dict[str, str] = {}
    for path in layers:
        owner = "RecBole's " if path.is_relative_to(recbole) else ""
        found |= dict.fromkeys(read_yaml(path), f"{owner}{path.parent.name}/{path.name}")
    found |= dict.fromkeys(config.of_dataset, str(config.named.file or config.named.folder))
    for file in files:
        if isinstance(file, Mapping):
            found |= dict.fromkeys(file, "the paper's row")
        else:
            found |= dict.fromkeys(read_yaml(file), str(file))
    found |= dict.fromkeys(stored, "the stored run")
    return found | {text[2:].partition("=")[0]: "the command line" for text in line}


def _print_settings(config: Config, sources: dict[str, str], everything: bool) -> None:
    given = {name: value for name, value in config.given.items() if name == "data_path"}
    named = {"model": config.model, "dataset": str(config.named.file or config.dataset)}
    defaults = {} if everything else Config(config_dict={**given, **named}).merged
    shown = {
        name: value
        for name, value in sorted(config.merged.items())
        if name in ("model", "dataset") or everything or value != defaults.get(name)
    }
    width = max(len(name) for name in shown)
    for name, value in shown.items():
        text = f"{name + ':':{width + 1}} {write_value(run_folder.plain(value))}"
        source = sources.get(name) if everything or name in config.given else None
        show(f"  {text:46} # {source or 'follows from others'}")


# -- data and models ---------------------------------------------------------------------------------------------------


def _print_dataset(config: Config, here: bool) -> None:
    if not here:
        show(f"  {config.dataset} is not in {config.merged['data_path']}: it is prepared first")
        show(f"  recbole-llm prepare --dataset={config.named.file or config.dataset} does that alone")
        return
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        dataset = create_dataset(config)
        parts = data_preparation(config, dataset)
    finally:
        logging.disable(disabled)
    counts = {"users": dataset.user_num - 1, "items": dataset.item_num - 1, "interactions": dataset.inter_num}
    show(f"  {config['data_path']}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    rows = zip(("train", "valid", "test"), parts, strict=True)
    show("  rows: " + ", ".join(f"{0 if part is None else len(part._dataset):,} {name}" for name, part in rows))


def _print_backbone(config: Config) -> None:
    backbone = config["pretrained_backbone"] or config["backbone"]
    if not backbone:
        show(f"  nothing: {config.model} reads no text with a language model")
        return
    status = locate(str(backbone))
    where = "is not here" if status.folder is None else f"is here ({status.source}): {status.folder}"
    show(f"  the language model {backbone} {where}{f'; {status.advice}' if status.advice else ''}")


def _trained_first(config: Config) -> Iterator[str]:
    """Yield what the run needs first, and whether it is there."""
    for what, folder, made in _stages(config):
        if folder is None:
            yield f"  {what}: is trained first"
            continue
        resumed = (folder / checkpoint.RESUME).is_file()
        state = "is there" if made(folder) else "is resumed" if resumed else "is trained first"
        yield f"  {what}: {state}, in {folder}"


def _stages(config: Config) -> Iterator[tuple[str, Path | None, Callable[[Path], bool]]]:
    """Yield each stage that the run needs: its name, its folder (None: not known yet), and what tells that it is made.

    This is the one place here that knows the stages; it asks each for the folder that the run would take.
    """
    saved = Path(config["checkpoint_dir"])
    if config["pretrain_datasets"] and not (config["pretrained_backbone"] or config["pretrained_state"]):
        settings = pretraining.PretrainSettings.from_config(config)
        yield (
            f"the pre-training on {', '.join(settings.datasets)}",
            _pretraining_folder(config, settings),
            _is_pretrained,
        )
    if config["id_model_path"]:
        yield "the ID model", Path(config["id_model_path"]), _is_finished
    elif config["id_model"]:
        own = id_model.settings_of(config)
        folder = saved / f"id-{own['model']}-{config['dataset']}-{digest(id_model.shape(config, own))}"
        yield f"the ID model {config['id_model']}", folder, _is_finished
    if config.model == "S3Rec" and config["train_stage"] == "both" and not config["pre_model_path"]:
        folder = saved / f"pretrain-S3Rec-{config['dataset']}-{digest(s3rec.shape(config))}"
        yield "the pre-training of S3Rec", folder, lambda folder: (folder / checkpoint.WEIGHTS).is_file()


def _pretraining_folder(config: Config, settings: pretraining.PretrainSettings) -> Path | None:
    """Return the folder of a pre-training; None if a source or the language model is not here, which its hash needs."""
    given = [given_dataset(name) for name in settings.datasets]
    here = all(g.folder or names.has_folder(g.name, Path(config.merged["data_path"])) for g in given)
    if not here or locate(str(config["backbone"])).folder is None:
        return None
    sources = [pretraining.source_config(config, name) for name in settings.datasets]
    settings = pretraining.by_name(settings, sources)
    name = f"{pretraining.folder_name(config, settings)}-{digest(pretraining.shape(config, settings, sources))}"
    return Path(config["checkpoint_dir"]) / name


def _is_finished(folder: Path) -> bool:
    return (folder / run_folder.RESULT).is_file()


def _is_pretrained(folder: Path) -> bool:
    return any(folder.glob("*-epoch-*"))
