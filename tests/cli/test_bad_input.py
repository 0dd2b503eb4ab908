"""Files that are no recipes, or hostile ones: a clean error each, in bounded memory and time.

Every case is a process of its own, under limits that the kernel keeps. The bound on time is there to catch
what hangs; the figures that a person sees are in benchmarks/README.md.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.measured import Outcome, run_measured

GOOD = """\
version: 1
name: example
model:
  language_model: lmsys/vicuna-7b-v1.5
  vision_tower: {source: openai/clip-vit-large-patch14-336}
stages:
  - name: pretrain
    trainable: [projector]
    data: {template: plain, sources: [{annotations: data/a.json, images: data/images}]}
    train: {num_train_epochs: 1, learning_rate: 1e-3, bf16: true}
    output_dir: runs/pretrain
"""
MAX_MEMORY_KB = 200 * 1024
MAX_CPU_S = 10


def _validate(file: Path) -> Outcome:
    """Run the command under limits: one that is passed kills the process, which is no clean error."""
    return run_measured("validate", file.name, folder=file.parent, limit=_limit)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3, 2 * 1024**3))


def _repeated(entry: str, count: int) -> str:
    return "".join(entry.format(i) for i in range(count))


def _with_variables(variables: str, used: str) -> str:
    return GOOD.replace("\nmodel:", f"\nvars:\n{variables}model:").replace("runs/pretrain", used)


LETTERS = "bcdefghijklm"
DIGITS = "9" * 10_000
CASES: dict[str, tuple[str | bytes, str]] = {
    "nested lists": ("[" * 100_000, "1:65: values are nested deeper than 64 levels"),
    "nested lists, closed": ("a: " + "[" * 400_000 + "]" * 400_000, "nested deeper than 64 levels"),
    "nested mappings": ("a: " + "{a: " * 100_000, "nested deeper than 64 levels"),
    "nested by indentation": ("".join(" " * i + "a:\n" for i in range(1_300)), "65:65: values are nested"),
    "nested dashes": ("- " * 200_000, "nested deeper than 64 levels"),
    "nested question marks": ("? " * 300_000, "nested deeper than 64 levels"),
    "alias bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{new}: &{new} [{f'*{old},' * 9}]\n" for old, new in zip("a" + LETTERS, LETTERS, strict=False)
        ),
        "more than 10,000 values",
    ),
    "a long text repeated": (f'a: &a "{"x" * 400_000}"\nb: [{"*a," * 49_000}]', "more than 10,000 values"),
    "an alias of itself": ("a: &a [*a]", "`*a` is inside itself"),
    "a mapping in itself": ("&a {x: *a}", "`*a` is inside itself"),
    "larger than a megabyte": ("# " + "x" * 1_200_000, "larger than 1,000,000 bytes"),
    "a megabyte of entries": (f"a: [{'x,' * 499_000}]", "more than 10,000 values"),
    "a megabyte of one word": ("a: " + "x" * 990_000, "unknown key `a`"),
    "a megabyte of comments": ("#\n" * 490_000, "the file contains no recipe"),
    "a megabyte of colons": (":" * 900_000, "a `key: value` cannot start here"),
    "a megabyte of stars": ("*" * 900_000, "bad YAML"),
    "two hundred thousand documents": ("---\n" * 200_000, "2:1: a second document starts here"),
    "thousands of unknown keys": (GOOD + _repeated("stagess{}: 1\n", 4_500), "more problems are not shown"),
    "thousands of globs": (
        GOOD.replace("[projector]", f"[{_repeated('proj{},', 9_000)}]"),
        "more problems are not shown",
    ),
    "thousands of stages": ("version: 1\nname: x\nstages:\n" + "  - {name: x}\n" * 3_300, "more problems"),
    "UTF-16": (GOOD.encode("utf-16"), "the file is not UTF-8\nfound: UTF-16"),
    "UTF-32": (GOOD.encode("utf-32"), "the file is not UTF-8\nfound: UTF-32"),
    "Latin-1": (GOOD.replace("example", "exämple").encode("latin-1"), "2:9: the file is not UTF-8"),
    "a surrogate": (GOOD.encode().replace(b"example", b"\xed\xa0\x80"), "the file is not UTF-8"),
    "a surrogate, escaped": (GOOD.replace("example", '"\\ud800"'), "2:10: bad YAML"),
    "bytes": (bytes(range(256)) * 100, "the file is not UTF-8"),
    "NUL": (GOOD.replace("example", "exam\0ple"), "2:11: a character that is not allowed in YAML"),
    "NUL, escaped": (GOOD.replace("example", '"exam\\0ple"'), "the control character U+0000"),
    "10,000 digits": (GOOD.replace("1e-3", DIGITS), "a number of 10,000 characters is too long"),
    "10,000 decimals": (GOOD.replace("1e-3", f"1.{DIGITS}"), "a number of 10,002 characters"),
    "an exponent of 10,000 digits": (GOOD.replace("1e-3", f"1e{DIGITS}"), "a number of 10,002 characters"),
    "10,000 digits of base 16": (GOOD.replace("1e-3", f"0x{'f' * 10_000}"), "a number of 10,002 characters"),
    "10,000 digits as a key": (f"{GOOD}{DIGITS}: 1\n", "a key without a colon"),
    "a date": (GOOD.replace("1e-3", "2026-11-23"), "needs a number, not a string"),
    "no date": (GOOD.replace("example", "2026-13-45T99:99:99Z"), "`name` must consist of letters"),
    "a Python tag": (GOOD.replace("example", '!!python/object/apply:os.system ["true"]'), "is not allowed"),
    "a binary tag": (GOOD.replace("example", "!!binary aGk="), "the tag `!!binary` is not allowed"),
    "a tag of one's own": (GOOD.replace("example", "!mine x"), "the tag `!mine` is not allowed"),
    "variables in each other": (
        _with_variables(_repeated("  v{0}: &v{0} ${{w{0}}}\n", 2_900), "out"),
        "unknown variable `${w0}`",
    ),
    "a chain of variables": (
        _with_variables(
            "".join(f'  v{i}: "${{v{i - 1}}}"\n' for i in range(3_000, 0, -1)) + "  v0: x\n", "${v3000}"
        ),
        "variables refer to other variables more than 32 levels deep",
    ),
    "variables that grow": (
        _with_variables(
            "  v0: xxxxxxxxxx\n" + "".join(f'  v{i}: "{f"${{v{i - 1}}}" * 10}"\n' for i in range(1, 30)),
            "${v29}",
        ),
        "the string grows beyond 100,000 characters",
    ),
    "a long variable, often": (
        _with_variables(f'  big: "{"x" * 90_000}"\n', "out") + '  - "${big}"\n' * 8_000,
        "the strings of the recipe grow beyond 2,000,000 characters",
    ),
    "a layer count": (
        GOOD.replace(
            "lmsys/vicuna-7b-v1.5",
            "{config: {model_type: llama, num_hidden_layers: 2000000000}, tokenizer: t}",
        ),
        "`num_hidden_layers` exceeds any model: 1,000 at most",
    ),
    "an address": (f"extends: https://example.org/recipe.yaml\n{GOOD}", "https://example.org/recipe.yaml"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_a_clean_error(case: str, tmp_path: Path) -> None:
    content, message = CASES[case]
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = _validate(file)
    assert outcome.code == 1, outcome.err[:2_000]
    assert outcome.out == ""
    assert outcome.err.startswith("bad.yaml:")
    assert message in outcome.err
    assert len(outcome.err) < 200_000
    assert outcome.memory_kb is not None
    assert outcome.memory_kb < MAX_MEMORY_KB


@pytest.mark.parametrize("line_end", ["\r\n", "\r"], ids=["Windows", "old Mac"])
def test_other_line_ends_are_read_as_they_are_meant(line_end: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(GOOD.replace("\n", line_end).encode())
    assert _validate(file).code == 0
    file.write_bytes(GOOD.replace("1e-3", "fast").replace("\n", line_end).encode())
    outcome = _validate(file)
    assert outcome.code == 1
    assert "bad.yaml:10:49: `learning_rate` needs a number" in outcome.err


def test_what_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "bad.yaml"
    folder.mkdir()
    assert "this is a folder; a recipe is a file" in _validate(folder).err
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "the file cannot be read\nfound: Too many levels of symbolic links" in _validate(loop).err
    assert "no such file" in _validate(tmp_path / "none.yaml").err
    endless = tmp_path / "endless.yaml"
    endless.symlink_to("/dev/zero")
    assert "this is a device; a recipe is an ordinary file" in _validate(endless).err
