"""What a model is given: samples, written by its tokenizer and image processor, and batches of them."""

from __future__ import annotations

from llava_recipes.data.collate import Collator
from llava_recipes.data.dataset import StageDataset
from llava_recipes.model.assemble import Assembled
from llava_recipes.plan.types import DataPlan


def open_samples(assembled: Assembled, data: DataPlan, *, start_end: bool) -> StageDataset:
    """The samples of a stage's data. Raises RecipeError as StageDataset does."""
    return StageDataset(
        data, tokenizer=assembled.tokenizer, image_processor=assembled.image_processor, start_end=start_end
    )


def collator_of(assembled: Assembled, dataset: StageDataset) -> Collator:
    """What puts these samples into batches, as long as the stage allows."""
    tokenizer = assembled.tokenizer
    pad_id: int = tokenizer.pad_token_id
    return Collator(
        layout=assembled.image_layout(dataset.data),
        max_length=dataset.data.max_length,
        pad_token_id=pad_id,
        # Where the unknown token is also the padding, the original loses it from the text.
        dropped_token_id=pad_id if pad_id == tokenizer.unk_token_id else None,
        mark_of=dataset.records.mark,
    )
