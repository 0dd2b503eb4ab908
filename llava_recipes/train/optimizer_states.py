"""Trained weights and optimizer states by canonical name, whatever engine keeps them and however split.

Plain torch and DDP keep a state per parameter. DeepSpeed keeps flat float32 tensors, split over the processes
under ZeRO, and so only states with one number per weight. All processes call `read` and `write` together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from llava_recipes.errors import RecipeError
from llava_recipes.model.placing import full_shape
from llava_recipes.train.tensor_files import TensorSpec, can_store

Scalars = dict[str, dict[str, JsonValue]]
"""By parameter and key: a number, or a number and the type of the tensor without dimensions that it was."""
Specs = dict[str, dict[str, TensorSpec]]
"""By parameter and key."""

_ADAM = frozenset(["Adam", "AdamW", "FusedAdam", "DeepSpeedCPUAdam"])
_MOMENTS = frozenset(["exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum"])
_NOT_JOINED = "write `optim: adamw_torch`, or `deepspeed: none`"
_OWN = frozenset(["params", "lr", "initial_lr", "param_names"])
_KEEPS_MORE = re.compile(r"GaLore|LayerWise|AdaLomo|Lomo")
"""Optimizers with state outside `state`, or with objects in it."""


class OptimizerStates(Protocol):
    """What trains, and its optimizer."""

    inner: torch.optim.Optimizer

    def specs(self) -> Specs:
        """Every tensor of the optimizer's state."""

    def scalars(self) -> Scalars: ...

    def weight_specs(self) -> dict[str, TensorSpec]:
        """What trains, by name: in float32 where DeepSpeed keeps it so."""

    def read_weight(self, name: str) -> Tensor: ...

    def read(self, name: str, key: str) -> Tensor: ...

    def write_weight(self, name: str, whole: Tensor) -> None: ...

    def begin(self, specs: Specs, scalars: Scalars) -> None:
        """Make room for a state that is written next."""

    def write(self, name: str, key: str, whole: Tensor) -> None: ...

    def finish(self) -> None:
        """Compute with what was written."""


def states_of(
    parameters: Mapping[str, nn.Parameter], optimizer: Any, *, uses_deepspeed: bool
) -> OptimizerStates:
    """The states of `parameters`, those that train, by canonical name; `optimizer` is accelerate's."""
    engine = getattr(optimizer, "optimizer", optimizer)
    if not uses_deepspeed or isinstance(engine, torch.optim.Optimizer):
        return _PerParameter(parameters, engine)
    if hasattr(engine, "fp32_partitioned_groups_flat"):
        return _Zero3(parameters, engine)
    if hasattr(engine, "_lazy_init_hp_params_optimizer_state"):
        return _Split(parameters, engine)
    if hasattr(engine, "fp32_groups_flat"):
        return _Flat(parameters, engine)
    if hasattr(engine, "fp32_groups"):
        return _Masters(parameters, engine)
    raise _not_storable(
        type(engine).__name__,
        "it keeps weights in a way that no checkpoint of ours has",
        "write `deepspeed: zero2`",
    )


def check_storable(states: OptimizerStates, *, uses_deepspeed: bool) -> None:
    """Raise RecipeError before training for an optimizer whose state no checkpoint can contain."""
    inner = states.inner
    name, module = type(inner).__name__, type(inner).__module__
    if _KEEPS_MORE.search(name):
        raise _not_storable(name, "it keeps more than tensors per weight")
    flat = uses_deepspeed and not isinstance(states, _PerParameter)
    if flat and module.startswith("bitsandbytes") and "8bit" in name:
        found = "its 8-bit blocks go across the weights that DeepSpeed joins"
        raise _not_storable(name, found, _NOT_JOINED)
    if getattr(getattr(states, "engine", None), "zenflow", False):
        raise _not_storable(name, "ZenFlow keeps gradients for later steps", "leave `zenflow` out")
    if getattr(getattr(states, "engine", None), "swap_optimizer", False):
        hint = "write `device: cpu` in `offload_optimizer`"
        raise _not_storable(name, "DeepSpeed keeps its state in files of its own (`device: nvme`)", hint)


