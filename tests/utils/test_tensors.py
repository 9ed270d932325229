"""Tests of the checks of tensors that were read from a file."""

from pathlib import Path

import pytest
import torch

from bigramlm.utils.tensors import require_finite, require_trainable
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


def test_weights_are_converted_and_must_stay_finite() -> None:
    converted = require_trainable(FILE, "wte", torch.ones(3, dtype=torch.float16), torch.float32)
    assert converted.dtype == torch.float32
    with refuses(FILE, "wte", "infinity"):
        require_trainable(FILE, "wte", torch.full((2,), 1e100, dtype=torch.float64), torch.float32)
