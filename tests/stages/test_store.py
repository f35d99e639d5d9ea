"""What a run needs first: found by all that shaped it, made once, and made again where it was cut short."""

import threading
import time

import pytest

from recbole_llm.errors import StorageError
from recbole_llm.stages.store import digest, find_or_make

SHAPE = {"settings": {"seed": 1, "layers": [1, 2]}, "files": {"a.inter": "00ff"}}


class Things:
    """Makes a file in a folder, and counts."""

    def __init__(self, root):
        self.root, self.made = root, []

    def get(self, shape=SHAPE, make=None, **more):
        return self.find(shape, make, **more).folder

    def find(self, shape=SHAPE, make=None, **more):
        return find_or_make(
            self.root, "thing", shape, lambda folder: (folder / "whole").exists(), make or self.make, **more
        )

    def make(self, folder):
        assert not folder.exists()
        folder.mkdir()
        time.sleep(0.05)
        (folder / "whole").touch()
        self.made.append(folder)


@pytest.fixture
def things(tmp_path):
    return Things(tmp_path / "saved")


def test_it_is_found_again(things):
    folder = things.get()
    assert folder == things.root / f"thing-{digest(SHAPE)}"
    assert things.get() == folder
    assert things.made == [folder]


def test_it_says_whether_it_was_made(things):
    assert [things.find().made, things.find().made] == [True, False]


def test_the_order_of_settings_is_no_difference_and_their_values_are(things):
    assert things.get({"b": 1, "a": (2, 3)}) == things.get({"a": [2, 3], "b": 1})
    assert things.get({"b": 1, "a": (3, 2)}) not in (things.made[0], things.get({"b": 2, "a": (2, 3)}))
    assert len(things.made) == 3


def test_digest_is_that_of_version_0_1(things):
    """Folders that are there are found: ten digits of SHA-256 over the sorted JSON text."""
    assert digest({"b": [1], "a": None}) == "734c26e342"


def test_what_was_cut_short_is_made_again(things):
    folder = things.root / f"thing-{digest(SHAPE)}"
    folder.mkdir(parents=True)
    (folder / "half").touch()
    things.get()
    assert things.made == [folder]
    assert not (folder / "half").exists()


def test_what_can_be_resumed_stays(things):
    folder = things.root / f"thing-{digest(SHAPE)}"
    folder.mkdir(parents=True)
    (folder / "resume.pt").touch()
    found = []
    things.get(make=lambda folder: found.extend(folder.iterdir()))
    assert [file.name for file in found] == ["resume.pt"]


def test_leftovers_alone_are_removed(things):
    folder = things.root / f"thing-{digest(SHAPE)}"
    (folder / "data-1").mkdir(parents=True)
    (folder / "kept").touch()
    found = []
    things.get(make=lambda folder: found.extend(folder.iterdir()), leftovers=lambda folder: folder.glob("data-*"))
    assert [file.name for file in found] == ["kept"]


def test_a_failure_leaves_the_lock_free(things):
    def fail(folder):
        raise ValueError

    with pytest.raises(ValueError):
        things.get(make=fail)
    assert things.get() == things.made[0]


def test_four_at_once_make_it_once(things):
    threads = [threading.Thread(target=things.get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(things.made) == 1


def test_root_that_is_a_file(things):
    things.root.touch()
    with pytest.raises(StorageError, match="saved"):
        things.get()
