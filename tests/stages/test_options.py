"""Where to run: what is no device is one clear line."""

import pytest

from pipeline.errors import ConfigError
from stages.options import _launch, resolve_device


@pytest.mark.parametrize("devices", ["-1", "abc", "", "1.5", "²", "cuda", "0", "1,", "0,0,0,x"])
def test_devices_are_numbers(devices: str) -> None:
    with pytest.raises(ConfigError, match="give a number, a list such as 0,1, or auto"):
        _launch("cpu", {"devices": devices, "num_nodes": 1, "strategy": "auto"})


def test_a_list_of_devices_is_not_for_a_cpu() -> None:
    with pytest.raises(ConfigError, match="cannot start on --accelerator cpu --devices 0,1: "):
        _launch("cpu", {"devices": "0,1", "num_nodes": 1, "strategy": "auto"})


@pytest.mark.parametrize("name", ["meta", "hip", "xla", "", "cpu:x", "gpu"])
def test_a_device_is_one_that_models_run_on(name: str) -> None:
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


def test_the_cpu_is_there() -> None:
    assert resolve_device("cpu") == "cpu"
    assert _launch("cpu", {"devices": "1", "num_nodes": 1, "strategy": "auto"}).world_size == 1
