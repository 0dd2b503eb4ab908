"""Files that are no annotations are named for what they are, by name and by content."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from llava_recipes.data.records import kind_of_bytes, open_file
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.foreign import KINDS, kind_of_name

RECORDS = [{"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]
TEXT = json.dumps(RECORDS).encode()
TABLE = pa.table({"id": ["a"]})


def _tar(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        entry = tarfile.TarInfo("0001.json")
        entry.size = len(TEXT)
        archive.addfile(entry, io.BytesIO(TEXT))


def _zip(file: Path, name: str = "a.json") -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, TEXT)


def _arrow(file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


def _arrow_file(file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


def _sqlite(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("create table t (a)")
    database.close()


def _numpy(file: Path) -> None:
    with file.open("wb") as opened:
        np.savez(opened, a=np.zeros(2))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a tar archive": _tar,
    "compressed with gzip": lambda file: file.write_bytes(gzip.compress(TEXT)),
    "compressed with bzip2": lambda file: file.write_bytes(bz2.compress(TEXT)),
    "compressed with xz": lambda file: file.write_bytes(lzma.compress(TEXT)),
    "compressed with zstd": lambda file: file.write_bytes(b"\x28\xb5\x2f\xfd\x00"),
    "a zip archive": _zip,
    "an Excel workbook": lambda file: _zip(file, "[Content_Types].xml"),
    "an Arrow file of Hugging Face datasets": _arrow,
    "a NumPy file": _numpy,
    "a Python pickle": lambda file: file.write_bytes(pickle.dumps(RECORDS)),
    "an SQLite database": _sqlite,
    "a Parquet file": lambda file: pyarrow.parquet.write_table(TABLE, file),
    "an image": lambda file: Image.new("RGB", (2, 2)).save(file, "PNG"),
    "a CSV table": lambda file: file.write_text("id,image,caption\n1,a.jpg,a cat\n"),
    "a TSV table": lambda file: file.write_text("id\timage\tcaption\n1\ta.jpg\ta cat\n"),
    "a web page": lambda file: file.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "an XML document": lambda file: file.write_text('<?xml version="1.0"?><a/>'),
    "a Git LFS pointer": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_an_ending_that_lies_hides_nothing(what: str, tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    WRITERS[what](file)
    with pytest.raises(RecipeError) as caught:
        open_file(str(file))
    (problem,) = caught.value.problems
    assert what in problem.message
    assert problem.hint
    assert str(file) in str(problem.found)


def test_arrow_in_its_other_form_too(tmp_path: Path) -> None:
    _arrow_file(tmp_path / "a")
    assert kind_of_bytes((tmp_path / "a").read_bytes()) == "arrow"


def test_a_folder_of_arrow_files_is_named(tmp_path: Path) -> None:
    _arrow(tmp_path / "data-00000-of-00001.arrow")
    with pytest.raises(RecipeError) as caught:
        open_file(str(tmp_path))
    assert "a folder of Hugging Face datasets" in caught.value.problems[0].message


@pytest.mark.parametrize(
    "text", [TEXT, b"\xef\xbb\xbf" + TEXT, b"\n\n " + TEXT, json.dumps(RECORDS[0]).encode() + b"\n"]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.data", "a"])
def test_records_are_read_whatever_the_file_is_called(text: bytes, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(text)
    assert len(open_file(str(file))) == 1


@pytest.mark.parametrize("text", ["", "null", "hello", "Hello, world, and more", "{broken", "12", "a: b"])
def test_what_cannot_be_told_is_left_to_the_reader_of_json(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        open_file(str(file))
    assert caught.value.problems[0].code != "annotations-of-another-kind"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.tar", "tar"), ("a.tar.gz", "tar"), ("a.json.gz", "gzip"), ("a.jsonl.zst", "zstd"),
        ("a.ZIP", "zip"), ("a.arrow", "arrow"), ("a.csv", "csv"), ("a.tsv", "tsv"), ("a.xlsx", "excel"),
        ("a.npz", "numpy"), ("a.pkl", "pickle"), ("a.json", None), ("a.jsonl", None), ("a.parquet", None),
        ("a.txt", None), ("data/train-*.parquet", None), ("a.csv/b", None),
    ],
)  # fmt: skip
def test_names(name: str, kind: str | None) -> None:
    assert kind_of_name(name) == kind
    assert kind is None or KINDS[kind].how
