"""What is decided for a device, and what it lacks."""

import logging

import pytest
import torch

from bigramlm.device import device as module
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import SMALL_BELOW, decide, set_up
from bigramlm.errors import UserError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Makes the machine look as if it had these devices."""

    def make(*, cuda: int = 0, mps: bool = False, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    make()
    return make


def decided(n_params: int = 1000, tokens: int = 100, **fields: object) -> DeviceConfig:
    return decide(DeviceConfig(**fields), n_params=n_params, tokens=tokens)  # type: ignore[arg-type]


def test_auto_takes_cuda_then_mps_then_cpu(machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert decided().name == "cpu"
    assert "no cuda and no mps" in caplog.text
    machine(mps=True)
    assert decided().name == "mps"
    machine(cuda=1, mps=True)
    assert decided().name == "cuda"


def test_an_absent_device_is_refused_with_what_there_is(machine) -> None:
    with pytest.raises(UserError, match=r"device.name=cuda: .* it has: cpu"):
        decided(name="cuda")
    machine(cuda=2)
    assert decided(name="cuda:1").name == "cuda:1"
    with pytest.raises(UserError, match=r"device.name=cuda:2: there are 2"):
        decided(name="cuda:2")
    with pytest.raises(UserError, match=r"device.name=mps: .* it has: cuda, cpu"):
        decided(name="mps")


def test_precision(machine) -> None:
    assert decided().precision == "fp32"
    assert decided(precision="bf16").precision == "bf16"
    with pytest.raises(UserError, match=r"device.precision=fp16: a CPU"):
        decided(precision="fp16")
    machine(cuda=1)
    assert decided(n_params=10_000_000).precision == "bf16"
    assert decided(n_params=1000).precision == "fp32"
    machine(cuda=1, bf16=False)
    assert decided(n_params=10_000_000).precision == "fp32"
    with pytest.raises(UserError, match=r"device.precision=bf16: this GPU"):
        decided(precision="bf16")


def test_threads_follow_the_size_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ALL_THREADS", 8)
    edge = int(SMALL_BELOW / 6)
    assert decided(n_params=edge - 1, tokens=1).threads == "1"
    assert decided(n_params=edge + 1, tokens=1).threads == "8"
    assert decided(threads="3").threads == "3"


def test_nothing_stays_on_auto() -> None:
    assert "auto" not in vars(decided()).values()


def test_set_up_sets_the_process() -> None:
    set_up(decided(name="cpu", threads="1", deterministic=True))
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    set_up(decided(name="cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "fields",
    [{"name": "gpu"}, {"name": "cuda:x"}, {"precision": "half"}, {"threads": "0"}, {"threads": "many"}],
    ids=str,
)
def test_bad_fields_are_refused_by_name_and_value(fields: dict[str, str]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(UserError, match=f"device.{name}={value}"):
        DeviceConfig(**fields)  # type: ignore[arg-type]


def test_fp16_is_not_compiled() -> None:
    with pytest.raises(UserError, match=r"device.compile=true with device.precision=fp16"):
        DeviceConfig(precision="fp16", compile=True)
