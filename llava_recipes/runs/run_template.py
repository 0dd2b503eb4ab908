"""The chat template of an opened run: its own layout's, or its tokenizer's made to take images."""

from __future__ import annotations

from llava_recipes.data.prompts import Prompts
from llava_recipes.runs.chat_template import Reader, jinja_of, wrapped
from llava_recipes.runs.checking import QUESTION
from llava_recipes.runs.opened import OpenedRun
from llava_recipes.templates import Turn


def writes_first_token(run: OpenedRun) -> bool:
    """Whether the chat template writes the token that begins a text, as tokenizers' own often do."""
    token = run.assembled.tokenizer.bos_token
    if run.data.template is not None or not token:
        return False
    prompts = Prompts(run.data, run.assembled.tokenizer, start_end=False)
    first, *_ = prompts.spell_prompt([Turn("human", QUESTION)], has_image=False)
    return first.text.startswith(str(token))


def chat_template_of(run: OpenedRun, *, reader: Reader, after_image: str = "", before_all: str = "") -> str:
    """The Jinja text by which others write the prompts that the run was trained with.

    For `after_image` and `before_all` see `jinja_of`.
    """
    tokens, system = run.plan.image_tokens, run.data.system_prompt
    if run.data.template is None:
        return wrapped(
            run.assembled.tokenizer.get_chat_template(),
            start_end=tokens.start_end,
            system_prompt=system,
            after_image=after_image,
            before_all=before_all,
            reader=reader,
        )
    # `plain` leaves the tokens out, except where they trained.
    is_written = run.data.template != "plain" or run.data.tokens_in_plain
    return jinja_of(
        run.data.template,
        start_end=tokens.start_end and is_written,
        end_of_answer=str(run.assembled.tokenizer.eos_token or "</s>"),
        system_prompt=system,
        after_image=after_image,
        before_all=before_all,
        reader=reader,
    )
