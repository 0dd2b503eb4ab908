"""Which characters of a chat template's text are learned, and chat templates that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from llava_recipes.data.chat_template import ChatTemplate
from llava_recipes.templates import Segment, Turn
from tests.chat_tokenizers import CHAT_TEMPLATES, open_tokenizer, save_tokenizer
from tests.laws import examples

CHATML = CHAT_TEMPLATES["qwen"]
# Qwen/Qwen3-8B: thoughts of earlier answers are dropped, and the last answer has some even if it has none.
THINKING = (
    "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- content.lstrip('\\n') + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GENERATION = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ 'A: ' }}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ 'Q: ' + message.content + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
TURNS = [Turn("human", "Q"), Turn("gpt", "A"), Turn("human", "R"), Turn("gpt", "B")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return open_tokenizer(save_tokenizer("qwen", tmp_path_factory.mktemp("qwen") / "tokenizer"))


def opened(
    tokenizer: PreTrainedTokenizerBase, text: str | None, system_prompt: str | None = None
) -> ChatTemplate:
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, system_prompt=system_prompt)


def learned(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments if segment.learn]


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


words = st.text(alphabet="ab <|>/:\né", max_size=12)
conversations = st.lists(st.tuples(words, words), min_size=1, max_size=4).map(
    lambda rounds: [turn for asked, said in rounds for turn in (Turn("human", asked), Turn("gpt", said))]
)


@examples(100)
@given(turns=conversations, cut=st.booleans())
def test_answers_and_their_ends_are_learned(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], cut: bool
) -> None:
    turns = turns[:-1] if cut else turns
    template = opened(tokenizer, CHATML)
    segments = template.spell(turns)
    messages = [{"role": {"human": "user", "gpt": "assistant"}[t.role], "content": t.text} for t in turns]
    assert joined(segments) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert learned(segments) == [f"{turn.text}<|im_end|>" for turn in turns if turn.role == "gpt"]
    for position in range(1, len(turns), 2):
        prompt = joined(template.spell_prompt(turns[:position]))
        answer = turns[position].text
        assert joined(segments).startswith(f"{prompt}{answer}<|im_end|>")


def test_what_a_template_writes_before_an_answer_and_not_in_a_prompt_is_learned(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    template = opened(tokenizer, THINKING)
    assert learned(template.spell(TURNS)) == ["A<|im_end|>", "<think>\n\n</think>\n\nB<|im_end|>"]
    assert joined(template.spell_prompt(TURNS[:3])).endswith("<|im_start|>assistant\n")
    assert template.stop == "<|im_end|>"


def test_thoughts_that_a_template_drops_are_reported(tokenizer: PreTrainedTokenizerBase) -> None:
    template = opened(tokenizer, THINKING)
    turns = [TURNS[0], Turn("gpt", "<think>\nhm\n</think>\n\nA"), *TURNS[2:]]
    with pytest.raises(ValueError, match="changes the turns' text"):
        template.spell(turns)


def test_a_template_that_says_what_is_written_is_taken_at_its_word(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    template = opened(tokenizer, GENERATION)
    segments = template.spell(TURNS)
    assert joined(segments) == "Q: Q\nA: A<|im_end|>Q: R\nA: B<|im_end|>"
    assert learned(segments) == ["A<|im_end|>", "B<|im_end|>"]
    tokenizer.chat_template = GENERATION
    messages = [{"role": {"human": "user", "gpt": "assistant"}[t.role], "content": t.text} for t in TURNS]
    mask = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids = [id for id, by_model in zip(mask["input_ids"], mask["assistant_masks"], strict=True) if by_model]
    assert tokenizer.decode(ids) == "".join(learned(segments))


def test_a_system_prompt_is_the_first_message(tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("qwen", "qwen2.5"):
        template = opened(tokenizer, CHAT_TEMPLATES[name], "Be brief.")
        assert joined(template.spell(TURNS)).startswith(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
        )
    usual = joined(opened(tokenizer, CHAT_TEMPLATES["qwen2.5"]).spell(TURNS))
    assert usual.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")


def test_white_space_may_be_cut_off(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [Turn("human", "\n Q \n"), Turn("gpt", "\n A \n"), Turn("human", ""), Turn("gpt", "\n\n")]
    for cut, expected in (
        ("content'] | trim", ["A", ""]),
        ("content'].lstrip('\n')", [" A \n", ""]),
        ("content'].rstrip()", ["\n A", ""]),
    ):
        template = opened(tokenizer, CHATML.replace("message['content']", f"message['{cut}"))
        assert learned(template.spell(turns)) == [f"{text}<|im_end|>" for text in expected]


def test_no_text_depends_on_the_day(tokenizer: PreTrainedTokenizerBase) -> None:
    dated = "{% set date_string = date_string or strftime_now('%d %b %Y') %}{{ date_string }} " + CHATML
    assert joined(opened(tokenizer, dated).spell(TURNS)).startswith("26 Jul 2024 ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no chat template"),
        ("{{ strftime_now('%Y') }}" + CHATML, "writes today's date"),
        (
            CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>' }}"),
            "a prompt differently",
        ),
        (CHATML.replace("'<|im_end|>' + '\n'", "'\n'"), "no token that ends an answer"),
        # Qwen/Qwen1.5-1.8B-Chat, as it was first published: the last answer has no end.
        (
            CHATML.replace(
                "'<|im_end|>' + '\n'", "('<|im_end|>\n' if add_generation_prompt or not loop.last else '')"
            ),
            "no token that ends",
        ),
        ("{{ messages[-1]['content'] }}<|im_end|>", "every turn once"),
        (
            CHATML.replace("message['content'] +", "message['content'] + message['content'] +"),
            "every turn once",
        ),
        ("{{ raise_exception('not today') }}", "refuses the conversation: not today"),
        ("{% if %}", "refuses the conversation"),
        ("{{ messages.__class__.__mro__ }}", "refuses the conversation|every turn once"),
        ("{{ 1 / 0 }}", "refuses the conversation"),
    ],
)
def test_refused(tokenizer: PreTrainedTokenizerBase, text: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(tokenizer, text)


def test_a_template_without_a_place_for_a_system_prompt(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    without = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    with pytest.raises(ValueError, match="no place for a system prompt"):
        opened(tokenizer, without, "Be brief.")
    gemma = open_tokenizer(save_tokenizer("gemma", tmp_path / "gemma"))
    with pytest.raises(ValueError, match="System role not supported"):
        opened(gemma, CHAT_TEMPLATES["gemma"], "Be brief.")


def test_several_templates_without_a_default(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = {"a": CHATML, "b": CHATML}
    with pytest.raises(ValueError, match="none is the default"):
        ChatTemplate(tokenizer, system_prompt=None)
    tokenizer.chat_template = {"default": CHATML, "b": CHATML}
    assert learned(ChatTemplate(tokenizer, system_prompt=None).spell(TURNS)) == ["A<|im_end|>", "B<|im_end|>"]
