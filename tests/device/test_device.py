"""The resolved device config, refusals and the device's peak."""

import contextlib
import logging
import os

import pytest
import torch

from bigramlm.device import device as module
from bigramlm.device import peak
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import SMALL_STEP_FLOPS, Device, decide, has_fast_bf16, set_up
from tests.helpers import refuses


def test_fast_bf16_can_be_detected_on_any_cpu() -> None:
    assert isinstance(has_fast_bf16("cpu"), bool)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return a function that imitates a machine with the given devices."""

    def make(
        *, cuda: int = 0, mps: bool = False, bf16: bool = True, amx: bool = False, macos: int = 14, hip: bool = False
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0) if bf16 else (7, 5))
        monkeypatch.setattr(torch.version, "cuda", "13.0" if cuda and not hip else None)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major)
        monkeypatch.setattr(module, "has_fast_bf16", lambda kind: amx if kind == "cpu" else has_fast_bf16(kind))

    make()
    return make


def resolved(n_params: int = 1000, tokens: int = 100, **fields: object) -> DeviceConfig:
    return decide(DeviceConfig(**fields), n_params=n_params, tokens=tokens)  # type: ignore[arg-type]


def test_auto_prefers_cuda_then_mps_then_cpu(machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert resolved().name == "cpu"
    assert "cuda" in caplog.text
    assert "mps" in caplog.text
    machine(mps=True)
    assert resolved().name == "mps"
    machine(cuda=1, mps=True)
    assert resolved().name == "cuda"


def test_an_absent_device_is_refused_with_the_available_ones(machine) -> None:
    with refuses("cpu", field="device.name", value="cuda"):
        resolved(name="cuda")
    machine(cuda=2)
    assert resolved(name="cuda:1").name == "cuda:1"
    with refuses("CUDA GPUs on this machine: 2", field="device.name", value="cuda:2"):
        resolved(name="cuda:2")
    with refuses("cuda, cpu", field="device.name", value="mps"):
        resolved(name="mps")


def test_precision_is_resolved_or_refused(machine) -> None:
    assert resolved().precision == "fp32"
    assert resolved(precision="bf16").precision == "bf16"
    with refuses("CPU", "fp32", "bf16", field="device.precision", value="fp16"):
        resolved(precision="fp16")
    machine(cuda=1)
    assert resolved(n_params=10_000_000).precision == "bf16"
    assert resolved(n_params=1000).precision == "tf32"
    assert resolved(n_params=1000, precision="fp32").precision == "fp32"
    machine(cuda=1, hip=True)
    assert resolved(n_params=1000).precision == "fp32"
    machine(cuda=1, bf16=False)
    assert resolved(n_params=10_000_000).precision == "fp32"
    with refuses("GPU", "fp32", "fp16", field="device.precision", value="bf16"):
        resolved(precision="bf16")
    assert resolved(precision="fp16").precision == "fp16"
    with refuses("NVIDIA", "fp32", field="device.precision", value="tf32"):
        resolved(precision="tf32")
    machine(mps=True)
    with refuses("NVIDIA", "fp32", field="device.precision", value="tf32"):
        resolved(precision="tf32")
    assert resolved(n_params=10_000_000).precision == "fp32"
    assert resolved(precision="bf16").precision == "bf16"
    machine(mps=True, macos=13)
    with refuses("macOS 14", "fp32", "fp16", field="device.precision", value="bf16"):
        resolved(precision="bf16")


@pytest.mark.parametrize(
    ("hardware", "n_params", "precision", "reason"),
    [
        ({"amx": True}, 3_000_000, "bf16", "3,000,000"),
        ({"amx": True}, 2_999_999, "fp32", "2,999,999"),
        ({}, 10**9, "fp32", "AMX"),
        ({"cuda": 1}, 1_000_000, "bf16", "1,000,000"),
        ({"cuda": 1, "bf16": False}, 10**9, "fp32", "GPU"),
    ],
)
def test_precision_depends_on_device_and_size_and_logs_the_reason(
    hardware: dict[str, int], n_params: int, precision: str, reason: str, machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine(**hardware)
    assert resolved(n_params=n_params).precision == precision
    (line,) = [record.getMessage() for record in caplog.records if "precision" in record.getMessage()]
    assert precision in line
    assert "auto" in line
    assert reason in line


def test_slow_bf16_on_a_cpu_is_logged(machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    resolved(precision="bf16")
    assert "AMX" in caplog.text
    caplog.clear()
    machine(amx=True)
    resolved(precision="bf16")
    assert "AMX" not in caplog.text


def new_device_type() -> type[Device]:
    """Return a new type of Device, for which no measured peak is in the cache."""
    return type("NewDevice", (Device,), {})


def test_a_measured_peak_is_the_fastest_of_several_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a clock by which one product takes 1 ms and every other one 4 ms."""
    sizes: list[int] = []
    now = [0.0]

    def slow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a))
        now[0] += 0.001 if len(sizes) == 7 else 0.004
        return b

    monkeypatch.setattr(torch, "mm", slow)
    found = peak.measure_peak(Device(torch.device("cpu"), "fp32", compile=False), clock=lambda: now[0])
    assert found.flops == pytest.approx(2 * 512**3 / 0.001)
    assert "measured" in found.how
    assert sizes == [512] * 30


