"""The state that training resumes from, as tensors and plain values."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    return next(itertools.chain(model.parameters(), model.buffers())).device


def make_room(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    # Tables that were counted are as long as their text made them: a model that has not counted has them empty.
    for name, buffer in list(model.named_buffers()):
        if buffer.numel() == 0 and name in tensors:
            holder, _, last = name.rpartition(".")
            setattr(model.get_submodule(holder), last, torch.empty_like(tensors[name], device=buffer.device))


def cut_positions(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    # A shorter block needs the first positions only.
    for name, own in model.named_parameters():
        if name.endswith("wpe.weight") and name in tensors:
            tensors[name] = tensors[name][: len(own)]


def training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    # By the parameters' names. What is a tensor goes into safetensors, the rest beside it as JSON.
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
    # As an optimizer counts its parameters. An update writes as far as a parameter goes: no other shape may pass.
    named = dict(model.named_parameters())
    position = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    for name, values in per_param.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape not in ((), named[name].shape):
                raise ValueError(f"{key} of {name} is {tuple(value.shape)}, the parameter {tuple(named[name].shape)}")
    return dict(sorted((position[id(named[name])], values) for name, values in per_param.items()))