def _not_storable(name: str, found: str, hint: str = "write `optim: adamw_torch`") -> RecipeError:
    return RecipeError.of(
        "the optimizer's state cannot be saved in checkpoints",
        code="optimizer-not-storable",
        path=("stages", 0, "train", "optim"),
        found=f"{name}: {found}",
        hint=f'{hint}; or `save_strategy: "no"`, with which an interrupted run starts again at step 0',
    )


def kind_of_optimizer(inner: torch.optim.Optimizer) -> str:
    """A name that two optimizers share where one can go on with the other's state."""
    name = type(inner).__name__
    own = type(inner).__module__.startswith(("torch.optim", "deepspeed.ops.adam"))
    return "adam" if name in _ADAM and own else f"{type(inner).__module__.partition('.')[0]}.{name}"


def group_values(inner: torch.optim.Optimizer) -> list[dict[str, JsonValue]]:
    """The numbers of each parameter group, except learning rates."""
    return [
        {
            key: value
            for key, value in group.items()
            if key not in _OWN and isinstance(value, bool | int | float)
        }
        for group in inner.param_groups
    ]


class _PerParameter:
    """A state per parameter, whole on every process."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self._parameters = parameters
        self._group_of = {id(each): group for group in inner.param_groups for each in group["params"]}

    def weight_specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(full_shape(each), each.dtype) for name, each in self._parameters.items()}

    def specs(self) -> Specs:
        found: Specs = {}
        for name, key, value in self._values():
            if isinstance(value, Tensor) and value.dim() > 0:
                if not can_store(value.dtype) or value.layout != torch.strided:
                    raise _not_storable(type(self.inner).__name__, f"{key} has type {value.dtype}")
                found.setdefault(name, {})[key] = TensorSpec(tuple(value.shape), value.dtype)
        return found

    def scalars(self) -> Scalars:
        found: Scalars = {}
        for name, key, value in self._values():
            if not isinstance(value, Tensor) or value.dim() == 0:
                found.setdefault(name, {})[key] = _scalar(self.inner, key, value)
        return found

    def _values(self) -> Iterator[tuple[str, str, Any]]:
        for name, parameter in self._parameters.items():
            # `get`, since torch's state makes an entry for whatever is looked up.
            for key, value in self.inner.state.get(parameter, {}).items():
                yield name, key, value

    def read_weight(self, name: str) -> Tensor:
        return self._parameters[name].detach()

    def read(self, name: str, key: str) -> Tensor:
        tensor: Tensor = self.inner.state[self._parameters[name]][key]
        return tensor

    @torch.no_grad()
    def write_weight(self, name: str, whole: Tensor) -> None:
        self._parameters[name].copy_(whole)

    def begin(self, specs: Specs, scalars: Scalars) -> None:
        for name, parameter in self._parameters.items():
            values = {
                key: _unscalar(
                    self.inner, key, value, self._group_of.get(id(parameter), {}), parameter.device
                )
                for key, value in scalars.get(name, {}).items()
            }
            if values or name in specs:
                self.inner.state[parameter] = values

    def write(self, name: str, key: str, whole: Tensor) -> None:
        parameter = self._parameters[name]
        # A copy: the tensor may be mapped from a file.
        self.inner.state[parameter][key] = whole.to(parameter.device, copy=True)

    def finish(self) -> None: ...


class _Masters(_PerParameter):
    """A state per float32 copy of a parameter, whole on every process: DeepSpeed without ZeRO and fusing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], engine: Any) -> None:
        masters = {
            id(ours): master
            for pairs in zip(engine.fp16_groups, engine.fp32_groups, strict=True)
            for ours, master in zip(*pairs, strict=True)
        }
        super().__init__({name: masters[id(each)] for name, each in parameters.items()}, engine.optimizer)
        self._computed_with = parameters

    @torch.no_grad()
    def finish(self) -> None:
        for name, parameter in self._computed_with.items():
            parameter.copy_(self._parameters[name])


