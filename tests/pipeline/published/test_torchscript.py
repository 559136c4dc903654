"""Files of other programs: their tensors are read, nothing of them runs."""

import os
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.published.torchscript import read_script, read_tensors


class Payload:
    """Unpickled by `pickle`, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def scripted(path):
    """Saves a module of two levels, with a buffer, as TorchScript; returns its state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 5), nn.Sequential(nn.BatchNorm2d(3), nn.Linear(7, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(str(path))
    return model.state_dict()


def rewritten(path, out, **changed):
    """Copies an archive with other contents under the given last names."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            last = name.rpartition("/")[2].replace(".", "_")
            new.writestr(name, changed.get(last, old.read(name)))
    return out


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_state_dict_is_read(tmp_path, is_zip):
    state = {"a.b": torch.arange(3)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    assert read_tensors(tmp_path / "a.pt")["a.b"].tolist() == [0, 1, 2]


def test_torchscript_gives_its_parameters_and_buffers(tmp_path):
    expected = scripted(tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_code_of_torchscript_is_never_looked_at(tmp_path):
    expected = scripted(tmp_path / "a.pt")
    changed = rewritten(tmp_path / "a.pt", tmp_path / "b.pt", Sequential_py=b"import os; 1/0")
    assert read_tensors(changed).keys() == expected.keys()


@pytest.mark.parametrize("kind", ["pickle", "zip", "torchscript"])
def test_what_asks_to_be_run_is_refused_and_not_run(tmp_path, kind):
    marker, path = tmp_path / "ran", tmp_path / "a.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    elif kind == "zip":
        torch.save({"a": Payload(marker)}, path)
    else:
        scripted(tmp_path / "b.pt")
        rewritten(tmp_path / "b.pt", path, data_pkl=pickle.dumps(Payload(marker), protocol=2))
    with pytest.raises(CheckpointError, match=r"a\.pt.* asks for .*\.mkdir") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_storage_of_another_size_is_refused(tmp_path):
    scripted(tmp_path / "a.pt")
    short = rewritten(tmp_path / "a.pt", tmp_path / "b.pt", **{"0": b"\0" * 12})
    with pytest.raises(CheckpointError, match=r"has 12 bytes, not"):
        read_tensors(short)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\3\4", b"\x80\x02}q\x00."])
def test_a_file_that_is_none_of_this_is_one_clear_line(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"a\.pt is (no|a damaged|damaged|a pickle, but none)"
    ) as error:
        read_tensors(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


def test_modules_that_hold_one_another_many_times_end(tmp_path):
    scripted(tmp_path / "a.pt")
    module = b"c__torch__.A\nB\n)\x81"
    levels = module + b"q\0"
    for level in range(60):  # Each holds the one below twice: 2 to the 60 paths.
        below = b"h" + bytes([level])
        held = b"}(X\1\0\0\0a" + below + b"X\1\0\0\0b" + below + b"ub"
        levels += module + held + b"q" + bytes([level + 1])
    hostile = b"\x80\2" + levels + b"."
    path = rewritten(tmp_path / "a.pt", tmp_path / "b.pt", data_pkl=hostile)
    assert read_tensors(path) == {}


def test_a_cut_off_file_is_one_clear_line(tmp_path):
    scripted(tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for size in (10, len(data) // 2, len(data) - 1):
        (tmp_path / "b.pt").write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"b\.pt is (a damaged|damaged)"):
            read_tensors(tmp_path / "b.pt")


@pytest.mark.parametrize("value", [[torch.zeros(2)], {"a": 3}, {3: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"no `state_dict` of tensors|of its state is no tensor"
    ):
        read_tensors(tmp_path / "a.pt")


def test_a_small_file_cannot_claim_much_memory(tmp_path):
    """torch's own weights-only reader would allocate these bytes before anyone could object."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    claim = b"\x80\2cbuiltins\nbytearray\n" + pickle.dumps(1 << 62, protocol=2)[2:-1] + b"\x85R."
    path = rewritten(tmp_path / "a.pt", tmp_path / "b.pt", data_pkl=claim)
    with pytest.raises(CheckpointError, match=r"asks for builtins\.bytearray"):
        read_tensors(path)


class Choosy(nn.Module):
    """Has two layers alike, and uses one."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))

    def forward(self, x):
        return self.used(x)


def test_the_text_of_torchscript_tells_which_layers_it_uses(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Choosy(), torch.zeros(2)).save(str(tmp_path / "a.pt"))
    found = read_script(tmp_path / "a.pt")
    assert set(found.tensors) - found.used == {"idle.0.weight", "idle.0.bias"}
    silent = {"test_torchscript_py": b"class Other(Module):\n"}
    found = read_script(rewritten(tmp_path / "a.pt", tmp_path / "b.pt", **silent))
    assert found.used == set(found.tensors)  # Of what is not known nothing is taken to be idle.


def test_text_without_end_is_refused(tmp_path):
    scripted(tmp_path / "a.pt")
    huge = {"Linear_py": b" " * (1 << 25), "linear_py": b" " * (1 << 25)}
    with pytest.raises(CheckpointError, match="claims to hold"):
        read_tensors(rewritten(tmp_path / "a.pt", tmp_path / "b.pt", **huge))
