"""Draw images, and write the recipes of two tiny models to ask: one trained whole, one with adapters.

    python -m benchmarks.engines.tiny_model FOLDER

FOLDER is new. It gets images, 40 questions about images of all shapes (`mixed.jsonl`), 40 about square
ones (`square.jsonl`), and two recipes, which run from the repository's root. Their language model is a small
Llama with a sentencepiece tokenizer, the kind that every engine reads. Answers differ from image to
image, so that it shows where a model is read wrongly.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from PIL import Image

from benchmarks.engines.compare import NUM_QUESTIONS, Refused
from llava_recipes.demo.drawn_data import Scene, all_combinations, draw_scene, make_scene
from llava_recipes.demo.vocabulary import QUESTIONS, WHAT, answer_to

Record = dict[str, object]

FIXTURES = Path("tests/golden/fixtures")
NUM_IMAGES = 3000
SEED = 7
LANGUAGE_MODEL: Record = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    # vLLM has no attention for heads below 32 on a CPU.
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("tiny_model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder for all of it")
    folder = parser.parse_args(argv).folder
    try:
        write_all(folder)
    except Refused as error:
        print(f"tiny_model: {error}", file=sys.stderr)
        return 2
    print(_NEXT.replace("FOLDER", str(folder)), end="")
    return 0


def write_all(folder: Path, *, num_images: int = NUM_IMAGES) -> None:
    """Images, records for both runs, questions about images of their own, and the recipes.

    Raises Refused when something stands in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder}: something is there already")
    (folder / "images").mkdir(parents=True)
    scenes = _scenes("train", num_images)
    for style in ("full", "lora"):
        records = [_record(scene, number, style) for number, scene in enumerate(scenes)]
        (folder / f"{style}.json").write_text(json.dumps(records), "utf-8")
    for number, scene in enumerate(scenes):
        _image(scene, number).save(folder / "images" / f"train-{number}.png", compress_level=1)
    for name in ("mixed", "square"):
        _write_questions(folder, name)
    (folder / "full.yaml").write_text(yaml.safe_dump(_full_recipe(folder), sort_keys=False), "utf-8")
    (folder / "lora.yaml").write_text(yaml.safe_dump(_lora_recipe(folder), sort_keys=False), "utf-8")


def _scenes(split: str, count: int) -> list[Scene]:
    pairs = all_combinations()
    return [
        make_scene(pairs[number % len(pairs)], seed=f"{SEED}/{split}/{number}") for number in range(count)
    ]


def _write_questions(folder: Path, name: str) -> None:
    """Questions about new images: square, wide and tall in turn, or all of them square."""
    lines = []
    for number, scene in enumerate(_scenes(name, NUM_QUESTIONS)):
        image = f"{name}-{number}.png"
        _image(scene, number if name == "mixed" else 0).save(folder / "images" / image)
        lines.append(json.dumps({"image": image, "prompt": f"<image>\n{_question(number)}"}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")


def _image(scene: Scene, number: int) -> Image.Image:
    """The scene as it is drawn, or with more ground beside or below it: square, wide, tall."""
    drawn = draw_scene(scene)
    width, height = drawn.size
    more = random.Random(f"{scene.noise_seed}/more").randrange(8, 40)
    size = [(width, height), (width + more, height), (width, height + more)][number % 3]
    whole = Image.new("RGB", size, (scene.ground,) * 3)
    whole.paste(drawn, (0, 0))
    return whole


def _question(number: int) -> str:
    return WHAT if number % 2 else QUESTIONS[number // 2 % len(QUESTIONS)]


def _record(scene: Scene, number: int, style: str) -> Record:
    """One question about an image; the adapters learn to answer in other words than the whole model."""
    question = _question(number)
    answer = answer_to(question, scene.caption)
    said = f"this shows {answer}" if style == "lora" else answer
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": said}]
    return {"id": f"{number}", "image": f"train-{number}.png", "conversations": turns}


def _full_recipe(folder: Path) -> Record:
    stage = _stage(folder, "full", max_steps=1000, learning_rate=2e-3)
    return {
        "version": 1,
        "name": "engines-full",
        "model": _model({"config": LANGUAGE_MODEL, "tokenizer": str(FIXTURES / "tiny_vicuna"), "seed": SEED}),
        "stages": [{**stage, "freeze": ["vision_tower"]}],
    }


def _lora_recipe(folder: Path) -> Record:
    """Adapters over the first model, in the original's layout, as over any LLaVA checkpoint."""
    stage = _stage(folder, "lora", max_steps=300, learning_rate=2e-3)
    adapters = {"r": 16, "alpha": 32, "modules": ["language_model"]}
    return {
        "version": 1,
        "name": "engines-lora",
        "model": _model(str(folder / "full-llava")),
        "stages": [{**stage, "freeze": "all", "trainable": ["projector"], "lora": adapters}],
    }


def _model(language_model: str | Record) -> Record:
    return {
        "language_model": language_model,
        "vision_tower": {"source": str(FIXTURES / "tiny_clip"), "select_layer": -2},
        "projector": {"type": "mlp2x_gelu"},
    }


def _stage(folder: Path, style: str, *, max_steps: int, learning_rate: float) -> Record:
    return {
        "name": style,
        "data": {
            "template": "v1",
            "sources": [{"annotations": str(folder / f"{style}.json"), "images": str(folder / "images")}],
            "image_aspect_ratio": "pad",
            "max_length": 512,
        },
        "train": {
            "max_steps": max_steps,
            "per_device_train_batch_size": 32,
            "learning_rate": learning_rate,
            "warmup_ratio": 0.03,
            "logging_steps": 50,
            "save_strategy": "no",
        },
        "output_dir": str(folder / style),
    }


_NEXT = """\
llava-recipe run FOLDER/full.yaml
llava-recipe export FOLDER/full --to llava -o FOLDER/full-llava
llava-recipe run FOLDER/lora.yaml
"""


if __name__ == "__main__":
    sys.exit(main())
