"""The models and data that benchmarks/gpu_steps.py measures: LLaVA-1.5 at true shapes, and a tiny one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.drawn import draw_data, draw_tokenizer
from llava_recipes.plan import families

_VICUNA = "lmsys/vicuna-{}-v1.5"
_CLIP = "openai/clip-vit-large-patch14-336"


@dataclass(frozen=True)
class Model:
    """Configs of a language model and a tower."""

    language: Mapping[str, Any]
    tower: Mapping[str, Any]


MODELS: Mapping[str, Model] = {
    "7B": Model(families.LANGUAGE_MODELS[_VICUNA.format("7b")], families.VISION_TOWERS[_CLIP]),
    "13B": Model(families.LANGUAGE_MODELS[_VICUNA.format("13b")], families.VISION_TOWERS[_CLIP]),
    "tiny": Model(
        {
            "model_type": "llama",
            "vocab_size": 1000,
            # Below 128, bitsandbytes trains nothing on a CPU.
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
        {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
    ),
}

_PROJECTOR = {"freeze": "all", "trainable": ["projector"]}
_LORA = {**_PROJECTOR, "lora": {"r": 128, "alpha": 256, "dropout": 0.05}}
TUNINGS: Mapping[str, dict[str, Any]] = {"Stage 1": _PROJECTOR, "LoRA": _LORA, "QLoRA": _LORA}


def draw_sample_data(folder: Path, model_name: str, tuning: str, *, num_samples: int) -> None:
    """Write configs, a tokenizer and usual samples.

    A sample has 29 text tokens and 28 labels in Stage 1, 350 and 200 in Stage 2, as `plan` assumes.
    """
    vocab_size = int(MODELS[model_name].language["vocab_size"])
    words = draw_tokenizer(folder / "tokenizer", vocab_size=vocab_size)
    (folder / "language_model").mkdir()
    config = json.dumps(dict(MODELS[model_name].language))
    (folder / "language_model" / "config.json").write_text(config)
    first = tuning == "Stage 1"
    draw_data(
        folder,
        num_samples=num_samples,
        words=words,
        num_answer_words=[27] if first else [199],
        num_question_words=0 if first else 123,
    )


def recipe_values(
    folder: Path, model_name: str, tuning: str, *, batch: int, checkpointing: bool
) -> dict[str, Any]:
    """The recipe of one stage over what `draw_sample_data` wrote."""
    model = MODELS[model_name]
    language: dict[str, Any] = {
        # A recipe with an inline config says that the weights are random, and may not quantize them.
        "source": str(folder / "language_model"),
        "tokenizer": str(folder / "tokenizer"),
    }
    if tuning == "QLoRA":
        language["quantization"] = {"bits": 4, "type": "nf4", "double_quant": True}
    first = tuning == "Stage 1"
    stage = {
        "name": "measured",
        **TUNINGS[tuning],
        "data": {
            "template": "plain" if first else "v1",
            "sources": [
                {"annotations": str(folder / "captions.json"), "images": str(folder / "images")},
            ],
            "image_aspect_ratio": "square" if first else "pad",
            "max_length": 2048,
        },
        "train": {
            "max_steps": 10,
            "per_device_train_batch_size": batch,
            "learning_rate": 1e-3 if first else 2e-4,
            "bf16": True,
            "gradient_checkpointing": checkpointing,
        },
        "deepspeed": "none",
        "output_dir": str(folder / "run"),
    }
    return {
        "version": 1,
        "name": "gpu-benchmark",
        "model": {
            "language_model": language,
            "vision_tower": {"config": dict(model.tower), "select_layer": -2},
            "projector": {"type": "mlp2x_gelu"},
        },
        "stages": [stage],
    }
