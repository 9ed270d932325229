"""The state needed to resume a run, as tensors and JSON values."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from bigramlm.model.ngram import Ngram


def device_of(model: nn.Module) -> torch.device:
    return next(itertools.chain(model.parameters(), model.buffers())).device


def allocate_count_tables(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    # The length of a count table depends on the text, so the tables are empty until a model has counted a text.
    for name, buffer in list(model.named_buffers()):
        if buffer.numel() == 0 and name in tensors:
            module, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module), attribute, torch.empty_like(tensors[name], device=buffer.device))


def truncate_positions(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    # A model with a shorter block size uses only the first positions.
    for name, parameter in model.named_parameters():
        if name.endswith("wpe.weight") and name in tensors and tensors[name].ndim:
            tensors[name] = tensors[name][: len(parameter)]


def check_count_tables(model: nn.Module) -> None:
    # Raises ValueError if an n-gram table has indices that do not exist.
    for module in model.modules():
        if isinstance(module, Ngram):
            module.check_counts()


def training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    # Keys the optimizer state by parameter name. Tensors are saved as safetensors, the other values as JSON.
    tensors = {"rng/cpu": torch.get_rng_state()}
    device = device_of(model)
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        tensors["rng/mps"] = torch.mps.get_rng_state()
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        plain[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        tensors |= {
            f"optimizer/{name}/{key}": value.contiguous() for key, value in state.items() if isinstance(value, Tensor)
        }
    return tensors, {name: values for name, values in plain.items() if values}


def by_index(
    per_param: dict[str, dict[str, Any]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    # Keys the state by the optimizer's parameter index. Checks the shapes, because an update writes as many elements as
    # the parameter has, and that no tensor of the optimizer becomes a plain value.
    named = dict(model.named_parameters())
    position = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    for name, values in per_param.items():
        current = optimizer.state.get(named[name], {})
        for key, value in values.items():
            if isinstance(current.get(key), Tensor) and not isinstance(value, Tensor):
                raise ValueError(f"{key} of {name} is {value!r:.40} instead of a tensor")
            if isinstance(value, Tensor) and not (value.is_floating_point() and value.element_size() > 1):
                raise ValueError(f"{key} of {name} is of type {str(value.dtype).removeprefix('torch.')}")
            if isinstance(value, Tensor) and value.shape not in ((), named[name].shape):
                raise ValueError(
                    f"{key} of {name} has shape {tuple(value.shape)}, but the parameter has {tuple(named[name].shape)}"
                )
    return dict(sorted((position[id(named[name])], values) for name, values in per_param.items()))


def try_update(optimizer: torch.optim.Optimizer) -> None:
    # Raises ValueError if an optimizer cannot go on from the state that was loaded, e.g. because a part of it is
    # missing. The update is tried on parameters of one element with a state of the same names and types.
    for part in getattr(optimizer, "parts", (optimizer,)):
        try:
            _small_copy(part, part.state).step()
        except Exception as error:
            try:
                _small_copy(part, {}).step()
            except Exception:  # this optimizer has further attributes of its parameters
                continue
            raise ValueError(f"the optimizer cannot go on from its state ({type(error).__name__}: {error})") from None


def _small_copy(optimizer: torch.optim.Optimizer, state: dict[Any, dict[str, Any]]) -> torch.optim.Optimizer:
    small = object.__new__(type(optimizer))
    small.__dict__ |= vars(optimizer)
    small.param_groups, small.state = [], defaultdict(dict)
    for group in optimizer.param_groups:
        params = []
        for p in group["params"]:
            params.append(one := nn.Parameter(p.new_zeros([1] * p.ndim)))
            one.grad = torch.zeros_like(one)
            values = {key: _small(value) for key, value in state.get(p, {}).items()}
            small.state |= {one: values} if values else {}
        small.param_groups.append({**group, "params": params, "lr": float(group["lr"])})
    return small


def _small(value: Any) -> Any:
    return value.new_zeros([1] * value.ndim) if isinstance(value, Tensor) else copy.copy(value)
