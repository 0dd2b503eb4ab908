"""The keys of `model`: what is assembled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from llava_recipes import projectors
from llava_recipes.recipe.frozen import Frozen, Text

ProjectorName = Annotated[str, Field(pattern=projectors.pattern())]


class Quantization(Frozen):
    """Hold the language model's linear layers in few bits while adapters train beside them: QLoRA."""

    bits: Literal[4, 8] = Field(description="Bits of a weight. The head `lm_head` keeps its precision.")
    type: Literal["nf4", "fp4"] = Field(
        "nf4",
        description="What the 16 values stand for: `nf4` fits the spread of weights, `fp4` is a small float. "
        "4 bits only.",
    )
    double_quant: bool = Field(
        True, description="Quantize the scales of the blocks too: 0.4 bits less per weight. 4 bits only."
    )


class LanguageModel(Frozen):
    """The language model: `source` for pretrained weights, or `config` for random ones."""

    source: Text | None = Field(
        None,
        description="Hub id or local folder of a pretrained causal language model.",
        examples=["lmsys/vicuna-13b-v1.5"],
    )
    revision: Text | None = Field(None, description="Hub revision (commit, tag or branch) to pin.")
    config: dict[str, JsonValue] | None = Field(
        None,
        description="Inline Hugging Face config with its `model_type`; the weights are random.",
        examples=[{"model_type": "llama", "hidden_size": 64}],
    )
    tokenizer: Text | None = Field(
        None,
        description="Hub id or local folder of the tokenizer. Needed with `config`; default: `source`.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random weights; used with `config`.")
    quantization: Quantization | None = Field(
        None,
        description="Hold the linear layers in 4 or 8 bits; needs `source`, and bitsandbytes. "
        "Default: in the 16 or 32 bits of the stage.",
        examples=[{"bits": 4}],
    )


def _language_model_kind(value: object) -> str:
    return "source" if isinstance(value, str) else "mapping"


LanguageModelChoice = Annotated[
    Annotated[Text, Tag("source")] | Annotated[LanguageModel, Tag("mapping")],
    Discriminator(_language_model_kind),
]


class VisionTower(Frozen):
    """The vision tower: `source` for pretrained weights, or `config` for random ones."""

    source: Text | None = Field(
        None,
        description="Hub id or local folder of a CLIP or SigLIP model.",
        examples=["openai/clip-vit-large-patch14-336"],
    )
    revision: Text | None = Field(None, description="Hub revision (commit, tag or branch) to pin.")
    config: dict[str, JsonValue] | None = Field(
        None,
        description="Inline Hugging Face vision config with its `model_type`; the weights are random.",
        examples=[{"model_type": "clip_vision_model", "hidden_size": 32}],
    )
    image_processor: dict[str, JsonValue] | None = Field(
        None,
        description="Image processor settings (size, crop, mean, std), over the defaults for `config`.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random weights; used with `config`.")
    select_layer: int = Field(
        -2,
        description="Which hidden state of the tower is used: -1 the last layer, -2 the second to last. "
        "Index 0 is the embedding output.",
    )
    select_feature: Literal["patch", "cls_patch"] = Field(
        "patch", description="`patch` drops the class token, `cls_patch` keeps it."
    )


class Projector(Frozen):
    """The module between vision tower and language model."""

    type: ProjectorName = Field(
        projectors.STOCK,
        description="; ".join(f"`{kind.name}`: {kind.meaning}" for kind in projectors.PROJECTOR_TYPES) + ".",
        examples=["linear", "mlp2x_gelu", "identity"],
    )
    init_from: Text | None = Field(
        None,
        description="File with initial weights, `.bin` or `.safetensors`, with the original's key names.",
        examples=["./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"],
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random initial weights.")


class ImageTokens(Frozen):
    """Extra tokens around the image."""

    start_end: bool = Field(
        False,
        description="Put `<im_start>` and `<im_end>` around every image; `plain` does so only where they "
        "train. Their embeddings begin as the mean of all others.",
    )
    patch: bool = Field(False, description="Add the token `<im_patch>` to the tokenizer.")


class Model(Frozen):
    """What is assembled: language model, vision tower, projector."""

    language_model: LanguageModelChoice = Field(
        description="Hub id or folder of a causal language model, or a mapping.",
        examples=["lmsys/vicuna-13b-v1.5"],
    )
    vision_tower: VisionTower = Field(description="The vision tower and which of its features are used.")
    projector: Projector = Field(
        default_factory=lambda: Projector.model_construct(type=projectors.STOCK, init_from=None, seed=0),
        description="The module between vision tower and language model.",
    )
    image_tokens: ImageTokens = Field(
        default_factory=lambda: ImageTokens.model_construct(start_end=False, patch=False),
        description="Extra tokens around the image.",
    )