def test_the_peak_of_a_cpu_is_measured_once_per_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Device] = []

    def measure(device: Device) -> peak.Peak:
        measured.append(device)
        return peak.Peak(1.0, "measured")

    monkeypatch.setattr(peak, "measure_peak", measure)
    device = new_device_type()(torch.device("cpu"), "fp32", compile=False)
    for threads, measurements in ((1, 1), (1, 1), (2, 2), (1, 2)):
        torch.set_num_threads(threads)
        assert peak.peak(device).how == "measured"
        assert len(measured) == measurements


@pytest.mark.parametrize(
    ("name", "tflops"),
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
def test_the_peak_of_a_known_gpu_is_from_its_data_sheet(
    name: str, tflops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak.peak(Device(torch.device("cuda"), "bf16", compile=False))
    assert found.flops == tflops * 1e12
    assert "data sheet" in found.how


@pytest.mark.parametrize("name", ["NVIDIA RTX A1000", "NVIDIA L40", "NVIDIA T400", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"])
def test_the_peak_of_an_unknown_gpu_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peak, "measure_peak", lambda device: peak.Peak(1.0, "measured"))
    assert peak.peak(new_device_type()(torch.device("cuda"), "bf16", compile=False)).how == "measured"


def test_threads_depend_on_the_size_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL_THREADS", 8)
    limit = int(SMALL_STEP_FLOPS / 6)
    assert resolved(n_params=limit - 1, tokens=1).threads == "1"
    assert resolved(n_params=limit + 1, tokens=1).threads == "8"
    assert resolved(threads="3").threads == "3"


def test_a_busy_machine_is_a_hint_and_changes_nothing(
    machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "ALL_THREADS", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found = []
    for load, is_hinted in ((4.0, False), (9.5, True), (None, False)):
        if load is None:  # Windows
            monkeypatch.delattr(os, "getloadavg", raising=False)
        else:
            monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0), raising=False)
        caplog.clear()
        found.append(resolved(n_params=10**9))
        assert found[-1].threads == "4"
        hint = "this machine is busy (load 9.5 on 4 cores): device.threads=2 may be faster"
        assert (hint in caplog.messages) == is_hinted
        assert ("busy" in caplog.text) == is_hinted
    assert found[0] == found[1] == found[2]
    monkeypatch.setattr(os, "getloadavg", lambda: (9.5, 0.0, 0.0), raising=False)
    caplog.clear()
    resolved(n_params=1)
    resolved(n_params=10**9, threads="1")
    assert "busy" not in caplog.text, "one thread waits for no other"


def test_every_auto_is_resolved() -> None:
    assert "auto" not in vars(resolved()).values()


def test_tf32_is_for_runs_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda value: values.append(value))
    values: list[str] = []
    for name, precision in (("cuda", "tf32"), ("cuda:0", "fp32"), ("cuda", "bf16"), ("cpu", "fp32")):
        device = set_up(DeviceConfig(name=name, precision=precision, threads="1"))
        assert precision == "bf16" or isinstance(device.autocast(), contextlib.nullcontext)
    assert values == ["high", "highest", "highest"], "on a CPU, nothing is set"


def test_set_up_applies_threads_and_determinism() -> None:
    set_up(resolved(name="cpu", threads="1", deterministic=True))
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    set_up(resolved(name="cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "fields",
    [{"name": "gpu"}, {"name": "cuda:x"}, {"precision": "half"}, {"threads": "0"}, {"threads": "many"}],
    ids=str,
)
def test_invalid_fields_are_refused(fields: dict[str, str]) -> None:
    ((name, value),) = fields.items()
    with refuses(field=f"device.{name}", value=value):
        DeviceConfig(**fields)  # type: ignore[arg-type]


def test_fp16_with_compile_is_refused() -> None:
    with refuses("device.precision=fp16", "bf16", field="device.compile", value="true"):
        DeviceConfig(precision="fp16", compile=True)
