"""Samples as a table that shows which tokens are learned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, cast

from rich.table import Table
from rich.text import Text

from llava_recipes.data.prompts import IGNORED, IMAGE_ID
from llava_recipes.screen import cell, console, shown

if TYPE_CHECKING:
    from llava_recipes.data.dataset import Preview, Sample

STYLES = {"learned": "bold green", "ignored": "dim", "image": "cyan"}
CUT = "red"


def print_table(preview: Preview, samples: Iterator[Sample]) -> None:
    """Print every sample with its learned tokens in color, or between ⟦ and ⟧ without colors."""
    screen = console()
    colored = screen.color_system is not None
    legend = (
        Text.assemble(("learned", STYLES["learned"]), " and ", ("ignored", STYLES["ignored"]), " tokens")
        if colored
        else Text("⟦learned tokens⟧ are in brackets, the others are ignored")
    )
    table = Table(show_lines=True, caption=legend)
    table.add_column("sample", no_wrap=False, min_width=18)
    table.add_column("text", overflow="fold", ratio=1)
    for sample in samples:
        table.add_row(
            cell(*facts(preview, sample)),
            marked_text(preview, sample, colored=colored),
        )
    if table.row_count:
        screen.print(table)


def facts(preview: Preview, sample: Sample) -> Iterator[str]:
    """Facts about a sample besides its text, line by line."""
    record = preview.dataset.records[sample.index]
    length = preview.length(sample)
    yield f"index {sample.index}"
    yield f"id {sample.id}"
    for name, image in zip(record.images, sample.images, strict=True):
        width, height = image.size
        yield f"{name} {width}×{height}"
    for image, num_tokens in zip(sample.images, preview.image_tokens(sample), strict=True):
        height, width = image.crops.shape[-2:]
        grid = preview.layout.grid(image)
        crops = f", the whole and {grid[0]}×{grid[1]} crops" if grid else ""
        yield f"image {width}×{height}{crops}, {num_tokens} tokens"
    yield f"{length} tokens"
    learned = sum(kind == "learned" and not is_cut for is_cut, kind, _ in _tokens(preview, sample))
    yield f"{learned} learned"
    if length > preview.max_length:
        yield f"cut at {preview.max_length}"


def marked_text(preview: Preview, sample: Sample, *, colored: bool) -> Text:
    """The sample's tokens as text, learned runs marked, up to the cut."""
    text = Text()
    sizes = iter(preview.image_tokens(sample))
    for (is_cut, kind), run in groupby(_tokens(preview, sample), key=lambda token: token[:2]):
        if is_cut:
            break
        ids = [token for _, _, token in run]
        if kind == "image":
            shown = "".join(f"[image: {next(sizes)} tokens]" for _ in ids)
        else:
            shown = _shown(preview, ids)
        text.append(f"⟦{shown}⟧" if kind == "learned" and not colored else shown, style=STYLES[kind])
    num_cut = preview.length(sample) - preview.max_length
    if num_cut > 0:
        text.append(f" ✂ {num_cut} more tokens cut off", style=CUT)
    return text


def _tokens(preview: Preview, sample: Sample) -> Iterator[tuple[bool, str, int]]:
    """Every token: whether it is cut off, its kind, its id. An image counts as cut off if all of it is."""
    position, sizes = 0, iter(preview.image_tokens(sample))
    for token, label in zip(sample.input_ids.tolist(), sample.labels.tolist(), strict=True):
        kind = "image" if token == IMAGE_ID else "ignored" if label == IGNORED else "learned"
        yield position >= preview.max_length, kind, token
        position += next(sizes) if token == IMAGE_ID else 1


def _shown(preview: Preview, ids: list[int]) -> str:
    tokenizer = preview.dataset.tokenizer
    # With a token before the run, Llama's decoder keeps the run's first space.
    anchor = [] if tokenizer.bos_token_id is None else [cast(int, tokenizer.bos_token_id)]
    whole = cast(str, tokenizer.decode(anchor + ids, clean_up_tokenization_spaces=False))
    text = whole[
        len(cast(str, tokenizer.decode(anchor, clean_up_tokenization_spaces=False))) if anchor else 0 :
    ]
    return "↵\n".join(map(shown, text.split("\n")))
