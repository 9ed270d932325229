"""Tests of the checks of tensors from a file, and of writing such a file."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bigramlm.utils.tensors import require_finite, require_same_kind, require_trainable, writing
from tests.helpers import refuses

FILE = Path("model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("value", "named"), [(float("nan"), "NaN"), (float("inf"), "inf"), (float("-inf"), "inf")])
def test_a_single_value_that_is_not_finite_is_found(value: float, named: str, dtype: torch.dtype) -> None:
    tensor = torch.ones(7, 9, dtype=dtype)
    tensor[6, 8] = value
    with refuses(FILE, "h.0.weight", named, "damaged"):
        require_finite(FILE, [("wte", torch.ones(3)), ("h.0.weight", tensor)])


def test_finite_tensors_pass() -> None:
    largest = torch.full((1000,), torch.finfo(torch.float32).max)  # their sum overflows
    require_finite(FILE, [("a", largest), ("b", torch.ones(2).int()), ("c", torch.empty(0)), ("d", torch.tensor(True))])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype) -> None:
    with refuses(FILE, "wte", str(dtype).removeprefix("torch."), "quantised"):
        require_trainable(FILE, "wte", torch.ones(3).to(dtype), torch.float32)


KINDS = [torch.int8, torch.uint16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]


@pytest.mark.parametrize("dtype", KINDS)
def test_a_tensor_of_another_kind_is_refused(dtype: torch.dtype) -> None:
    with refuses(FILE, "wte", str(dtype).removeprefix("torch."), "float32"):
        require_same_kind(FILE, "wte", torch.ones(3).to(dtype), torch.float32)
    with refuses(FILE, "counts", "float32"):
        require_same_kind(FILE, "counts", torch.ones(3), dtype)
    require_same_kind(FILE, "counts", torch.ones(3).to(dtype), dtype)
    require_same_kind(FILE, "wte", torch.ones(3, dtype=torch.bfloat16), torch.float32)


def test_weights_are_converted_and_must_stay_finite() -> None:
    converted = require_trainable(FILE, "wte", torch.ones(3, dtype=torch.float16), torch.float32)
    assert converted.dtype == torch.float32
    with refuses(FILE, "wte", "infinity"):
        require_trainable(FILE, "wte", torch.full((2,), 1e100, dtype=torch.float64), torch.float32)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask, and no limit on the size of files")
def test_the_umask_decides_who_may_read_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for mask in (0o022, 0o027):
        before = os.umask(mask)
        try:
            with writing(path):
                save_file({"a": torch.ones(3)}, path)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
        assert load_file(path)["a"].tolist() == [1, 1, 1]
        path.unlink()


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files stands in for a full disk; Windows has none")
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "model.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised, writing(path):
            save_file({"a": torch.ones(1000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
