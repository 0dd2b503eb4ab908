"""Whether the loss, the gradients and the weights of a step are numbers, found before the weights change.

Every process takes part: they agree by one all-reduce per step, and each raises the same error. What is
slow, such as finding the weight whose gradient is not a number, happens only once something is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.model.among_processes import all_reduce_max, by_first, gather_json
from llava_recipes.plan.trainable import groups_of
from llava_recipes.plan.types import ParamGroupPlan

CODE: Final = "loss-or-gradient-not-finite"
NUM_SHOWN_SAMPLES: Final = 8
SMALLEST_SCALE: Final = 1.0
"""With this loss scale gradients are not scaled at all: where they overflow, no other scale helps."""
MAX_SKIPPED: Final = 40
"""Updates skipped in a row from which a loss scale is not being searched any more; from 2^32 it takes 33."""


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of this process."""

    loss: Tensor
    samples: Tensor | None
    """int64[B]: indices of the batch's samples."""


@dataclass(frozen=True)
class Verdict:
    """What the processes found out together about a step."""

    bad_loss: bool
    bad_gradient: bool
    bad_weight: bool
    has_gradient: bool
    """Whether any gradient differs from 0."""
    has_images: bool


@dataclass
class Findings:
    """What one process knows about a step that is not finite."""

    passes: list[tuple[int, float, list[int]]] = field(default_factory=list)
    """Number from 1, loss, and samples of each pass whose loss is not finite; else of every pass."""
    num_passes: int = 0
    weight: tuple[str, str] | None = None
    """The first one that is not finite, and what it contains."""
    gradient: tuple[str, str] | None = None


