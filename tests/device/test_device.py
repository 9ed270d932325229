"""What is decided for a device, and what it lacks."""

import logging

import pytest
import torch

from bigramlm.device import device as module
from bigramlm.device import peak
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import SMALL_BELOW, Device, decide, has_fast_bf16, set_up
from tests.helpers import refuses


def test_a_cpu_has_fast_bf16_or_has_not() -> None:
    assert isinstance(has_fast_bf16("cpu"), bool)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Make the machine look as if it had these devices."""

    def make(*, cuda: int = 0, mps: bool = False, bf16: bool = True, amx: bool = False, macos: int = 14) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major)
        monkeypatch.setattr(module, "has_fast_bf16", lambda kind: amx if kind == "cpu" else has_fast_bf16(kind))

    make()
    return make


def decided(n_params: int = 1000, tokens: int = 100, **fields: object) -> DeviceConfig:
    return decide(DeviceConfig(**fields), n_params=n_params, tokens=tokens)  # type: ignore[arg-type]


def test_auto_takes_cuda_then_mps_then_cpu(machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert decided().name == "cpu"
    assert "cuda" in caplog.text
    assert "mps" in caplog.text
    machine(mps=True)
    assert decided().name == "mps"
    machine(cuda=1, mps=True)
    assert decided().name == "cuda"


def test_an_absent_device_is_refused_with_what_there_is(machine) -> None:
    with refuses("cpu", field="device.name", value="cuda"):
        decided(name="cuda")
    machine(cuda=2)
    assert decided(name="cuda:1").name == "cuda:1"
    with refuses("2 CUDA", field="device.name", value="cuda:2"):
        decided(name="cuda:2")
    with refuses("cuda, cpu", field="device.name", value="mps"):
        decided(name="mps")


def test_precision(machine) -> None:
    assert decided().precision == "fp32"
    assert decided(precision="bf16").precision == "bf16"
    with refuses("CPU", "fp32", "bf16", field="device.precision", value="fp16"):
        decided(precision="fp16")
    machine(cuda=1)
    assert decided(n_params=10_000_000).precision == "bf16"
    assert decided(n_params=1000).precision == "fp32"
    machine(cuda=1, bf16=False)
    assert decided(n_params=10_000_000).precision == "fp32"
    with refuses("GPU", "fp32", "fp16", field="device.precision", value="bf16"):
        decided(precision="bf16")
    assert decided(precision="fp16").precision == "fp16"
    machine(mps=True)
    assert decided(n_params=10_000_000).precision == "fp32"
    assert decided(precision="bf16").precision == "bf16"
    machine(mps=True, macos=13)
    with refuses("macOS 14", "fp32", "fp16", field="device.precision", value="bf16"):
        decided(precision="bf16")


@pytest.mark.parametrize(
    ("has", "n_params", "precision", "why"),
    [
        ({"amx": True}, 3_000_000, "bf16", "3,000,000"),
        ({"amx": True}, 2_999_999, "fp32", "2,999,999"),
        ({}, 10**9, "fp32", "AMX"),
        ({"cuda": 1}, 1_000_000, "bf16", "1,000,000"),
        ({"cuda": 1, "bf16": False}, 10**9, "fp32", "GPU"),
    ],
)
def test_precision_goes_by_device_and_size_and_says_why(
    has: dict[str, int], n_params: int, precision: str, why: str, machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine(**has)
    assert decided(n_params=n_params).precision == precision
    (line,) = [record.getMessage() for record in caplog.records if "precision" in record.getMessage()]
    assert precision in line
    assert "auto" in line
    assert why in line


def test_bf16_on_a_cpu_that_is_slow_in_it_is_told(machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    decided(precision="bf16")
    assert "AMX" in caplog.text
    caplog.clear()
    machine(amx=True)
    decided(precision="bf16")
    assert "AMX" not in caplog.text


def own() -> type[Device]:
    """Return a kind of device that is no other test's: what was measured of those is remembered."""
    return type("Own", (Device,), {})


def test_a_measured_peak_is_the_best_of_several_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of which a product takes 4 ms, but for one that takes 1."""
    made: list[int] = []
    now = [0.0]

    def slow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        made.append(len(a))
        now[0] += 0.001 if len(made) == 7 else 0.004
        return b

    monkeypatch.setattr(torch, "mm", slow)
    found = peak.measured(Device(torch.device("cpu"), "fp32", compile=False), clock=lambda: now[0])
    assert found.flops == pytest.approx(2 * 512**3 / 0.001)
    assert "measured" in found.how
    assert made == [512] * 30


def test_the_peak_of_a_cpu_is_measured_once_for_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Device] = []

    def measure(device: Device) -> peak.Peak:
        measured.append(device)
        return peak.Peak(1.0, "measured")

    monkeypatch.setattr(peak, "measured", measure)
    device = own()(torch.device("cpu"), "fp32", compile=False)
    for threads, so_far in ((1, 1), (1, 1), (2, 2), (1, 2)):
        torch.set_num_threads(threads)
        assert peak.peak(device).how == "measured"
        assert len(measured) == so_far


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        *(
            ("NVIDIA H200", 989.4),
            ("NVIDIA H100 PCIe", 756),
            ("NVIDIA H100 NVL", 835.5),
            ("NVIDIA H100 80GB HBM3", 989.4),
        ),
        *(("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("Tesla T4", 65), ("NVIDIA GeForce RTX 4090", 165.2)),
    ],
)
def test_the_peak_of_a_known_gpu_is_its_makers(name: str, tera: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak.peak(Device(torch.device("cuda"), "bf16", compile=False))
    assert found.flops == tera * 1e12
    assert "data sheet" in found.how


@pytest.mark.parametrize("name", ["NVIDIA RTX A1000", "NVIDIA L40", "NVIDIA T400", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"])
def test_the_peak_of_another_gpu_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peak, "measured", lambda device: peak.Peak(1.0, "measured"))
    assert peak.peak(own()(torch.device("cuda"), "bf16", compile=False)).how == "measured"


def test_threads_follow_the_size_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL_THREADS", 8)
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
    with refuses(field=f"device.{name}", value=value):
        DeviceConfig(**fields)  # type: ignore[arg-type]


def test_fp16_is_not_compiled() -> None:
    with refuses("device.precision=fp16", "bf16", field="device.compile", value="true"):
        DeviceConfig(precision="fp16", compile=True)
