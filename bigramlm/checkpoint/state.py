"""The state needed to resume a run, as tensors and JSON values."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn


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
        if name.endswith("wpe.weight") and name in tensors:
            tensors[name] = tensors[name][: len(parameter)]


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
    # the parameter has.
    named = dict(model.named_parameters())
    position = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    for name, values in per_param.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape not in ((), named[name].shape):
                raise ValueError(
                    f"{key} of {name} has shape {tuple(value.shape)}, but the parameter has {tuple(named[name].shape)}"
                )
    return dict(sorted((position[id(named[name])], values) for name, values in per_param.items()))
