"""The script for the original code, with another package of its name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.engines.ask_original import main
from tests.benchmarks.engines.conftest import QUESTIONS

# As far as the script calls it. Prompts, pixels and settings come back as the answer.
LLAVA = {
    "constants.py": """\
DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN = "<image>", "<im_start>", "<im_end>"
IMAGE_TOKEN_INDEX = -200
""",
    "conversation.py": """\
class Conversation:
    roles = ("USER", "ASSISTANT")

    def __init__(self):
        self.messages = []

    def copy(self):
        return Conversation()

    def append_message(self, role, message):
        self.messages.append((role, message))

    def get_prompt(self):
        return "|".join(f"{role}: {message}" for role, message in self.messages)


conv_templates = {"vicuna_v1": Conversation()}
""",
    "mm_utils.py": """\
class Array:
    def __init__(self, value):
        self.value = value

    def unsqueeze(self, place):
        assert place == 0
        return Array([self.value])

    def float(self):
        return self


def tokenizer_image_token(prompt, tokenizer, image_id, return_tensors):
    assert (tokenizer, image_id, return_tensors) == ("a tokenizer"[2:], -200, "pt")
    return Array(prompt)


def process_images(images, processor, config):
    assert processor == "processor" and [image.mode for image in images] == ["RGB"]
    return [Array(list(image.size)) for image in images]
""",
    "model/builder.py": """\
import json, types


class Tokenizer(str):
    def batch_decode(self, output_ids, skip_special_tokens):
        assert skip_special_tokens
        return output_ids


class Model:
    def __init__(self, *given):
        self.given, self.is_float, self.is_eval = given, False, False
        self.config = types.SimpleNamespace(mm_use_im_start_end="tagged" in given[0])

    def float(self):
        self.is_float = True
        return self

    def eval(self):
        self.is_eval = True
        return self

    def generate(self, input_ids, images, **settings):
        assert self.is_float and self.is_eval
        return [json.dumps([self.given, input_ids.value, images.value, settings])]


def load_pretrained_model(path, base, name, device):
    return Tokenizer("tokenizer"), Model(path, base, name, device), "processor", 2048
""",
}
TORCH = """\
import contextlib

inference_mode = contextlib.nullcontext
"""


@pytest.fixture
def words(asked: list[str], tmp_path: Path) -> list[str]:
    """The whole command line, for a checkout with the stand-in."""
    checkout = tmp_path / "LLaVA"
    (checkout / "llava" / "model").mkdir(parents=True)
    for name, text in LLAVA.items():
        (checkout / "llava" / name).write_text(text)
    (checkout / "torch.py").write_text(TORCH)
    return [*asked, f"--python={sys.executable}", f"--checkout={checkout}"]


def said(capsys: pytest.CaptureFixture[str]) -> list[object]:
    """What came back for the second question."""
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("2. "))
    found: list[object] = json.loads(json.loads(line.partition(" here, ")[2].removesuffix(" there")))
    return found


SETTINGS = {"image_sizes": [[5, 4]], "do_sample": False, "max_new_tokens": 32, "use_cache": True}


def test_the_export_is_asked_as_the_original_asks(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "run" / "export-llava"
    export.mkdir()
    assert main(words) == 1
    prompt = f"USER: <image>\n{QUESTIONS[1]}|ASSISTANT: None"
    assert said(capsys) == [[str(export), None, "llava", "cpu"], [prompt], [[5, 4]], SETTINGS]


def test_image_tokens_are_written_where_the_model_has_them(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tagged").mkdir()
    assert main([*words, f"--export={tmp_path}/tagged"]) == 1
    assert said(capsys)[1] == [f"USER: <im_start><image><im_end>\n{QUESTIONS[1]}|ASSISTANT: None"]


@pytest.mark.parametrize(
    ("file", "name"), [("adapter_config.json", "llava-lora"), ("mm_projector.bin", "llava")]
)
def test_a_run_over_a_base_is_given_as_it_is(
    file: str, name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / file).touch()
    assert main([*words, "--base=lmsys/vicuna-7b-v1.5"]) == 1
    assert said(capsys)[0] == [str(tmp_path / "run"), "lmsys/vicuna-7b-v1.5", name, "cpu"]


def test_an_environment_that_lacks_something_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "export-llava").mkdir()
    (tmp_path / "LLaVA" / "llava" / "model" / "builder.py").write_text("import einops_of_old")
    assert main(words) == 2
    message = f"{sys.executable}: the original cannot be imported: No module named 'einops_of_old'"
    assert capsys.readouterr() == ("", f"ask_original: {message}\n")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--python=./nowhere", "--python: ./nowhere is not a program that can be started"),
        ("--checkout=nowhere", "--checkout: nowhere/llava/model/builder.py is not a file"),
        (
            "--limit=1",
            "--export: RUN/export-llava is not a folder; make it: llava-recipe export RUN --to llava",
        ),
    ],
)
def test_what_is_missing_is_one_line(
    word: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, word]) == 2
    out, err = capsys.readouterr()
    assert (out, err.replace(words[0], "RUN")) == ("", f"ask_original: {message}\n")
