"""States to resume from whose tensors several processes write, each its own rows."""

import contextlib
import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several_processes import together

from recbole_llm.errors import CheckpointError, StorageError
from recbole_llm.runs import checkpoint, resume_parts
from recbole_llm.trainer.split_rows import SplitWeight
from recbole_llm.utils.files import remove_unfinished
from recbole_llm.utils.processes import world

# Five rows are 2 + 2 + 1 in three processes, 3 + 2 in two; of one row some processes have none.
TENSORS = {
    "table": torch.arange(10.0).view(5, 2),
    "row": torch.tensor([[7.0, 8.0]], dtype=torch.bfloat16),
    "vector": torch.arange(5) + 0.5,
}


def split_of(tensor):
    split = SplitWeight(torch.empty(0), len(tensor))
    split.weight = tensor[split.begin : split.end].clone()
    return split


def state_of(part):
    return {
        "description": {"model": "a model"}, "epoch": 3, "common": torch.ones(2),
        "optimizer": {0: {"moment": part("table"), "rows": [part("row"), part("vector")]}},
    }  # fmt: skip


def saved(folder, file_bytes=2**30, scale=1):
    """Write the state, times a number; called in a process."""
    resume_parts._FILE_BYTES = file_bytes
    splits = {name: split_of(scale * tensor) for name, tensor in TENSORS.items()}
    resume_parts.save(Path(folder) / "resume.pt", state_of(lambda name: splits[name].stored(splits[name].weight)))


def read(folder, whole=False):
    """Return own rows of what was written, or all; called in a process."""
    path = Path(folder) / "resume.pt"
    state = checkpoint.load_resume(path, {"model": "a model"})
    moments = state["optimizer"][0]
    if not whole:
        moments["moment"] = split_of(TENSORS["table"]).own(moments["moment"])
        moments["rows"] = [split_of(TENSORS[n]).own(v) for n, v in zip(("row", "vector"), moments["rows"], strict=True)]
    found = resume_parts.read(path, state)
    assert found["epoch"] == 3 and torch.equal(found["common"], torch.ones(2))
    moments = found["optimizer"][0]
    tensors = dict(zip(TENSORS, (moments["moment"], *moments["rows"]), strict=True))
    assert all(type(tensor) is torch.Tensor and tensor.dtype == TENSORS[n].dtype for n, tensor in tensors.items())
    return {name: tensor.tolist() for name, tensor in tensors.items()}


@pytest.fixture
def written(tmp_path):
    """A state that two processes have written, in files of a tensor each."""
    together(saved, 2, str(tmp_path), 1)
    return tmp_path


def parts_in(folder):
    (found,) = folder.glob("resume-*")
    return found


def test_every_process_writes_its_rows_and_nothing_is_gathered(written):
    shards = {}
    for file in parts_in(written).iterdir():
        for name, rows in load_file(file).items():
            shards.setdefault(name.rpartition("/")[2], []).append(len(rows))
    assert {name: sorted(counts) for name, counts in shards.items()} == {"moment": [2, 3], "0": [0, 1], "1": [2, 3]}
    assert not list(written.glob(".*"))
    assert (written / "resume.pt").stat().st_size < 10_000


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_state_is_read_by_any_number_of_processes(written, processes):
    expected = {name: tensor.tolist() for name, tensor in TENSORS.items()}
    if processes == 1:
        assert read(written, whole=True) == expected
        return
    found = together(read, processes, str(written))
    assert {name: [row for each in found for row in each[name]] for name in TENSORS} == expected
    assert [len(each["table"]) for each in found] == [[3, 2], [2, 2, 1]][processes - 2]
    assert together(read, processes, str(written), True) == [expected] * processes


def test_a_state_of_an_older_torch_is_whole(tmp_path):
    together(saved_whole, 2, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]
    expected = {name: tensor.tolist() for name, tensor in TENSORS.items()}
    assert read(tmp_path, whole=True) == expected
    found = together(read, 3, str(tmp_path))
    assert {name: [row for each in found for row in each[name]] for name in TENSORS} == expected


def saved_whole(folder):
    """Write the state as a torch does that cannot write parts; called in a process."""
    resume_parts.can_be_written = lambda: False
    saved(folder)


def test_an_older_torch_cannot_read_parts(written, monkeypatch):
    monkeypatch.setattr(resume_parts, "can_be_written", lambda: False)
    with pytest.raises(CheckpointError, match=r"resume.pt is in parts, which torch .* cannot read: install a later"):
        read(written, whole=True)


