"""How axolotl and LLaMA-Factory say what trains, in how many bits, and as which conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llava_recipes.migrate.draft import STAGE
from llava_recipes.migrate.quantization import default_part, put_bits, put_part
from llava_recipes.migrate.yaml_config import Config
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.scalars import Value, spell_value

_TRAINABLE = (STAGE, "trainable")
_ORDER = ("projector", "language_model", "lm_head", "vision_tower")
_SAME_TEXT: Mapping[str, str] = MappingProxyType(
    {"llava": "v1", "vicuna": "v1", "vicuna_v1": "v1", "v1": "v1", "plain": "plain"}
)
_BY_NAME: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("llama3", "llama_3"), "llama_3"),
        **dict.fromkeys(("qwen", "qwen2_vl", "qwen_25"), "qwen"),
        "gemma": "gemma",
        **dict.fromkeys(("phi3", "phi_3", "phi_35"), "phi3"),
    }
)
"""Templates of the same models whose text was not compared with ours."""


def refuse_preferences(config: Config, key: str, *, trains: Sequence[str]) -> None:
    """Raise RecipeError where a key names training on preferences; `trains` are the words that are none."""
    value = config.values.get(key)
    if value is None or value is False or value in trains:
        return
    raise RecipeError(
        Problem(
            f"`{key}: {spell_value(value)}` is another kind of training than recipes do",
            code="preference-training",
            mark=config.mark(key),
            found=spell_value(value),
            hint="a recipe trains on the answers of its records; migrate the config of that stage",
        )
    )


def put_template(config: Config, key: str) -> None:
    """Our template for a conversation, or the problem that there is none."""
    name = config.take(key)
    if name is None:
        return
    if name == "tokenizer_default":
        config.mapped(key, name, (STAGE, "data", "chat_template"), "tokenizer")
        return
    path, word = (STAGE, "data", "template"), str(name)
    if word in _SAME_TEXT:
        config.mapped(key, name, path, _SAME_TEXT[word])
    elif word in _BY_NAME:
        config.draft.put(path, _BY_NAME[word])
        why = "its text was not compared with ours: look at `llava-recipe preview`"
        config.draft.lost(key, word, why, config.mark(key), path=path)
    else:
        names = ", ".join((*_SAME_TEXT, *_BY_NAME))
        config.draft.problems.append(
            Problem(
                f"recipes have no template for the conversation `{word}`",
                code="unknown-conversation",
                mark=config.mark(key),
                found=f"{key}: {word}",
                hint=f"if a conversation of another name writes the same text, put that name here: {names}",
            )
        )


def put_adapters(config: Config, key: str, kind: Value) -> None:
    """Adapters beside every linear layer of the language model."""
    config.mapped(key, kind, (STAGE, "lora", "modules"), ["language_model"])


def target_modules(config: Config, keys: Sequence[str]) -> None:
    """Which layers have adapters."""
    for key in keys:
        value = config.take(key)
        if value in (True, "all", "all-linear"):
            why = "adapters go into every linear layer of the language model"
            config.draft.needless(key, spell_value(value), why, config.mark(key))
        elif value is not None:
            config.lost(key, value, "write module globs in `lora: {modules: […]}`")


def quantization_of_axolotl(config: Config, *, is_qlora: bool) -> None:
    """`load_in_4bit` and `load_in_8bit`; `adapter: qlora` means the former."""
    four, eight = config.take("load_in_4bit"), config.take("load_in_8bit")
    if four is True:
        _put_four(config, "load_in_4bit", four)
    elif is_qlora:
        _put_four(config, "adapter", "qlora")
    elif eight is True:
        put_bits(config.draft, "load_in_8bit", "true", 8, mark=config.mark("load_in_8bit"))


def _put_four(config: Config, key: str, shown: Value) -> None:
    put_bits(config.draft, key, spell_value(shown), 4, mark=config.mark(key))
    default_part(config.draft, "bnb_4bit_quant_type", "type", "nf4")
    default_part(config.draft, "bnb_4bit_use_double_quant", "double_quant", True)


def quantization_of_llama_factory(config: Config) -> None:
    """`quantization_bit` and what belongs to it."""
    bits = config.take("quantization_bit")
    if bits is None:
        return
    method = config.take("quantization_method")
    if bits not in (4, 8) or method not in (None, "bitsandbytes", "bnb"):
        config.lost("quantization_bit", bits, "recipes know 4 and 8 bits, of bitsandbytes")
        if method is not None:
            config.lost("quantization_method", method, "recipes know bitsandbytes")
        return
    assert isinstance(bits, int)
    put_bits(config.draft, "quantization_bit", str(bits), bits, mark=config.mark("quantization_bit"))
    if method is not None:
        config.draft.needless(
            "quantization_method", str(method), "as recipes do it", config.mark("quantization_method")
        )
    for key, name, default in (
        ("quantization_type", "type", "nf4"),
        ("double_quantization", "double_quant", True),
    ):
        value = config.take(key)
        if bits == 8 and value is not None:
            config.draft.needless(key, spell_value(value), "it goes with 4 bits", config.mark(key))
        elif bits == 4 and value is not None:
            put_part(config.draft, key, spell_value(value), name, value, mark=config.mark(key))
        elif bits == 4:
            default_part(config.draft, key, name, default)


def freezing_of_axolotl(config: Config, *, has_adapters: bool) -> None:
    """The projector alone, or with it the language model or its adapters."""
    given = {key: config.take(key) for key in ("tune_mm_mlp_adapter", "mm_freeze_backbone")}
    alone = given["tune_mm_mlp_adapter"] is True
    is_frozen = alone or given["mm_freeze_backbone"] is True
    trained = ["projector"] if is_frozen else ["projector", "language_model", "lm_head"]
    if has_adapters and not alone:
        trained = []
    config.draft.put((STAGE, "freeze"), "all")
    config.draft.put(_TRAINABLE, list[Value](trained))
    for key, value in given.items():
        if value is not None:
            config.draft.tell_mapped(key, spell_value(value), _TRAINABLE, mark=config.mark(key))
    if not is_frozen:
        config.draft.default("what trains", _TRAINABLE, list[Value](trained))


def freezing_of_llama_factory(config: Config, kind: Value) -> None:
    """`full` trains the language model alone unless the other parts are set free; `lora` its adapters."""
    trained = ["language_model", "lm_head"] if kind == "full" else []
    alone = config.take("train_mm_proj_only")
    switches = (
        ("freeze_multi_modal_projector", ["projector"], True),
        ("freeze_vision_tower", ["vision_tower"], True),
        ("freeze_language_model", ["language_model", "lm_head"], False),
    )
    for key, modules, default in switches:
        given = config.take(key)
        freezes = default if given is None else given is True
        if alone is True:
            if given is not None:
                why = "`train_mm_proj_only` goes before it"
                config.draft.needless(key, spell_value(given), why, config.mark(key))
            continue
        if freezes:
            trained = [name for name in trained if name not in modules]
        elif kind == "full":
            trained = [*trained, *(name for name in modules if name not in trained)]
        if given is None and default:
            config.draft.default(key, _TRAINABLE, True)
        elif given is not None and kind == "lora" and freezes != default:
            config.lost(
                key, given, "with adapters it moves them to other parts: write `lora: {modules: […]}`"
            )
        elif given is not None:
            config.draft.tell_mapped(key, spell_value(given), _TRAINABLE, mark=config.mark(key))
    if alone is True and kind == "full":
        trained = ["projector"]
    config.draft.put((STAGE, "freeze"), "all")
    config.draft.put(_TRAINABLE, [name for name in _ORDER if name in trained])
    _tell_kind(config, kind, alone)


def _tell_kind(config: Config, kind: Value, alone: Value) -> None:
    if alone is True and kind != "full":
        config.lost("train_mm_proj_only", alone, "LLaMA-Factory takes it with `finetuning_type: full` alone")
    elif alone is not None:
        mark = config.mark("train_mm_proj_only")
        config.draft.tell_mapped("train_mm_proj_only", spell_value(alone), _TRAINABLE, mark=mark)
    if kind == "full":
        config.draft.tell_mapped("finetuning_type", "full", _TRAINABLE, mark=config.mark("finetuning_type"))
    elif kind != "lora":
        config.lost("finetuning_type", kind, "write `freeze:` and `trainable:` in the stage")
