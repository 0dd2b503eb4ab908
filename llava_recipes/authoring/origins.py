"""Where the keys come from: the flags of the original's training script, and Hugging Face's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class OriginalFlag:
    """A flag of the original's script, and what it does when it is left out there."""

    name: str
    default: str


FLAGS: Mapping[str, OriginalFlag] = MappingProxyType(
    {
        "model.language_model": OriginalFlag("model_name_or_path", "facebook/opt-125m"),
        "model.language_model.source": OriginalFlag("model_name_or_path", "facebook/opt-125m"),
        "model.vision_tower.source": OriginalFlag("vision_tower", "none, a model without pictures"),
        "model.vision_tower.select_layer": OriginalFlag("mm_vision_select_layer", "-1"),
        "model.vision_tower.select_feature": OriginalFlag("mm_vision_select_feature", "patch"),
        "model.projector.type": OriginalFlag("mm_projector_type", "linear"),
        "model.projector.init_from": OriginalFlag("pretrain_mm_mlp_adapter", "none"),
        "model.image_tokens.start_end": OriginalFlag("mm_use_im_start_end", "False"),
        "model.image_tokens.patch": OriginalFlag("mm_use_im_patch_token", "True"),
        "stages[].freeze": OriginalFlag("freeze_backbone", "False"),
        "stages[].trainable": OriginalFlag("tune_mm_mlp_adapter", "False, everything trains"),
        "stages[].data.template": OriginalFlag("version", "v0"),
        "stages[].data.sources[].annotations": OriginalFlag("data_path", "none"),
        "stages[].data.sources[].images": OriginalFlag("image_folder", "none"),
        "stages[].data.image_aspect_ratio": OriginalFlag("image_aspect_ratio", "square"),
        "stages[].data.max_length": OriginalFlag("model_max_length", "512"),
        "stages[].data.lazy_preprocess": OriginalFlag("lazy_preprocess", "False"),
        "stages[].data.group_by": OriginalFlag("group_by_modality_length", "False"),
        "stages[].lora": OriginalFlag("lora_enable", "False"),
        "stages[].lora.r": OriginalFlag("lora_r", "64"),
        "stages[].lora.alpha": OriginalFlag("lora_alpha", "16"),
        "stages[].lora.dropout": OriginalFlag("lora_dropout", "0.05"),
        "stages[].lora.bias": OriginalFlag("lora_bias", "none"),
        "stages[].param_groups": OriginalFlag("mm_projector_lr", "none, the projector learns like the rest"),
        "stages[].deepspeed": OriginalFlag("deepspeed", "none"),
        "stages[].output_dir": OriginalFlag("output_dir", "none"),
    }
)
"""Keys that the original's script has as flags of its own, with the default there."""

_TRAIN = "stages[].train."
_OURS = ("global_batch_size", "loss_normalization", "extra")


def origin(path: str) -> str:
    """Where a key comes from, in a few words."""
    if path in FLAGS:
        flag = FLAGS[path]
        return f"the original's `--{flag.name}` (left out there: {flag.default})"
    name = path.removeprefix(_TRAIN)
    if path.startswith(_TRAIN) and "." not in name and name not in _OURS:
        return f"Hugging Face `TrainingArguments.{name}`; in the original `--{name}`"
    return "this recipe language"
