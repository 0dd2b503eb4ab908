"""Runs inside the original's environment: python inside_original.py REQUEST ANSWERS.

What `llava/eval/model_vqa.py` does with a question, without CUDA, without sampling, and in float32: its
loader rounds every weight to float16, in which a CPU is slow or cannot compute at all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")


def answers(request: dict[str, Any]) -> dict[str, Any]:
    """What the original answers, and its versions; or why it cannot be asked."""
    try:
        builder = import_module("llava.model.builder")
    except ImportError as error:
        return {"refused": f"the original cannot be imported: {error}"}
    tokenizer, model, processor, _ = builder.load_pretrained_model(
        request["model"], request["base"], request["name"], device="cpu"
    )
    model.float().eval()
    said = [_answer(question, request, tokenizer, model, processor) for question in request["questions"]]
    return {"engine": _versions(Path(str(builder.__file__)).parent), "answers": said}


def _answer(
    question: dict[str, str], request: dict[str, Any], tokenizer: Any, model: Any, processor: Any
) -> str:
    # The environment is the original's: none of these is there when this file is checked.
    image_module, torch = import_module("PIL.Image"), import_module("torch")
    constants, conversation = import_module("llava.constants"), import_module("llava.conversation")
    mm_utils = import_module("llava.mm_utils")
    tag = constants.DEFAULT_IMAGE_TOKEN
    if model.config.mm_use_im_start_end:
        tag = constants.DEFAULT_IM_START_TOKEN + tag + constants.DEFAULT_IM_END_TOKEN
    talk = conversation.conv_templates[request["conv_mode"]].copy()
    talk.append_message(talk.roles[0], f"{tag}\n{question['text']}")
    talk.append_message(talk.roles[1], None)
    input_ids = mm_utils.tokenizer_image_token(
        talk.get_prompt(), tokenizer, constants.IMAGE_TOKEN_INDEX, return_tensors="pt"
    )
    with image_module.open(question["image"]) as opened:
        image = opened.convert("RGB")
    pixels = mm_utils.process_images([image], processor, model.config)[0]
    with torch.inference_mode():
        output_ids = model.generate(
            input_ids.unsqueeze(0),
            images=pixels.unsqueeze(0).float(),
            image_sizes=[image.size],
            do_sample=False,
            max_new_tokens=request["max_new_tokens"],
            use_cache=True,
        )
    text: str = tokenizer.batch_decode(output_ids, skip_special_tokens=True)[0]
    return text


def _versions(source: Path) -> str:
    git = ["git", "-C", str(source), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "of an unknown commit"
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"LLaVA {commit} ({packages})"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        json.dumps(answers(json.loads(Path(sys.argv[1]).read_text("utf-8")))), "utf-8"
    )
