"""Pass plain values and tensors between the training processes, whose disks may be their own.

All processes call these functions, in the same order. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.model.placing import is_first_process


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(values: Tensor) -> None:
    """The sum over all processes, in place."""
    if num_processes() > 1:
        dist.all_reduce(values)


def all_reduce_max(flags: Tensor) -> None:
    """The largest value over all processes, in place."""
    if num_processes() > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)


def by_first(compute: Callable[[], JsonValue], device: torch.device) -> Any:
    """What the first process computes, on all; a RecipeError that it raises is raised by all."""
    answer: dict[str, JsonValue] = {}
    if is_first_process():
        try:
            answer = {"value": compute()}
        except RecipeError as error:
            answer = {"problems": [problem.to_json() for problem in error.problems]}
    shared: Any = _share_json(answer, device)
    if "problems" in shared:
        raise RecipeError(*(Problem.from_json(values) for values in shared["problems"]))
    return shared["value"]


def share_tensor(tensor: Tensor | None, device: torch.device, *, like: Tensor) -> Tensor:
    """The first process's tensor, on all; `like` has its shape and type."""
    if num_processes() == 1:
        assert tensor is not None
        return tensor
    whole = torch.empty(like.shape, dtype=like.dtype, device=device)
    if is_first_process():
        assert tensor is not None
        whole.copy_(tensor)
    if whole.numel():
        # As bytes, since not every backend passes every type.
        dist.broadcast(whole.view(-1).view(torch.uint8), src=0)
    return whole


def gather_json(value: JsonValue, device: torch.device) -> list[Any]:
    """The values of all processes in their order, on the first one; an empty list on the others."""
    if num_processes() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(num_processes())]
    dist.all_gather(sizes, torch.tensor([len(data)], dtype=torch.int64, device=device))
    largest = max(int(size) for size in sizes)
    padded = torch.zeros(largest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    if not is_first_process():
        return []
    return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(parts, sizes, strict=True)]


def _share_json(value: JsonValue, device: torch.device) -> JsonValue:
    if num_processes() == 1:
        return value
    data = bytearray(json.dumps(value).encode()) if is_first_process() else bytearray()
    size = torch.tensor([len(data)], dtype=torch.int64, device=device)
    dist.broadcast(size, src=0)
    whole = torch.empty(int(size), dtype=torch.uint8, device=device)
    if is_first_process():
        whole.copy_(torch.frombuffer(data, dtype=torch.uint8))
    dist.broadcast(whole, src=0)
    shared: JsonValue = json.loads(bytes(whole.tolist()))
    return shared
