"""Whose word counts: command line > dict > files > dataset > model > every run > RecBole, pair by pair."""

import itertools
import shutil

import pytest
import yaml
from small_data import write_dataset

from recbole_llm.config import config as config_module
from recbole_llm.config.config import Config
from recbole_llm.utils.files import read_yaml
from recbole_llm.utils.paths import shipped

NAME = "MAX_ITEM_LIST_LENGTH"
RECBOLE = 50  # recbole/properties/dataset/sample.yaml
# From the weakest to the strongest, with what each says.
LAYERS = {"model": 11, "dataset": 12, "own file": 13, "files": 14, "dict": 15, "command line": 16}


@pytest.fixture
def length_of(workdir, monkeypatch):
    """The value of the setting where the named layers give one, each its own."""
    write_dataset(workdir / "data", name="toy")
    for folder in ("properties/model", "dataset_configs"):
        (workdir / folder).mkdir(parents=True)
    shutil.copy(shipped("properties") / "overall.yaml", workdir / "properties")
    model = read_yaml(shipped("properties") / "model" / "ST2SI.yaml")
    del model[NAME]
    monkeypatch.setattr(config_module, "shipped", lambda folder: workdir / folder)

    def get(layers):
        said = {layer: {NAME: LAYERS[layer]} if layer in layers else {} for layer in LAYERS}
        for path, settings in {
            "properties/model/ST2SI.yaml": {**model, **said["model"]},
            "dataset_configs/toy.yaml": said["dataset"],
            "toy.yaml": said["own file"],
            "more.yaml": said["files"],
        }.items():
            (workdir / path).write_text(yaml.safe_dump(settings))
        return Config(
            "ST2SI",
            "toy.yaml" if "own file" in layers else "toy",
            config_file_list=["more.yaml"],
            config_dict={"data_path": "data", **said["dict"]},
            command_line=[f"--{name}={value}" for name, value in said["command line"].items()],
        )[NAME]

    return get


def test_the_stronger_of_two_counts(length_of):
    for number in (0, 1, 2, len(LAYERS)):
        for layers in itertools.combinations(LAYERS, number):
            assert length_of(layers) == max((LAYERS[layer] for layer in layers), default=RECBOLE), layers


@pytest.mark.parametrize("path", sorted(shipped("dataset_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_dataset_has_the_length_of_its_own_file(workdir, path):
    own = {"LastFM": 10, "Clothing": 20, "Musical": 20, "Steam": 10}.get(path.stem)
    assert Config("ST2SI", path.stem)[NAME] == (own or read_yaml(path).get(NAME, RECBOLE))


def test_the_papers_settings_clip_no_gradients(workdir):
    assert Config("ST2SI", "Scientific")["clip_grad_norm"] is None
