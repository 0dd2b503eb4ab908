"""Where the keys come from: the flags of the original's training script, and Hugging Face's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Flag:
    """A flag of the original's script, and what it does when it is left out there."""

    name: str
    default: str


FLAGS: Mapping[str, Flag] = MappingProxyType(
    {
        "model.language_model": Flag("model_name_or_path", "facebook/opt-125m"),
        "model.language_model.source": Flag("model_name_or_path", "facebook/opt-125m"),
        "model.vision_tower.source": Flag("vision_tower", "none, a model without pictures"),
        "model.vision_tower.select_layer": Flag("mm_vision_select_layer", "-1"),
        "model.vision_tower.select_feature": Flag("mm_vision_select_feature", "patch"),
        "model.projector.type": Flag("mm_projector_type", "linear"),
        "model.projector.init_from": Flag("pretrain_mm_mlp_adapter", "none"),
        "model.image_tokens.start_end": Flag("mm_use_im_start_end", "False"),
        "model.image_tokens.patch": Flag("mm_use_im_patch_token", "True"),
        "stages[].freeze": Flag("freeze_backbone", "False"),
        "stages[].trainable": Flag("tune_mm_mlp_adapter", "False, everything trains"),
        "stages[].data.template": Flag("version", "v0"),
        "stages[].data.sources[].annotations": Flag("data_path", "none"),
        "stages[].data.sources[].images": Flag("image_folder", "none"),
        "stages[].data.image_aspect_ratio": Flag("image_aspect_ratio", "square"),
        "stages[].data.max_length": Flag("model_max_length", "512"),
        "stages[].data.lazy_preprocess": Flag("lazy_preprocess", "False"),
        "stages[].data.group_by": Flag("group_by_modality_length", "False"),
        "stages[].lora": Flag("lora_enable", "False"),
        "stages[].lora.r": Flag("lora_r", "64"),
        "stages[].lora.alpha": Flag("lora_alpha", "16"),
        "stages[].lora.dropout": Flag("lora_dropout", "0.05"),
        "stages[].lora.bias": Flag("lora_bias", "none"),
        "stages[].param_groups": Flag("mm_projector_lr", "none, the projector learns like the rest"),
        "stages[].deepspeed": Flag("deepspeed", "none"),
        "stages[].output_dir": Flag("output_dir", "none"),
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
