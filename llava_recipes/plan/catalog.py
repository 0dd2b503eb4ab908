"""Configs of the gallery's models, by hub id: the numbers that sizes and plans are counted from.

They let a plan be made with no network and no weights. A folder on disk or an inline config goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import JsonValue

Config = Mapping[str, JsonValue]


def _decoder(
    model_type: str,
    *,
    vocab: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    pairs: int,
    positions: int,
    eps: float,
    tied: bool = False,
    head_dim: int | None = None,
) -> Config:
    """A language model's config; `pairs` are its key-value heads, `head_dim` only where the config has it."""
    values: dict[str, JsonValue] = {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": pairs,
        "max_position_embeddings": positions,
        "rms_norm_eps": eps,
        "tie_word_embeddings": tied,
    }
    if head_dim is not None:
        values["head_dim"] = head_dim
    return MappingProxyType(values)


def _llama_7b(*, positions: int, eps: float) -> Config:
    return _decoder(
        "llama",
        vocab=32000,
        hidden=4096,
        intermediate=11008,
        layers=32,
        heads=32,
        pairs=32,
        positions=positions,
        eps=eps,
    )


def _llama_13b(*, positions: int, eps: float) -> Config:
    return _decoder(
        "llama",
        vocab=32000,
        hidden=5120,
        intermediate=13824,
        layers=40,
        heads=40,
        pairs=40,
        positions=positions,
        eps=eps,
    )


def _llama_3_2(*, hidden: int, layers: int, heads: int, head_dim: int) -> Config:
    return _decoder(
        "llama",
        vocab=128256,
        hidden=hidden,
        intermediate=8192,
        layers=layers,
        heads=heads,
        pairs=8,
        head_dim=head_dim,
        positions=131072,
        eps=1e-5,
        tied=True,
    )


def _small_qwen3(*, hidden: int, intermediate: int) -> Config:
    return _decoder(
        "qwen3",
        vocab=151936,
        hidden=hidden,
        intermediate=intermediate,
        layers=28,
        heads=16,
        pairs=8,
        head_dim=128,
        positions=40960,
        eps=1e-6,
        tied=True,
    )


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
        "meta-llama/Meta-Llama-3-8B-Instruct": _decoder(
            "llama",
            vocab=128256,
            hidden=4096,
            intermediate=14336,
            layers=32,
            heads=32,
            pairs=8,
            positions=8192,
            eps=1e-5,
        ),
        "meta-llama/Llama-3.2-1B-Instruct": _llama_3_2(hidden=2048, layers=16, heads=32, head_dim=64),
        "meta-llama/Llama-3.2-3B-Instruct": _llama_3_2(hidden=3072, layers=28, heads=24, head_dim=128),
        "mistralai/Mistral-7B-Instruct-v0.2": _decoder(
            "mistral",
            vocab=32000,
            hidden=4096,
            intermediate=14336,
            layers=32,
            heads=32,
            pairs=8,
            positions=32768,
            eps=1e-5,
        ),
        "Qwen/Qwen2-7B-Instruct": _decoder(
            "qwen2",
            vocab=152064,
            hidden=3584,
            intermediate=18944,
            layers=28,
            heads=28,
            pairs=4,
            positions=32768,
            eps=1e-6,
        ),
        "Qwen/Qwen3-0.6B": _small_qwen3(hidden=1024, intermediate=3072),
        "Qwen/Qwen3-1.7B": _small_qwen3(hidden=2048, intermediate=6144),
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


def _siglip_so400m(*, image_px: int, patch: int) -> Config:
    """SigLIP's largest published tower; that of SigLIP 2 at fixed sizes is the same, and says so."""
    return MappingProxyType(
        {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": image_px,
            "patch_size": patch,
        }
    )


VISION_TOWERS: Mapping[str, Config] = MappingProxyType(
    {
        "openai/clip-vit-large-patch14-336": _clip_large(image_px=336),
        "openai/clip-vit-large-patch14": _clip_large(image_px=224),
        "google/siglip-so400m-patch14-384": _siglip_so400m(image_px=384, patch=14),
        "google/siglip2-so400m-patch14-384": _siglip_so400m(image_px=384, patch=14),
    }
)
