"""The README.md of an export: what the model is, how to use it, and how it was trained."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from llava_recipes import __version__
from llava_recipes.errors import RecipeError
from llava_recipes.export.jinja import writes_first_token
from llava_recipes.export.public_names import (
    is_hub_id,
    last_part,
    opened_as_folders,
    public_name,
    public_text,
    public_values,
)
from llava_recipes.files import real_path
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.foreign import in_short, read_by_library, read_object
from llava_recipes.recipe.scalars import say_number
from llava_recipes.recipe.source import parse_source
from llava_recipes.recipe.writer import write_values
from llava_recipes.runner.results import read_done
from llava_recipes.runner.run_folder import ENVIRONMENT, RECIPE, read_plan
from llava_recipes.screen import shown
from llava_recipes.use.opened import OpenedRun
from llava_recipes.use.trained_run import read_run

_SPECIAL = re.compile(r"[\\`*_\[\]|~#]")
_INSIDE_A_WORD = re.compile(r"(?<=\w)\\_(?=\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_BACKTICKS = re.compile(r"`+")


def one_line(text: str) -> str:
    """Text on one line, with white space and control characters as single spaces."""
    return shown(" ".join(text.split()))


def inline(text: str) -> str:
    """Text in a line, a heading or a table cell, never read as markup."""
    escaped = _SPECIAL.sub(r"\\\g<0>", one_line(text))
    escaped = "".join(_HTML.get(character, character) for character in escaped)
    # An underscore inside a word starts no emphasis.
    return _INSIDE_A_WORD.sub("_", escaped)


def code(text: str) -> str:
    """Text as inline code, outside of tables."""
    line = one_line(text)
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_block(text: str, language: str) -> str:
    """Text as a code block, with a fence longer than any inside it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}\n"


def _longest_run(text: str) -> int:
    return max((len(found) for found in _BACKTICKS.findall(text)), default=0)


LAYOUTS = {
    "hf": "llava-hf's layout (transformers, vLLM)",
    "llava": "the original LLaVA's layout",
    "gguf-ready": "two folders for llama.cpp's converters",
}
_HF_USE = """\
```python
from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained("PATH", device_map="auto")
processor = AutoProcessor.from_pretrained("PATH")
messages = [{"role": "user", "content": [
    {"type": "image", "image": "image.jpg"},
    {"type": "text", "text": "What is in this image?"},
]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=200)[0, inputs["input_ids"].shape[1]:]
print(processor.decode(answer, skip_special_tokens=True))
```

"""
_FIRST_TOKEN = {
    False: """\
The tokenizer, not the chat template, writes the beginning-of-text token, as in llava-hf's models: set
`"add_special_tokens": true` in chat requests to vLLM.
""",
    True: """\
The chat template writes the beginning-of-text token: leave `add_special_tokens` at its default, false, in
chat requests to vLLM.
""",
}
_USE = {
    "hf": _HF_USE,
    "llava": '```sh\nllava-recipe chat PATH --image image.jpg "What is in this image?"\n```\n',
    "gguf-ready": "",
}


def training_of(run: OpenedRun) -> str:
    """The card's section on the training; empty for another program's checkpoint.

    Raises RecipeError for a damaged file of the run: call it before a long export.
    """
    return _training(run.path, _folders(run)) if run.kind == "run" else ""


def write_card(
    run: OpenedRun, folder: Path, *, layout: str, dtype: torch.dtype, difference: float, training: str
) -> None:
    """Write README.md, or add to the layout's; `training` is the result of `training_of`."""
    file = folder / "README.md"
    before = file.read_text("utf-8") if file.exists() else ""
    folders = _folders(run)
    parts = [_front_matter(run, folders), _head(run, layout, dtype, difference, folders)]
    if _USE[layout]:
        first_token = _FIRST_TOKEN[writes_first_token(run)] if layout == "hf" else ""
        parts.append("## Use\n\n" + _USE[layout] + first_token)
    if before:
        parts.append(before.replace("# For llama.cpp", "## For llama.cpp", 1))
    if training:
        parts.append(training)
    parts.append(_license(run, folders))
    file.write_text("\n".join(parts), "utf-8")


def _folders(run: OpenedRun) -> frozenset[str]:
    """Sources of the run's recipe that are folders, though they may look like hub ids."""
    if run.kind != "run":
        return frozenset()
    said = read_plan(run.path)
    return opened_as_folders(said.model, read_run(run.path).model)


