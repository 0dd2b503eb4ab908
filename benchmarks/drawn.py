"""Tokenizers, images and captions that are drawn, so that a benchmark downloads nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

IMAGE_PX = (640, 480)
_SPECIAL = ("<unk>", "<s>", "</s>", "\n", "<pad>")


def draw_tokenizer(folder: Path, *, vocab_size: int) -> list[str]:
    """Write a tokenizer of one token per word and return its words, all but special tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    words = [f"w{number}" for number in range(vocab_size - len(_SPECIAL))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((*_SPECIAL, *words))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", _SPECIAL.index("<s>"))]
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        # Padding of its own: a tokenizer that pads with <unk> loses the unknown words of a text.
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return words


def draw_data(
    folder: Path,
    *,
    num_samples: int,
    words: Sequence[str],
    num_answer_words: Sequence[int],
    num_question_words: int = 0,
) -> None:
    """Write `num_samples` JPEG images and `captions.json` about them, the same on every machine.

    The lengths of the answers are drawn from `num_answer_words`; a question follows the image's tag.
    """
    from PIL import Image, ImageDraw

    dice = random.Random(0)
    (folder / "images").mkdir()
    records = []
    for number in range(num_samples):
        noise = Image.frombytes("RGB", (40, 30), dice.randbytes(40 * 30 * 3))
        image = noise.resize(IMAGE_PX, Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(20):
            x, y, size = dice.randrange(600), dice.randrange(440), dice.randrange(10, 150)
            pen.ellipse((x, y, x + size, y + size), fill=(dice.randrange(256), dice.randrange(256), 90))
        image.save(folder / "images" / f"{number}.jpg", quality=90)
        answer = " ".join(dice.choices(words, k=dice.choice(num_answer_words)))
        question = "\n" + " ".join(dice.choices(words, k=num_question_words)) if num_question_words else ""
        turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
        records.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(records))