class _Flat:
    """Groups of weights joined in one float32 tensor each, whole on every process: DeepSpeed without ZeRO."""

    _flats, _groups = "fp32_groups_flat", "fp16_groups"

    def __init__(self, parameters: Mapping[str, nn.Parameter], engine: Any) -> None:
        self.engine = engine
        self.inner: torch.optim.Optimizer = engine.optimizer
        self._parameters = parameters
        self._index_of = {
            id(parameter): index
            for index, group in enumerate(getattr(engine, self._groups))
            for parameter in group
        }

    @property
    def _all_flats(self) -> list[Tensor]:
        flats: list[Tensor] = getattr(self.engine, self._flats)
        return flats

    def _flat_of(self, name: str) -> Tensor:
        return self._all_flats[self._index_of[id(self._parameters[name])]]

    def weight_specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(full_shape(each), torch.float32) for name, each in self._parameters.items()}

    def specs(self) -> Specs:
        return {
            name: {
                key: TensorSpec(full_shape(parameter), torch.float32)
                for key in self._keys(self._flat_of(name))
            }
            for name, parameter in self._parameters.items()
        }

    def _keys(self, flat: Tensor) -> list[str]:
        keys = []
        for key, value in self.inner.state.get(flat, {}).items():
            if isinstance(value, Tensor) and value.shape == flat.shape and value.is_floating_point():
                keys.append(key)
            elif isinstance(value, Tensor) and value.dim() > 0:
                found = f"{key} isn't one number per weight"
                raise _not_storable(
                    type(self.inner).__name__, found, "write `optim: adamw_torch`, or `deepspeed: none`"
                )
        return keys

    def scalars(self) -> Scalars:
        return {
            name: {
                key: _scalar(self.inner, key, value)
                for key, value in self.inner.state.get(self._flat_of(name), {}).items()
                if not isinstance(value, Tensor) or value.dim() == 0
            }
            for name in self._parameters
        }

    def begin(self, specs: Specs, scalars: Scalars) -> None:
        keys = {key for each in specs.values() for key in each}
        values: dict[int, dict[str, JsonValue]] = {}
        for name, parameter in self._parameters.items():
            if name in scalars:
                values.setdefault(self._index_of[id(parameter)], scalars[name])
        for index, flat in enumerate(self._all_flats):
            if not keys and index not in values:
                continue
            # All groups are computed in the same way.
            group = self.inner.param_groups[0]
            self.inner.state[flat] = {
                **{
                    key: _unscalar(self.inner, key, value, group, flat.device)
                    for key, value in values.get(index, {}).items()
                },
                **{key: torch.zeros_like(flat, requires_grad=False) for key in keys},
            }

    def _part(self, name: str, key: str | None) -> Tensor:
        parameter, flat, start = self._parameters[name], self._flat_of(name), 0
        for each in getattr(self.engine, self._groups)[self._index_of[id(parameter)]]:
            if each is parameter:
                break
            start += each.numel()
        whole: Tensor = flat if key is None else self.inner.state[flat][key]
        return (
            whole.detach()
            .narrow(0, start, self._parameters[name].numel())
            .view(full_shape(self._parameters[name]))
        )

    def read_weight(self, name: str) -> Tensor:
        return self._part(name, None).float()

    def read(self, name: str, key: str) -> Tensor:
        return self._part(name, key).float()

    def write_weight(self, name: str, whole: Tensor) -> None:
        self._part(name, None).copy_(whole)

    def write(self, name: str, key: str, whole: Tensor) -> None:
        self._part(name, key).copy_(whole)

    @torch.no_grad()
    def finish(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._part(name, None))


