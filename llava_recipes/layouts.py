"""The conversation templates: their names, and a table of the strings that each of them writes.

Those marked `in_original` are LLaVA's (haotian-liu/LLaVA, conversation.py and train.py at c121f04). `qwen`,
`llama_3` and `gemma` are LLaVA-NeXT's, which are the models' own chat templates; `phi3` is Phi-3's own with
the system prompt that LLaVA-pp trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, cast

Template = Literal[
    "plain",
    "v0",
    "v0_mmtag",
    "v1",
    "v1_mmtag",
    "llava_v1",
    "llama_2",
    "llava_llama_2",
    "mistral_instruct",
    "mpt",
    "chatml_direct",
    "llama_3",
    "qwen",
    "gemma",
    "phi3",
]
"""The templates, by the names that plans use."""

Alias = Literal["default", "llava_v0", "mistral_direct", "v0_plain", "vicuna_v1"]

ALIASES: Mapping[str, Template] = MappingProxyType(
    {
        "default": "v0",
        "llava_v0": "v0",
        "mistral_direct": "chatml_direct",
        "v0_plain": "plain",
        "vicuna_v1": "v1",
    }
)
"""Other names in the original's table. `llava_v0` differs from `v0` there only in an example that its chat
puts before the first turn; training writes the same text."""

IMAGE = "<image>"
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
IMAGE_PATCH = "<im_patch>"

_VICUNA_SYSTEM = (
    "A chat between a curious {person} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
)
V1_SYSTEM = _VICUNA_SYSTEM.format(person="user")
_HUMAN_SYSTEM = _VICUNA_SYSTEM.format(person="human")
# The original joins the last two sentences without a space.
_MMTAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or "
    "illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false information."
)
_LANGUAGE_AND_VISION_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The text around the system prompt, the questions and the answers; only what says so is learned."""

    system: str | None = None
    """The system prompt if the recipe has none; None for a template without a place for one."""
    opening: tuple[str, str] = ("", "")
    """Before and after the system prompt."""
    human: tuple[str, str]
    """Before and after a question."""
    first_human: str | None = None
    """Before the first question, if that differs."""
    gpt: str
    """Before an answer; a prompt for the model ends with it."""
    gap: str = ""
    """Learned, before the words of an answer."""
    end: str | None
    """Learned, after the words of an answer; None for the tokenizer's end-of-sequence text."""
    after: str = ""
    """After `end`, not learned."""
    mark: str = ""
    """Learned, before every turn and, with a space, at the very end; `gpt` is then learned too."""
    stop: str | None = None
    """The text at which an answer ends; None if that is `end`."""
    tokens: tuple[str, ...] = ()
    """What the tokenizer must have as single tokens."""
    bare_when_empty: bool = False
    """Whether an empty turn is written without the spaces around it."""
    trims: bool = False
    """Whether questions and answers are stripped of outer spaces, as in the model's own chat template."""
    leading_answer: bool = False
    """Whether an answer at the start of a conversation, before any question, is written."""
    mmtag: bool = False
    """Whether images are put between `<Image>` and `</Image>`."""
    interleaved: bool = False
    """Whether several images of a turn, or one at its start, stay where they are."""
    in_original: bool = False
    """Whether the original LLaVA has it; the others are the language models' own."""


_V0 = Layout(
    system=_HUMAN_SYSTEM,
    opening=("", "\n\n"),
    human=(" Human: ", "\n"),
    gpt=" Assistant:",
    gap=" ",
    end="\n",
    mark="###",
    stop="###",
    leading_answer=True,
    in_original=True,
)
_V1 = Layout(
    system=V1_SYSTEM,
    opening=("", " "),
    human=("USER: ", " "),
    gpt="ASSISTANT:",
    gap=" ",
    end=None,
    bare_when_empty=True,
    in_original=True,
)
_LLAMA_2 = Layout(
    system=_LLAMA_2_SYSTEM,
    opening=("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
    first_human="",
    human=("<s>[INST] ", " [/INST]"),
    gpt="",
    gap=" ",
    end=" </s>",
    stop="</s>",
    tokens=("<s>", "</s>"),
    in_original=True,
)
_MPT = Layout(
    system=_MPT_SYSTEM,
    opening=("<|im_start|>system\n", "<|im_end|>"),
    human=("<|im_start|>user\n", "<|im_end|>"),
    gpt="<|im_start|>assistant\n",
    end="<|im_end|>",
    tokens=("<|im_start|>", "<|im_end|>"),
    in_original=True,
)
_QWEN = replace(
    _MPT,
    system="You are a helpful assistant.",
    opening=("<|im_start|>system\n", "<|im_end|>\n"),
    human=("<|im_start|>user\n", "<|im_end|>\n"),
    after="\n",
    interleaved=True,
    in_original=False,
)

LAYOUTS: Mapping[Template, Layout] = MappingProxyType(
    {
        # An image and its caption with nothing around them; templates.py writes it by a function of its own.
        "plain": Layout(human=("", ""), gpt="", end="\n", in_original=True),
        "v0": _V0,
        "v0_mmtag": replace(_V0, system=_MMTAG_SYSTEM, mmtag=True),
        "v1": _V1,
        "v1_mmtag": replace(_V1, system=_MMTAG_SYSTEM, mmtag=True),
        "llava_v1": replace(_V1, system=_HUMAN_SYSTEM),
        "llama_2": _LLAMA_2,
        "llava_llama_2": replace(_LLAMA_2, system=_LANGUAGE_AND_VISION_SYSTEM),
        "mistral_instruct": Layout(
            human=("[INST] ", " [/INST]"),
            gpt="",
            gap=" ",
            end=" </s>",
            stop="</s>",
            tokens=("</s>",),
            in_original=True,
        ),
        "mpt": _MPT,
        "chatml_direct": replace(_MPT, system="Answer the questions."),
        "llama_3": Layout(
            system=_LANGUAGE_AND_VISION_SYSTEM,
            opening=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
            human=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
            gpt="<|start_header_id|>assistant<|end_header_id|>\n\n",
            end="<|eot_id|>",
            tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            trims=True,
            interleaved=True,
        ),
        "qwen": _QWEN,
        "gemma": Layout(
            human=("<start_of_turn>user\n", "<end_of_turn>\n"),
            gpt="<start_of_turn>model\n",
            end="<end_of_turn>",
            after="\n",
            tokens=("<start_of_turn>", "<end_of_turn>"),
            trims=True,
            interleaved=True,
        ),
        "phi3": Layout(
            system="You are a helpful AI assistant.",
            opening=("<|system|>\n", "<|end|>\n"),
            human=("<|user|>\n", "<|end|>\n"),
            gpt="<|assistant|>\n",
            end="<|end|>",
            after="\n",
            tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            interleaved=True,
        ),
    }
)


def describe_templates() -> str:
    """The names in one paragraph, for the reference of the recipe language."""
    own = ", ".join(f"`{name}`" for name, layout in LAYOUTS.items() if not layout.in_original)
    others: dict[str, list[str]] = {}
    for alias, name in ALIASES.items():
        others.setdefault(name, []).append(f"`{alias}`")
    same = ", ".join(f"{' and '.join(aliases)} for `{name}`" for name, aliases in others.items())
    return (
        "How a conversation becomes text: `plain` (an image, then its caption), `v1` (Vicuna), another "
        f"template of LLaVA, or the language model's own: {own}. Aliases: {same}."
    )


def meaning_of(name: Template | Alias) -> Template:
    """The template that a name stands for."""
    return ALIASES.get(name) or cast(Template, name)
