"""The language model's head, from hidden states to logits, checked against the model's own forward."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from llava_recipes.errors import RecipeError
from llava_recipes.model.configs import LANGUAGE_PATH, language_half
from llava_recipes.model.read_config import try_out


class Head(nn.Linear):
    """A linear head, then the scaling and soft cap that some language models put on their logits."""

    def __init__(self, num_in: int, num_out: int, *, bias: bool, scale: float, softcap: float | None) -> None:
        super().__init__(num_in, num_out, bias=bias, device="meta")
        self.scale, self.softcap = scale, softcap

    def forward(self, hidden: Tensor) -> Tensor:
        logits = super().forward(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def take_place_in(self, model: LlavaForConditionalGeneration) -> None:
        """Become the model's head, with its weight; a plain head is already the model's own."""
        if self.scale == 1.0 and self.softcap is None and self.bias is None:
            return
        self.weight = model.lm_head.weight
        self.out_features = language_half(model.config).vocab_size
        if self.bias is not None:
            # Not partitioned here: an engine that partitions includes it when it wraps the model.
            device = "meta" if self.weight.device.type == "meta" else "cpu"
            self.bias = nn.Parameter(torch.zeros(self.out_features, device=device, dtype=self.weight.dtype))
        model.lm_head = self


class _FixedBody(nn.Module):
    """A body for checking its head: returns the same hidden states for any input."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, *args: object, **kwargs: object) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self._hidden)


def causal_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    return cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def body_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    return cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])


def causal_skeleton(config: PreTrainedConfig, *, place: str = "its config") -> PreTrainedModel:
    """The causal language model of a config on the meta device: its names and shapes, no weights.

    Raises RecipeError, naming the config's `place`, when transformers has no causal language model for it or
    cannot build it.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) not in MODEL_MAPPING:
        raise RecipeError.of(
            "transformers knows no causal language model of this type",
            code="unknown-language-model",
            path=LANGUAGE_PATH,
            found=f"{place}: model_type {config.model_type}",
        )
    return try_out(causal_class(config), config, place=place, path=LANGUAGE_PATH)


def head_like(causal: PreTrainedModel) -> Head:
    """A head on the meta device that computes the logits of `causal` from its body's hidden states.

    Checked by running the model's own forward with a fixed body.
    Raises RecipeError for a model that does anything else between hidden states and logits.
    """
    theirs = causal.get_output_embeddings()
    if type(theirs) is not nn.Linear or type(causal.base_model) is not body_class(causal.config):
        raise _unsupported(causal, f"a head of type {type(theirs).__name__}")
    scale, softcap = _scale(causal.config), getattr(causal.config, "final_logit_softcapping", None)
    head = Head(
        theirs.in_features, theirs.out_features, bias=theirs.bias is not None, scale=scale, softcap=softcap
    )
    try:
        agree = _agrees(causal, head)
    except Exception as error:
        raise _unsupported(causal, f"its forward could not be checked: {error}") from error
    if not agree:
        raise _unsupported(causal, "its logits are not a linear map of the hidden states")
    return head


def _scale(config: PreTrainedConfig) -> float:
    multiplier = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    return float(multiplier or 1.0) / float(divisor or 1.0)


@torch.no_grad()
def _agrees(causal: PreTrainedModel, head: Head) -> bool:
    # Large values, so that a soft cap or a scale makes a difference.
    width = head.in_features
    hidden = 40 * torch.sin(torch.arange(width, dtype=torch.float32)).view(1, 1, width)
    small = nn.Linear(width, 5, bias=False, device="meta").to_empty(device="cpu")
    small.weight.copy_(torch.cos(torch.arange(5 * width, dtype=torch.float32)).view(5, width) / width)
    small.weight[0].copy_(hidden[0, 0] / width)
    adjusted = Head(width, 5, bias=False, scale=head.scale, softcap=head.softcap)
    adjusted.weight = small.weight
    setattr(causal, causal.base_model_prefix, _FixedBody(hidden))
    causal.set_output_embeddings(small)
    causal.eval()
    logits: Tensor = causal(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
    return torch.allclose(logits.float(), adjusted(hidden), rtol=1e-5, atol=1e-5)


def _unsupported(causal: PreTrainedModel, found: str) -> RecipeError:
    return RecipeError.of(
        f"the head of {type(causal).__name__} does more than this program can repeat exactly",
        code="head-not-supported",
        path=LANGUAGE_PATH,
        found=found,
        hint="use a language model with a plain linear head, such as llama, mistral, qwen2, qwen3 or phi",
    )
