"""A card shows the recipe as it is written, and nothing of the machine."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llava_recipes.export import model_card
from llava_recipes.export.model_card import code, code_block, inline, one_line, training_of, write_card
from llava_recipes.export.public_names import is_hub_id, last_part, public_name, public_text, public_values
from llava_recipes.use.opened import open_run
from tests.laws import examples
from tests.sealed import seal_again
from tests.tiny import FIXTURES

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")

NASTY = (
    "<script>alert(1)</script> `rm -rf /` *bold* _it_ [x](http://a) ![i](b) | cell\n---\n"
    '# "title": {a: b} &amp; ~~x~~ \\ #'
)


def shown(markdown: str) -> str:
    """What a reader sees of one line of Markdown."""
    inner: list[str] = []
    for block in MARKDOWN.parse(markdown):
        for token in block.children or ():
            assert token.type in ("text", "text_special", "code_inline"), (token.type, markdown)
            inner.append(token.content)
    return "".join(inner)


texts = st.text(st.sampled_from("ab <>&`*_[]()!|~#-\\\n\t\x00\u2028é1.+:/\"'"), max_size=30)


@given(text=texts)
@examples(400)
def test_text_is_shown_as_it_is(text: str) -> None:
    words = one_line(text)
    # A word in front, as in a heading or a cell: a line of its own may begin a list.
    assert shown(f"# x {inline(text)} x").split() == f"x {words} x".split()
    assert shown(f"# x {inline(text)}").split() == f"x {words}".split()


@given(text=texts)
@examples(400)
def test_code_is_shown_as_it_is(text: str) -> None:
    assert shown(f"- x {code(text)} x").split() == f"x {one_line(text)} x".split()


@given(text=texts)
@examples(200)
def test_a_block_of_code_holds_all_of_its_text(text: str) -> None:
    (block,) = [token for token in MARKDOWN.parse(code_block(text, "yaml")) if token.type == "fence"]
    assert block.info == "yaml" and block.content.strip() == text.strip().replace("\x00", "\ufffd")


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
        ("/home/bob/models/vicuna/", "vicuna"),
        ("./models", "models"),
        ("../bob/vicuna", "vicuna"),
        ("~/vicuna", "vicuna"),
        ("/models", "models"),
        ("checkpoints/llava/7b", "7b"),
        ("C:\\Users\\bob\\vicuna", "vicuna"),
        ("vicuna", "vicuna"),
    ],
)
def test_of_a_path_the_last_name_is_public(source: str, public: str) -> None:
    assert public_name(source) == public
    assert is_hub_id(source) == (source == public and "/" in source)


def test_a_folder_that_reads_as_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "secret").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("models/secret") == "secret"
    assert last_part("/") == "."


def test_a_recipes_values_lose_their_paths() -> None:
    values: dict[str, Any] = {
        "name": "a/b",
        "model": {"language_model": {"source": "lmsys/vicuna", "tokenizer": "/home/bob/tok"}},
        "stages": [
            {
                "init_from": "pretrain",
                "data": {
                    "sources": [{"annotations": "data/x.json", "images": "/mnt/i"}],
                    "system_prompt": "/a b",
                },
                "deepspeed": {"zero_optimization": {"offload_param": {"nvme_path": "/nvme/bob"}}},
                "train": {"extra": {"logging_dir": "file:///home/bob/logs"}, "learning_rate": 1e-3},
                "samples": {"images": ["/home/bob/cat.png"]},
            }
        ],
    }
    said = public_values(values)
    assert isinstance(said, dict)
    assert said["name"] == "a/b"
    assert said["model"] == {"language_model": {"source": "lmsys/vicuna", "tokenizer": "tok"}}
    assert said["stages"] == [
        {
            "init_from": "pretrain",
            "data": {"sources": [{"annotations": "x.json", "images": "i"}], "system_prompt": "/a b"},
            "deepspeed": {"zero_optimization": {"offload_param": {"nvme_path": "bob"}}},
            "train": {"extra": {"logging_dir": "logs"}, "learning_rate": 1e-3},
            "samples": {"images": ["cat.png"]},
        }
    ]


PLACES = (
    "/{}/x.jpg",
    "/home/{}/x.jpg",
    "~/{}/x.jpg",
    "~{}/x.jpg",
    "../{}/x.jpg",
    "C:\\Users\\{}\\x.jpg",
    "D:/{}/x.jpg",
    "\\\\server\\{}\\x.jpg",
    "file:///{}/x.jpg",
    "sftp://{}:pw@host/x.jpg",
    "https://user:{}@host/x.jpg",
    "https://host/x.jpg?token={}",
    "s3://{}/x.jpg",
    "user:{}@host/x.jpg",
    "{}@host:/data/x.jpg",
)
AROUND = ("{}", "p={}", "p={},q=1", "--dir {} --more", "dir:{}", "({})", '{{"a": "{}", "b": 2}}', "['{}']")
names = st.text(st.sampled_from("secret-._'é0"), min_size=3).map(lambda name: f"q{name}z")


@given(
    place=st.sampled_from(PLACES),
    name=names,
    around=st.sampled_from(AROUND),
    key=st.sampled_from(["prompt", "x"]),
)
@examples(600)
def test_no_place_of_a_machine_is_published(place: str, name: str, around: str, key: str) -> None:
    values = public_values({key: around.format(place.format(name))})
    assert isinstance(values, dict)
    said = str(values[key])
    assert name not in said and "x.jpg" in said
    assert not {"pw", "user", "server", "host"} & set(re.findall(r"\w+", said)), said


@given(
    place=st.sampled_from([place for place in PLACES if not re.search("://|@|~{}", place)]),
    key=st.sampled_from(["nvme_path", "optim_args"]),
    around=st.sampled_from(["{}", "p={}", "p={},q=1", "--dir {} --more", '["{}", 1]']),
    name=st.lists(names, min_size=2, max_size=4).map(" ".join),
)
@examples(300)
def test_spaces_in_a_path_hide_nothing(place: str, key: str, around: str, name: str) -> None:
    said = public_values({key: around.format(place.format(name))})
    assert isinstance(said, dict)
    assert "qz" not in str(said) and not any(word in str(said) for word in name.split()), said


@pytest.mark.parametrize(
    "text",
    [
        "A chat between a curious human and an artificial intelligence assistant.",
        "Answer yes / no, and/or 1/2; 60 km/h at 12:30/13:40.",
        "/no_think </s> <image>\n[INST] <</SYS>> [/INST]",
        "See https://llava-vl.github.io/recipes/x.html, or write to help@example.org.",
        "{{ messages[0]['content'] }}{% if x %}</p>{% endif %}",
        "lmsys/vicuna-7b-v1.5 and data/x.json",
        "Wait... /now: 3:4@5x",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert public_text(text) == text
    assert public_values({"system_prompt": text, "x": text}) == {"system_prompt": text, "x": text}


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("What is in /home/alice/x.jpg?", "What is in x.jpg?"),
        ("/mnt/alice secret/nv", "nv"),
        ("/home/alice", "~"),
        ("sftp://u:p@h", "."),
        ("https://u:p@h", "."),
        ("a: /b/c d/e, /f/g", "a: e, g"),
    ],
)
def test_of_a_place_in_a_text_the_last_name_is_left(text: str, public: str) -> None:
    assert public_text(text) == public


def test_keys_are_published_as_values_are() -> None:
    assert public_values({"x": {"/home/alice/a.json": 2}}) == {"x": {"a.json": 2}}


def test_what_a_recipe_is_called_is_no_markup(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pipeline / "projector", folder)
    plan = json.loads((folder / "plan.json").read_text())
    plan["recipe"] = plan["stages"][0]["name"] = NASTY
    plan["stages"][0]["data"]["sources"][0]["annotations"] = f"/data/{NASTY.replace('/', '')}.json"
    plan["stages"][0]["trainable"] = plan["stages"][0]["trainable_modules"] = ["projector", "*", "<b>|</b>"]
    (folder / "plan.json").write_text(json.dumps(plan))
    recipe = yaml.safe_load((folder / "recipe.resolved.yaml").read_text())
    recipe["name"] = f"{NASTY}\n```\n<script>"
    (folder / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe))
    seal_again(folder)
    out = tmp_path / "out"
    out.mkdir()
    run = open_run(folder, device=torch.device("cpu"))
    write_card(run, out, layout="hf", dtype=torch.float32, difference=0.0, training=training_of(run))
    empty, head, text = (out / "README.md").read_text().split("---\n", 2)
    assert empty == "" and set(yaml.safe_load(head)) == {"base_model", "library_name", "pipeline_tag", "tags"}
    tokens = MARKDOWN.parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in (*tokens, *inner)}.isdisjoint(
        {"html_block", "html_inline", "link_open", "image", "em_open", "strong_open", "s_open"}
    )
    title = tokens[1].children or []
    assert "".join(child.content for child in title) == f"{one_line(NASTY)}: {one_line(NASTY)}"
    headings = [
        tokens[at + 1].content for at, token in enumerate(tokens) if token.tag == "h2" and token.nesting == 1
    ]
    assert headings == ["Use", "Training", "Recipe", "License"]
    (block,) = [token for token in tokens if token.type == "fence" and token.info == "yaml"]
    assert yaml.safe_load(block.content)["name"] == recipe["name"]
    rows = [token for token in tokens if token.type == "tr_open"]
    # Every cell stays in its column.
    cells = [token for token in tokens if token.type in ("td_open", "th_open")]
    assert len(cells) == 2 * len(rows) and len(rows) == 8 + 9 + 2


def test_a_folder_that_reads_as_a_hub_id_is_one_from_everywhere(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models/vic`, seen from where the run was started; the export is made elsewhere."""
    start = tmp_path / "start"
    shutil.copytree(FIXTURES / "tiny_vicuna", start / "models" / "vic")
    shutil.copytree(pipeline / "projector", start / "out" / "run")
    plan = json.loads((start / "out" / "run" / "plan.json").read_text())
    plan["stages"][0]["output_dir"] = "out/run"
    plan["model"]["language_model"] |= {"source": "models/vic", "tokenizer": "models/vic"}
    (start / "out" / "run" / "plan.json").write_text(json.dumps(plan))
    file = start / "out" / "run" / "recipe.resolved.yaml"
    recipe = yaml.safe_load(file.read_text())
    recipe["model"]["language_model"] = {"source": "models/vic", "tokenizer": "owner/words"}
    file.write_text(yaml.safe_dump(recipe))
    seal_again(start / "out" / "run")
    for name, there in (("here", start), ("elsewhere", tmp_path)):
        monkeypatch.chdir(there)
        run = open_run(start / "out" / "run", device=torch.device("cpu"))
        out = tmp_path / name
        out.mkdir()
        write_card(run, out, layout="hf", dtype=torch.float32, difference=0.0, training=training_of(run))
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    assert card == (tmp_path / "here" / "README.md").read_text()
    assert "models/vic" not in card and "vic, a local folder" in card
    (block,) = [token for token in MARKDOWN.parse(card) if token.type == "fence" and token.info == "yaml"]
    language = yaml.safe_load(block.content)["model"]["language_model"]
    assert language == {"source": "vic", "tokenizer": "owner/words"}


def test_the_code_of_a_card_needs_nothing_of_ours() -> None:
    """It is run where the model is used, and this package mostly is not."""
    text = Path(model_card.__file__).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    trees = [ast.parse(block) for block in blocks]
    imported = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"transformers"}
    assert not any(isinstance(node, ast.Import) for tree in trees for node in ast.walk(tree))
