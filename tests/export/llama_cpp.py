"""What llama.cpp reads of an export, said again: its converters, its Jinja and its graph of LLaVA's tower.

As of ggml-org/llama.cpp at 0c1e57098, which llama-cpp-python 0.3.36 carries. Each function names its source.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

MARK, SERVERS_MARK = "<__media__>", "<__media_aB3x__>"
"""How llama-mtmd-cli marks an image in a message, and how llama-server does, with a random word."""

# common/jinja/value.cpp: value_string_t::get_builtins, value_array_t::get_builtins, global_builtins.
STRING_METHODS = {
    *("upper", "lower", "strip", "rstrip", "lstrip", "title", "capitalize", "length", "startswith"),
    *("endswith", "split", "rsplit", "replace", "format"),
}
FILTERS = {"length", "trim", "upper", "lower", "replace", "join", "first", "last", "default", "tojson"}
TESTS = {"string", "defined", "none", "mapping", "iterable", "in"}
FUNCTIONS = {"raise_exception", "namespace", "dict", "range", "strftime_now"}
# common/jinja/lexer.h: escape_chars.
ESCAPES = "ntrbfv\\'\""


def check_jinja(text: str) -> None:
    """Fail where a template uses what llama.cpp's Jinja lacks."""
    tree = Environment().parse(text)
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            assert call.node.attr in STRING_METHODS, f"llama.cpp has no method {call.node.attr}"
            # replace() with a count isn't implemented there.
            assert not call.kwargs and len(call.args) <= 2, call.node.attr
        else:
            assert isinstance(call.node, nodes.Name), call.node
            assert call.node.name in FUNCTIONS | macros, f"llama.cpp has no function {call.node.name}"
    for kind, known in ((nodes.Filter, FILTERS), (nodes.Test, TESTS)):
        assert {found.name for found in tree.find_all(kind)} <= known
    for literal in re.findall(r"\{[{%].*?[%}]\}", text, re.DOTALL):
        for escape in re.findall(r"\\(.)", literal, re.DOTALL):
            assert escape in ESCAPES, f"llama.cpp cannot read the escape \\{escape}"


class _FewMethods(ImmutableSandboxedEnvironment):
    """jinja2 whose strings have llama.cpp's methods alone."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr in STRING_METHODS if isinstance(obj, str) else super().is_safe_attribute(obj, attr, value)


def render(text: str, messages: list[dict[str, Any]], *, open_answer: bool, bos_token: str = "<s>") -> str:
    """The text that llama.cpp makes of messages; raises where it lacks something."""
    return _template(text).render(messages=messages, add_generation_prompt=open_answer, bos_token=bos_token)


@cache
def _template(text: str) -> Template:
    def raise_exception(message: str) -> NoReturn:
        raise ValueError(message)

    check_jinja(text)
    environment = _FewMethods(trim_blocks=True, lstrip_blocks=True)
    environment.globals = {"raise_exception": raise_exception, "namespace": environment.globals["namespace"]}
    return environment.from_string(text)


def chat_template(folder: Path) -> str | None:
    """gguf-py/gguf/vocab.py, SpecialVocab._try_load_from_tokenizer_json."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not settings:
        return None
    beside = folder / "chat_template.jinja"
    found = settings.get("chat_template", beside.read_text("utf-8") if beside.is_file() else None)
    assert found is None or isinstance(found, str)
    return found


def vocabulary_file(folder: Path) -> str | None:
    """conversion/llama.py, LlamaModel.set_vocab; None where it ends with an error."""
    if (folder / "tokenizer.model").is_file():
        return "tokenizer.model"
    kind = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["type"]
    return "tokenizer.json" if kind == "BPE" else None


def prompt_ids(folder: Path, text: str, *, bos_token: str = "<s>") -> list[int]:
    """Ids of a prompt for a sentencepiece vocabulary, without those of images.

    tools/mtmd/mtmd.cpp, mtmd_tokenizer::tokenize; src/llama-vocab.cpp, llama_vocab::impl::tokenize; what they
    go by is read in conversion/llama.py, LlamaModel.set_vocab.
    """
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    adds_space = settings.get("add_prefix_space")
    adds_space = True if adds_space is None else adds_space
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The vocabulary alone: what the tokenizer does about spaces isn't in a GGUF file.
    words = Tokenizer(file.model)
    tokens = {token.content: id for id, token in file.get_added_tokens_decoder().items()}
    parts = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    ids = [tokens[bos_token]]
    # common/chat.cpp takes a beginning that the template has written away again.
    for chunk in text.removeprefix(bos_token).split(MARK):
        is_prev_special, at = True, 0
        for found in [*parts.finditer(chunk), None]:
            raw = chunk[at : None if found is None else found.start()]
            if raw:
                raw = (" " if adds_space and is_prev_special else "") + raw
                ids += words.encode(raw.replace(" ", "▁")).ids
                is_prev_special = False
            if found is not None:
                ids.append(tokens[found[0]])
                is_prev_special, at = True, found.end()
    return ids


def num_tower_layers(config: dict[str, Any]) -> tuple[int, int]:
    """Layers in the file, and layers that run, by a tower's config.json with a projector beside it.

    tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py and tools/mtmd/models/llava.cpp.
    """
    num_layers = config["num_hidden_layers"]
    chosen = config.get("vision_feature_layer", config.get("mm_vision_select_layer"))
    if chosen is None:
        in_file = num_layers - 1
        return in_file, in_file - 1
    layers = [chosen] if isinstance(chosen, int) else chosen
    deepest = max(layer if layer >= 0 else num_layers + layer + 1 for layer in layers)
    return deepest, deepest


VISION_KEYS = {
    *("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "layer_norm_eps", "projection_dim", "hidden_act", "mm_vision_select_layer"),
}
"""Keys that convert_image_encoder_to_gguf.py reads with --clip-model-is-vision, and ours must have."""