def test_the_newer_state_takes_the_place_of_the_older(written):
    older = parts_in(written)
    together(saved, 3, str(written))
    assert parts_in(written) != older
    assert read(written, whole=True) == {name: tensor.tolist() for name, tensor in TENSORS.items()}
    resume_parts.save(written / "resume.pt", state_of(TENSORS.__getitem__))  # of one process
    assert [path.name for path in written.iterdir()] == ["resume.pt"]
    together(saved, 2, str(written))
    resume_parts.remove(written / "resume.pt")
    assert not list(written.iterdir())


def interrupted(folder):
    """End when other numbers are written, but not the file that names their folder; called in a process."""

    def end(*_):
        raise KeyboardInterrupt

    checkpoint.save_resume, resume_parts.meet = end, lambda: None
    with contextlib.suppress(KeyboardInterrupt):
        saved(folder, scale=2)


def test_a_new_folder_that_nothing_names_leaves_with_what_failed(written):
    older = parts_in(written)
    together(interrupted, 2, str(written))
    assert parts_in(written) == older
    assert len(list(written.glob("resume-*"))) == 1


def test_a_folder_that_a_killed_process_had_not_named_is_not_read(written):
    (older,) = written.glob("resume-*")
    shutil.copytree(older, written / "resume-01234567")
    assert read(written, whole=True) == {name: tensor.tolist() for name, tensor in TENSORS.items()}
    together(saved, 2, str(written), 1, 3)
    assert len(list(written.glob("resume-*"))) == 1
    assert read(written, whole=True) == {name: (3 * tensor).tolist() for name, tensor in TENSORS.items()}


def test_what_a_killed_process_was_writing_is_removed(written):
    (written / ".resume-01234567.tmp").mkdir()
    (written / ".resume-01234567.tmp" / "shard").touch()
    (written / ".resume.pt.89abcdef.tmp").touch()
    remove_unfinished(written)
    assert not list(written.glob(".*"))
    assert read(written, whole=True) == {name: tensor.tolist() for name, tensor in TENSORS.items()}


def saved_to_a_full_disk(folder):
    """Write where the system lets the last process write nothing; return its error; called in a process."""
    if not world().is_first:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        saved(folder)
    except StorageError as error:
        return str(error)
    return None


def test_a_full_disk_leaves_the_older_state(written):
    before = parts_in(written)
    for error in together(saved_to_a_full_disk, 2, str(written)):
        assert "could not be written: File too large" in error
    assert parts_in(written) == before
    assert not list(written.glob(".*"))
    assert read(written, whole=True) == {name: tensor.tolist() for name, tensor in TENSORS.items()}


def shards(folder):
    return sorted(parts_in(folder).iterdir())


@pytest.mark.parametrize(
    "break_",
    [
        lambda folder: shutil.rmtree(parts_in(folder)),
        lambda folder: shards(folder)[0].unlink(),
        lambda folder: shards(folder)[0].write_bytes(shards(folder)[0].read_bytes()[:-1]),
        lambda folder: shards(folder)[0].write_bytes(bytes(shards(folder)[0].stat().st_size)),
        lambda folder: (parts_in(folder) / "more.safetensors").touch(),
    ],
    ids=["no folder", "a file is missing", "cut short", "zeros", "one file more"],
)
def test_a_broken_folder_is_one_sentence(written, break_):
    break_(written)
    with pytest.raises(CheckpointError, match=r"is broken and training cannot be resumed from it: remove .*resume.pt"):
        read(written, whole=True)


@pytest.mark.parametrize("named", ["../elsewhere", "", None, "resume-0000000g"])
def test_another_folder_is_never_read(written, named):
    state = torch.load(written / "resume.pt", weights_only=True)
    state["parts"]["folder"] = named
    checkpoint.save_resume(written / "resume.pt", state)
    with pytest.raises(CheckpointError, match=r"resume\.pt is broken"):
        read(written, whole=True)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(written):
    """The folder has safetensors alone: no index as torch's own format has it, which nobody reads."""
    assert all(file.suffix == ".safetensors" for file in shards(written))
    index, executed = parts_in(written) / ".metadata", written / "executed"
    index.write_bytes(pickle.dumps(Evil(executed)))
    with pytest.raises(CheckpointError, match="is broken"):
        read(written, whole=True)
    state = torch.load(written / "resume.pt", weights_only=True)
    state["parts"]["files"][index.name] = index.stat().st_size
    checkpoint.save_resume(written / "resume.pt", state)
    assert read(written, whole=True)["row"] == [[7.0, 8.0]]
    shards(written)[-1].write_bytes(pickle.dumps(Evil(executed)).ljust(shards(written)[-1].stat().st_size))
    with pytest.raises(CheckpointError, match="is broken"):
        read(written, whole=True)
    assert not executed.exists()