class StepCheck:
    """Collects the passes of a step, and decides before its update whether all numbers are finite.

    `trained` are the parameters that train, by canonical name; `sample_name` gives the words for a sample;
    `blame` the key to change, and what to do, for the weight in which it shows, if one is known.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        *,
        device: torch.device,
        blame: Callable[[str | None], tuple[KeyPath, str]],
        sample_name: Callable[[int], str],
    ) -> None:
        self._trained = dict(trained)
        self._device = device
        self._blame = blame
        self._sample_name = sample_name
        self._passes: list[Pass] = []
        self._has_images = False
        self._num_skipped = 0

    def note_pass(self, loss: Tensor, *, samples: Tensor | None, has_images: bool) -> None:
        """Keep a pass until its step; nothing is read from the device."""
        self._passes.append(Pass(loss.detach(), samples))
        self._has_images |= has_images

    def decide(
        self,
        *,
        step: int,
        gradient_norm: Tensor,
        all_weights: Mapping[str, nn.Parameter],
        scale: float | None,
    ) -> Verdict:
        """Raise RecipeError, on every process, when the update of `step` would use or keep a bad number.

        gradient_norm  float[]: any norm of this process's gradients
        all_weights    by name, to look for the cause; frozen ones too
        scale          the loss scale of fp16: while it is searched, gradients may be infinite, and their
                       updates are skipped. None elsewhere.
        """
        passes, has_images = self._passes, self._has_images
        self._passes, self._has_images = [], False
        verdict = self._agree(passes, gradient_norm, has_images)
        if verdict.bad_weight:
            verdict = replace(verdict, bad_weight=self._has_bad_weight())
        self._num_skipped = self._num_skipped + 1 if verdict.bad_gradient else 0
        searching = scale is not None and scale > SMALLEST_SCALE and self._num_skipped < MAX_SKIPPED
        bad_gradient = verdict.bad_gradient and not searching
        if not (verdict.bad_loss or bad_gradient or verdict.bad_weight):
            return verdict
        found = [_weight_trouble(all_weights)] if verdict.bad_loss or verdict.bad_weight else []
        findings = Findings(num_passes=len(passes), weight=next((each for each in found if each), None))
        losses = torch.stack([each.loss.float() for each in passes]).tolist() if passes else []
        is_finite = [math.isfinite(loss) for loss in losses]
        for number, (each, loss) in enumerate(zip(passes, losses, strict=True), start=1):
            if not verdict.bad_loss or not is_finite[number - 1]:
                findings.passes.append((number, loss, _list(each.samples)))
        if bad_gradient and not verdict.bad_loss:
            findings.gradient = self._gradient_trouble()
        everyone = [Findings(**each) for each in gather_json(asdict(findings), self._device)]

        def fail() -> JsonValue:
            raise self._error(verdict, everyone, step=step, scale=scale)

        by_first(fail, self._device)
        raise AssertionError("unreachable")

    def _agree(self, passes: Sequence[Pass], gradient_norm: Tensor, has_images: bool) -> Verdict:
        losses = torch.stack([each.loss.float() for each in passes]) if passes else torch.zeros(1)
        norm = gradient_norm.detach().to(self._device).float()
        # A sum of squares is the fastest to compute, and may overflow: then the weights are looked at again.
        weights = get_total_norm(local_parts(self._trained.values())).to(self._device).float()
        bad = [~losses.to(self._device).isfinite().all(), ~norm.isfinite(), ~weights.isfinite()]
        images = torch.tensor(has_images, device=self._device)
        flags = torch.stack([*bad, norm != 0, images]).to(torch.uint8)
        all_reduce_max(flags)
        # The only wait for the device.
        return Verdict(*map(bool, flags.tolist()))

    def _has_bad_weight(self) -> bool:
        """Whether a weight of any process is NaN or infinite, however large the others are."""
        trouble = _weight_trouble(self._trained)
        flag = torch.tensor(trouble is not None, device=self._device).to(torch.uint8)
        all_reduce_max(flag)
        return bool(flag.item())

    def _gradient_trouble(self) -> tuple[str, str] | None:
        """The first weight whose gradient on this process is not finite, and what it is."""
        for name, parameter in self._trained.items():
            gradient = local_gradient(parameter)
            if gradient is not None and (trouble := _trouble(gradient)) is not None:
                return name, trouble
        return None

    def without_gradient(self) -> tuple[str, ...]:
        """The names of the weights whose gradient is exactly 0. For all processes together."""
        gradients = [local_gradient(parameter) for parameter in self._trained.values()]
        moved = torch.stack(
            [torch.tensor(False) if each is None else each.any().cpu() for each in gradients]
        ).to(self._device, torch.uint8)
        all_reduce_max(moved)
        return tuple(name for name, some in zip(self._trained, moved.tolist(), strict=True) if not some)

    def _error(
        self,
        verdict: Verdict,
        everyone: Sequence[Findings],
        *,
        step: int,
        scale: float | None,
    ) -> RecipeError:
        weight = next((each.weight for each in everyone if each.weight is not None), None)
        gradient = next((each.gradient for each in everyone if each.gradient is not None), None)
        found = [] if weight is None else [f"{weight[0]} contains {weight[1]}"]
        path, advice = self._blame((weight or gradient or (None,))[0])
        if verdict.bad_loss:
            values = [loss for each in everyone for _, loss, _ in each.passes]
            message = f"the loss is {values[0]} at step {step:,}"
        elif verdict.bad_weight:
            assert weight is not None
            message = f"{weight[0]} has NaN or infinite values before the update of step {step:,}"
            found = []
        elif scale is not None:
            message = f"the gradients are not finite at step {step:,}, whatever the loss scale is"
            found.append(f"{self._num_skipped:,} updates in a row were skipped; the loss scale is {scale:g}")
        elif gradient is None:
            message = f"the norm of all gradients is not finite at step {step:,}"
        else:
            message = f"the gradient of {gradient[0]} is {gradient[1]} at step {step:,}"
        return RecipeError.of(
            f"{message}; training stopped before this update",
            code="weights-not-finite" if verdict.bad_weight and not verdict.bad_loss else CODE,
            path=path,
            found="\n".join([*found, *self._describe(everyone)]),
            hint=advice,
        )

    def _describe(self, everyone: Sequence[Findings]) -> Iterator[str]:
        """The samples of each pass, with process and pass where there are several."""
        for rank, findings in enumerate(everyone):
            for number, _, samples in findings.passes:
                where = [f"process {rank + 1} of {len(everyone)}"] if len(everyone) > 1 else []
                where += [f"pass {number} of {findings.num_passes}"] if findings.num_passes > 1 else []
                names = [self._sample_name(index) for index in samples[:NUM_SHOWN_SAMPLES]]
                if len(samples) > len(names):
                    names.append(f"and {len(samples) - len(names):,} more")
                yield ": ".join(filter(None, [", ".join(where), "; ".join(names)]))


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of a parameter, or this process's part of it, between backward and update."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_grad

        part: Tensor | None = safe_get_local_grad(parameter)
        return part
    if hasattr(parameter, "_hp_mapping"):
        kept: Any = parameter
        if kept._hp_mapping is None:
            return None
        gradient: Tensor = kept._hp_mapping.get_lp_grad_fragment(kept._index_in_param_group)
        return gradient
    return parameter.grad


def zero_gradient_norm(optimizer: Any, trained: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """float[]: a norm of this process's gradients under ZeRO, before DeepSpeed's step."""
    gradients = _kept_gradients(optimizer)
    if not gradients:
        # Another optimizer of DeepSpeed's, or gradients on a disk.
        gradients = [part for each in trained if (part := local_gradient(each)) is not None and part.numel()]
    # The norm of scaled gradients has no place in fp16, the largest of them has.
    in_fp16 = any(gradient.dtype == torch.float16 for gradient in gradients)
    return get_total_norm(gradients, math.inf if in_fp16 else 2.0).to(device)


def _kept_gradients(optimizer: Any) -> list[Tensor]:
    """The gradients as ZeRO keeps them between backward and step; none where it keeps them elsewhere."""
    flat = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    groups = getattr(optimizer, "single_partition_of_fp32_groups", ()) if flat is None else flat
    averaged = getattr(optimizer, "averaged_gradients", {})
    kept = [gradient for group in averaged.values() for gradient in group or () if gradient is not None]
    # With the optimizer's states in the processor's memory the gradients are there too.
    kept += [group.grad for group in groups if group.grad is not None]
    return [gradient for gradient in kept if gradient.numel()]


def local_parts(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Each parameter, or under ZeRO-3 the part of it that this process keeps."""
    parts = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]
    return [part.detach() for part in parts if part.numel() and part.is_floating_point()]


