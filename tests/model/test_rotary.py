"""Rotary angles are computed without TF32, whatever is set for the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from llava_recipes.model.assemble import assemble
from llava_recipes.model.forward import keep_angles_exact
from tests.model.plans import GOLDEN, plan_of

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def usual_precision() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    MATMUL.fp32_precision = "none"


class Angles(nn.Module):
    """Writes down what float32 matrix products may do meanwhile."""

    inv_freq: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(2))
        self.seen: list[str] = []

    def forward(self, fail: bool = False) -> None:
        self.seen.append(MATMUL.fp32_precision)
        if fail:
            raise ValueError("fails")


@pytest.mark.parametrize(("general", "own"), [("tf32", None), ("none", "tf32"), ("tf32", "ieee")])
def test_tf32_is_off_for_the_time_of_the_angles(general: str, own: str | None) -> None:
    torch.backends.fp32_precision = general  # type: ignore[attr-defined]
    if own is not None:
        MATMUL.fp32_precision = own
    angles = Angles()
    keep_angles_exact(nn.Sequential(angles))
    before = MATMUL.fp32_precision
    angles()
    with pytest.raises(ValueError, match="fails"):
        angles(fail=True)
    assert angles.seen == ["ieee", "ieee"]
    assert MATMUL.fp32_precision == before
    if own is None:
        # What was inherited still is.
        torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
        assert MATMUL.fp32_precision == "ieee"


def test_an_assembled_model_does_so() -> None:
    plan = plan_of(init_from=GOLDEN / "03_splice" / "mm_projector.safetensors", start_end=True)
    model = assemble(plan, dtype=torch.float32).model
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    seen = []
    rotary = model.model.language_model.rotary_emb
    rotary.register_forward_pre_hook(lambda *_: seen.append(MATMUL.fp32_precision))
    model.model.language_model(input_ids=torch.tensor([[5, 6, 7]]))
    assert seen == ["ieee"]
    assert MATMUL.fp32_precision == "tf32"
