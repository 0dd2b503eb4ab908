"""Configs of the gallery's models, by hub id: the numbers that sizes and plans are counted from.

They let a plan be made with no network and no weights. A folder on disk or an inline config goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import JsonValue

Config = Mapping[str, JsonValue]


def _llama(*, hidden: int, intermediate: int, layers: int, heads: int, positions: int, eps: float) -> Config:
    return MappingProxyType(
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": positions,
            "rms_norm_eps": eps,
            "tie_word_embeddings": False,
        }
    )


def _llama_7b(*, positions: int, eps: float) -> Config:
    return _llama(hidden=4096, intermediate=11008, layers=32, heads=32, positions=positions, eps=eps)


def _llama_13b(*, positions: int, eps: float) -> Config:
    return _llama(hidden=5120, intermediate=13824, layers=40, heads=40, positions=positions, eps=eps)


LANGUAGE_MODELS: Mapping[str, Config] = MappingProxyType(
    {
        "lmsys/vicuna-7b-v1.5": _llama_7b(positions=4096, eps=1e-5),
        "lmsys/vicuna-13b-v1.5": _llama_13b(positions=4096, eps=1e-5),
        "liuhaotian/llava-v1.5-7b": _llama_7b(positions=4096, eps=1e-5),
        "liuhaotian/llava-v1.5-13b": _llama_13b(positions=4096, eps=1e-5),
        "lmsys/vicuna-7b-v1.3": _llama_7b(positions=2048, eps=1e-6),
        "lmsys/vicuna-13b-v1.3": _llama_13b(positions=2048, eps=1e-6),
        "meta-llama/Llama-2-7b-chat-hf": _llama_7b(positions=4096, eps=1e-5),
        "meta-llama/Llama-2-13b-chat-hf": _llama_13b(positions=4096, eps=1e-5),
        "mistralai/Mistral-7B-Instruct-v0.2": MappingProxyType(
            {
                "model_type": "mistral",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
            }
        ),
        "Qwen/Qwen2-7B-Instruct": MappingProxyType(
            {
                "model_type": "qwen2",
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
            }
        ),
    }
)


def _clip_large(*, image_px: int) -> Config:
    return MappingProxyType(
        {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": image_px,
            "patch_size": 14,
        }
    )


VISION_TOWERS: Mapping[str, Config] = MappingProxyType(
    {
        "openai/clip-vit-large-patch14-336": _clip_large(image_px=336),
        "openai/clip-vit-large-patch14": _clip_large(image_px=224),
        "google/siglip-so400m-patch14-384": MappingProxyType(
            {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
            }
        ),
    }
)