class _Split(_Flat):
    """Flat tensors split over the processes, the weights whole: ZeRO 1 and 2, and bf16 without ZeRO."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], engine: Any) -> None:
        is_zero = hasattr(engine, "single_partition_of_fp32_groups")
        self._flats = "single_partition_of_fp32_groups" if is_zero else "fp32_groups_flat_partition"
        self._groups = "bit16_groups" if is_zero else "bf16_groups"
        super().__init__(parameters, engine)

    def specs(self) -> Specs:
        self._link()
        return super().specs()

    def _link(self) -> None:
        """Let DeepSpeed find the states of all groups: by itself it looks once, after the first's step."""
        if self.inner.state:
            self.engine._hp_optimizer_states_linked = False
            self.engine._lazy_init_hp_params_optimizer_state()

    def read_weight(self, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        return _filled(safe_get_full_fp32_param(self._parameters[name]))

    def read(self, name: str, key: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        return _filled(safe_get_full_optimizer_state(self._parameters[name], key))

    def begin(self, specs: Specs, scalars: Scalars) -> None:
        super().begin(specs, scalars)
        self._link()

    @torch.no_grad()
    def write_weight(self, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(self._parameters[name], whole)

    @torch.no_grad()
    def write(self, name: str, key: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(self._parameters[name], whole, key)

    def finish(self) -> None:
        self.engine.update_lp_params()


class _Zero3(_Split):
    """Flat tensors and weights split over the processes: ZeRO 3."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], engine: Any) -> None:
        _Flat.__init__(self, parameters, engine)

    _flats, _groups = "fp32_partitioned_groups_flat", "fp16_groups"

    def _link(self) -> None: ...

    @torch.no_grad()
    def write_weight(self, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(self._parameters[name], self._own(name, whole))

    @torch.no_grad()
    def write(self, name: str, key: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(self._parameters[name], self._own(name, whole), key)

    def _own(self, name: str, whole: Tensor) -> Tensor:
        """This process's part, filled up with zeros: all parts have the same size."""
        parameter: Any = self._parameters[name]
        size, rank = parameter.ds_tensor.numel(), self.engine._get_param_partition_rank(parameter)
        mine = whole.reshape(-1)[size * rank : size * (rank + 1)]
        part = torch.zeros(size, dtype=whole.dtype, device=whole.device)
        part[: mine.numel()] = mine
        return part

    def finish(self) -> None:
        engine = self.engine
        engine._partition_all_parameters()
        for index in range(len(engine.fp16_groups)):
            engine._reassign_or_swap_out_partitioned_parameters(index)
        if engine.persistent_parameters:
            engine.persistent_parameters[0].all_gather(engine.persistent_parameters)


def _filled(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "DeepSpeed has no state of this parameter"
    return tensor.detach().float()


def _scalar(inner: torch.optim.Optimizer, key: str, value: Any) -> JsonValue:
    if isinstance(value, Tensor) and can_store(value.dtype):
        return {"value": value.item(), "dtype": str(value.dtype).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise _not_storable(type(inner).__name__, f"{key} is {type(value).__name__}")


def _unscalar(
    inner: torch.optim.Optimizer,
    key: str,
    value: JsonValue,
    group: Mapping[str, Any],
    device: torch.device,
) -> Any:
    """A scalar as this optimizer keeps it: torch counts steps in tensors, DeepSpeed in numbers."""
    number = value["value"] if isinstance(value, dict) else value
    if key == "step" and isinstance(number, int | float):
        if type(inner).__module__.startswith("torch.optim"):
            on_device = group.get("fused") or group.get("capturable")
            return torch.tensor(float(number), device=device if on_device else "cpu")
        if not isinstance(value, dict) or type(inner).__module__.startswith("deepspeed"):
            return int(number)
    if isinstance(value, dict):
        return torch.tensor(number, dtype=getattr(torch, str(value["dtype"])), device=device)
    return number


def misfits(
    parameters: Mapping[str, nn.Parameter], specs: Mapping[str, Mapping[str, TensorSpec]]
) -> Iterator[str]:
    """What in a saved optimizer state does not fit the weights that train, in a few words each."""
    for name, keys in specs.items():
        if name not in parameters:
            yield f"{name} doesn't train"
            continue
        for key in _MOMENTS & keys.keys():
            shape, wanted = list(keys[key].shape), list(full_shape(parameters[name]))
            if shape != wanted:
                yield f"{key} of {name} has shape {shape} instead of {wanted}"
