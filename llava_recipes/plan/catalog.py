"""Configs of the gallery's models, by hub id: the numbers that sizes and plans are counted from.

They let a plan be made with no network and no weights. A folder on disk or an inline config goes first.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from llava_recipes.plan.families import Config

_SIZES = ("vocab_size", "hidden_size", "intermediate_size")
_COUNTS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _decoder(
    model_type: str,
    sizes: tuple[int, int, int],
    counts: tuple[int, int, int],
    *,
    positions: int,
    eps: float,
    tied: bool = False,
    **others: JsonValue,
) -> Config:
    """A language model's config: sizes of vocabulary, hidden and inner; layers, heads, key-value heads."""
    return {
        "model_type": model_type,
        **dict(zip(_SIZES, sizes, strict=True)),
        **dict(zip(_COUNTS, counts, strict=True)),
        "max_position_embeddings": positions,
        "rms_norm_eps": eps,
        "tie_word_embeddings": tied,
        **others,
    }


def _llama_7b(*, positions: int, eps: float) -> Config:
    return _decoder("llama", (32000, 4096, 11008), (32, 32, 32), positions=positions, eps=eps)


def _llama_13b(*, positions: int, eps: float) -> Config:
    return _decoder("llama", (32000, 5120, 13824), (40, 40, 40), positions=positions, eps=eps)


def _llama_3_2(*, hidden: int, layers: int, heads: int, head_dim: int) -> Config:
    sizes, counts = (128256, hidden, 8192), (layers, heads, 8)
    return _decoder("llama", sizes, counts, positions=131072, eps=1e-5, tied=True, head_dim=head_dim)


def _small_qwen3(*, hidden: int, intermediate: int) -> Config:
    sizes, counts = (151936, hidden, intermediate), (28, 16, 8)
    return _decoder("qwen3", sizes, counts, positions=40960, eps=1e-6, tied=True, head_dim=128)


LANGUAGE_MODELS: Mapping[str, Config] = {
    "lmsys/vicuna-7b-v1.5": _llama_7b(positions=4096, eps=1e-5),
    "lmsys/vicuna-13b-v1.5": _llama_13b(positions=4096, eps=1e-5),
    "liuhaotian/llava-v1.5-7b": _llama_7b(positions=4096, eps=1e-5),
    "liuhaotian/llava-v1.5-13b": _llama_13b(positions=4096, eps=1e-5),
    "lmsys/vicuna-7b-v1.3": _llama_7b(positions=2048, eps=1e-6),
    "lmsys/vicuna-13b-v1.3": _llama_13b(positions=2048, eps=1e-6),
    "meta-llama/Llama-2-7b-chat-hf": _llama_7b(positions=4096, eps=1e-5),
    "meta-llama/Llama-2-13b-chat-hf": _llama_13b(positions=4096, eps=1e-5),
    "meta-llama/Meta-Llama-3-8B-Instruct": _decoder(
        "llama", (128256, 4096, 14336), (32, 32, 8), positions=8192, eps=1e-5
    ),
    "meta-llama/Llama-3.2-1B-Instruct": _llama_3_2(hidden=2048, layers=16, heads=32, head_dim=64),
    "meta-llama/Llama-3.2-3B-Instruct": _llama_3_2(hidden=3072, layers=28, heads=24, head_dim=128),
    "mistralai/Mistral-7B-Instruct-v0.2": _decoder(
        "mistral", (32000, 4096, 14336), (32, 32, 8), positions=32768, eps=1e-5
    ),
    "Qwen/Qwen2-7B-Instruct": _decoder(
        "qwen2", (152064, 3584, 18944), (28, 28, 4), positions=32768, eps=1e-6
    ),
    "Qwen/Qwen3-0.6B": _small_qwen3(hidden=1024, intermediate=3072),
    "Qwen/Qwen3-1.7B": _small_qwen3(hidden=2048, intermediate=6144),
}


def _tower(model_type: str, sizes: tuple[int, int], layers: int, *, image_px: int, patch: int) -> Config:
    return {
        "model_type": model_type,
        **dict(zip(_SIZES[1:], sizes, strict=True)),
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "image_size": image_px,
        "patch_size": patch,
    }


# SigLIP's largest published tower; that of SigLIP 2 at fixed sizes is the same, and says so.
_SIGLIP_SO400M = _tower("siglip_vision_model", (1152, 4304), 27, image_px=384, patch=14)

VISION_TOWERS: Mapping[str, Config] = {
    "openai/clip-vit-large-patch14-336": _tower(
        "clip_vision_model", (1024, 4096), 24, image_px=336, patch=14
    ),
    "openai/clip-vit-large-patch14": _tower("clip_vision_model", (1024, 4096), 24, image_px=224, patch=14),
    "google/siglip-so400m-patch14-384": _SIGLIP_SO400M,
    "google/siglip2-so400m-patch14-384": _SIGLIP_SO400M,
}
