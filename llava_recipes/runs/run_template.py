"""The chat template of an opened run: its own layout's, or its tokenizer's made to take images."""

from __future__ import annotations

from llava_recipes.runs.chat_template import Reader, jinja_of, wrapped
from llava_recipes.runs.opened import OpenedRun


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
