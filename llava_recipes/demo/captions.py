"""What a trained model says to the held-out pictures."""

from __future__ import annotations

from pathlib import Path

from llava_recipes.data.tokens import IGNORED
from llava_recipes.demo.dataset import HELD_OUT, IMAGES
from llava_recipes.model.assemble import Assembled
from llava_recipes.model.features import picture_features
from llava_recipes.model.feeding import open_samples
from llava_recipes.model.generate import Decoding, continue_prompts, embed_with_pictures, evaluating
from llava_recipes.plan.types import DataPlan, SourcePlan

BATCH_SIZE = 32
MAX_CAPTION_TOKENS = 12


def caption_held_out(assembled: Assembled, data: DataPlan, folder: Path) -> list[str]:
    """The first line that the model says to each held-out picture of a dataset, in file order.

    The prompt is what the stage's template writes before the answer; the answer itself is not shown.
    """
    source = SourcePlan(annotations=str(folder / HELD_OUT), images=str(folder / IMAGES), num_samples=None)
    data = data.model_copy(update={"sources": (source,), "num_samples": None})
    dataset = open_samples(assembled, data, start_end=False)
    model, layout = assembled.model, assembled.image_layout(data)
    decoding = Decoding(MAX_CAPTION_TOKENS)
    said: list[str] = []
    for first in range(0, len(dataset), BATCH_SIZE):
        samples = [dataset[index] for index in range(first, min(first + BATCH_SIZE, len(dataset)))]
        pictures = [picture for sample in samples for picture in sample.pictures]
        with evaluating(model):
            seen = iter(picture_features(model, pictures, layout))
            prompts = [
                embed_with_pictures(
                    model,
                    sample.input_ids[sample.labels == IGNORED].tolist(),
                    [next(seen) for _ in sample.pictures],
                )
                for sample in samples
            ]
        said += continue_prompts(model, assembled.tokenizer, prompts, decoding=decoding, stops=())
    return [text.partition("\n")[0].strip() for text in said]