def blamed_group(
    trained: Mapping[str, nn.Parameter], groups: Sequence[ParamGroupPlan], weight: str | None
) -> int | None:
    """The parameter group of a weight, or of the largest one on this process; None for weights in none."""
    if not groups:
        return None
    if weight is None or weight not in trained:
        # A rate that is too high shows in them before it does in others.
        weight = max(trained, key=lambda name: _largest(trained[name]))
    return groups_of(trained, groups).get(weight)


def _largest(parameter: nn.Parameter) -> float:
    return max((part.abs().nan_to_num(math.inf).max().item() for part in local_parts([parameter])), default=0)


def is_overflow(error: BaseException) -> bool:
    """Whether torch says that a number of Python's, such as a learning rate, does not fit into a tensor."""
    return isinstance(error, RuntimeError) and "without overflow" in str(error)


def _weight_trouble(weights: Mapping[str, nn.Parameter]) -> tuple[str, str] | None:
    for name, parameter in weights.items():
        for part in local_parts([parameter]):
            if (trouble := _trouble(part)) is not None:
                return name, trouble
    return None


def _trouble(tensor: Tensor) -> str | None:
    if bool(tensor.isfinite().all()):
        return None
    return "nan" if bool(tensor.isnan().any()) else "inf"


def _list(samples: Tensor | None) -> list[int]:
    return [] if samples is None else [int(index) for index in samples.tolist()]