def _front_matter(run: OpenedRun, folders: frozenset[str]) -> str:
    head = {
        "base_model": _bases(run, folders),
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llava", "llava-recipes"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=True)}---\n"


def _bases(run: OpenedRun, folders: frozenset[str]) -> list[str]:
    """Hub ids of the base models; local folders are left out."""
    sources = (run.plan.language_model.source, run.plan.vision_tower.source)
    return list(dict.fromkeys(source for source in sources if source and is_hub_id(source, folders=folders)))


def _head(run: OpenedRun, layout: str, dtype: torch.dtype, difference: float, folders: frozenset[str]) -> str:
    plan = run.plan
    stored = str(dtype).removeprefix("torch.")
    rows = [
        ("language model", _source(plan.language_model.source, folders)),
        ("vision tower", _source(plan.vision_tower.source, folders)),
        ("tower's features", f"layer {plan.vision_tower.select_layer}, {plan.vision_tower.select_feature}"),
        ("projector", plan.projector.type),
        ("prompts", run.data.wording),
        ("images", run.data.image_aspect_ratio),
        ("weights", stored),
        ("made with", f"llava-recipes {__version__}, transformers {version('transformers')}"),
    ]
    table = "\n".join(f"| {name} | {inline(value)} |" for name, value in rows)
    return (
        f"# {inline(_name(run))}\n\nA LLaVA model in {LAYOUTS[layout]}.\n\n| | |\n|---|---|\n{table}\n\n"
        "The export was opened again and checked: for a fixed prompt and image its logits differ from the "
        f"run's by {say_number(difference, digits=2)}, relative to the largest, in float32 with {stored} "
        "weights on both sides.\n"
    )


def _name(run: OpenedRun) -> str:
    if run.kind != "run":
        return real_path(run.path).name
    plan = read_plan(run.path)
    return public_text(f"{plan.recipe}: {plan.stages[0].name}")


def _training(folder: Path, folders: frozenset[str]) -> str:
    stage, done = read_plan(folder).stages[0], read_done(folder)
    steps, loss = done.get("steps"), done.get("loss")
    rows = [
        ("stage", public_text(stage.name)),
        ("trained", ", ".join(stage.trainable_modules or stage.trainable) or "everything"),
        ("started from", ", ".join(map(last_part, stage.starts_from)) or "the base models"),
        ("optimizer steps", f"{steps:,}" if isinstance(steps, int) else "not recorded"),
        ("last loss", f"{loss:.4f}" if isinstance(loss, float) else "not recorded"),
        ("batch", f"{stage.train.global_batch_size:,} samples"),
        ("learning rate", say_number(stage.train.learning_rate)),
        ("precision", stage.train.precision),
        ("finished", str(done.get("finished"))),
    ]
    table = "\n".join(f"| {name} | {inline(value)} |" for name, value in rows)
    return (
        f"## Training\n\n| | |\n|---|---|\n{table}\n\n{_data(stage)}\n{_versions(folder)}\n"
        f"## Recipe\n\n{code_block(_recipe(folder, folders), 'yaml')}"
    )


def _recipe(folder: Path, folders: frozenset[str]) -> str:
    """The resolved recipe without paths of the machine."""
    file = folder / RECIPE
    with read_by_library(f"{RECIPE} cannot be read", code="file-cannot-be-read", files=[file]):
        text = file.read_text("utf-8")
    return write_values(public_values(parse_source(text, str(file)).root, folders=folders))


def _source(source: str | None, folders: frozenset[str]) -> str:
    if source is None:
        return "random weights from an inline config"
    is_hub = is_hub_id(source, folders=folders)
    return source if is_hub else f"{public_name(source, folders=folders)}, a local folder"


def _data(stage: StagePlan) -> str:
    lines = [
        f"- {code(last_part(source.annotations))}"
        + (f", {source.num_samples:,} samples" if source.num_samples is not None else "")
        + (f", images in {code(last_part(source.images))}" if source.images else "")
        for source in stage.data.sources
    ]
    return "Data:\n\n" + "\n".join(lines) + "\n"


def _versions(folder: Path) -> str:
    found = read_object(folder / ENVIRONMENT)
    given = found.get("packages")
    if not isinstance(given, dict):
        raise RecipeError.of(
            f"{ENVIRONMENT} has no mapping `packages`",
            code="file-cannot-be-read",
            found=f"{folder / ENVIRONMENT}: {in_short(given)}",
            hint="the run wrote it: restore it, or copy the one of an earlier run",
        )
    packages = ", ".join(f"{name} {number}" for name, number in given.items() if number)
    versions = f"llava-recipes {found.get('llava_recipes')}, Python {found.get('python')}, {packages}"
    return f"Trained with {versions}.\n"


def _license(run: OpenedRun, folders: frozenset[str]) -> str:
    sources = [run.plan.language_model.source, run.plan.vision_tower.source]
    named = " and ".join(
        inline(public_name(source, folders=folders)) for source in dict.fromkeys(sources) if source
    )
    ours = f"the licenses of {named}" if named else "a license that you choose"
    return (
        f"## License\n\nThese weights are under {ours} and the terms of their training data; "
        "check both before you share them.\n"
    )
