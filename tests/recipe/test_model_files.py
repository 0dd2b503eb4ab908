"""Every file of settings in a model's folder is looked through, and none of them can hold the look up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.foreign import check_model_folder, folder_problems

CODE = json.dumps({"inside": [{"auto_map": {"AutoConfig": "evil.Config"}}]})
FILES = (
    *("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"),
    *("generation_config.json", "adapter_config.json", "video_preprocessor_config.json", "config.4.1.0.json"),
    "plan.json",
)


@pytest.mark.parametrize("name", FILES)
def test_code_in_any_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "elsewhere").write_text(CODE)
    (tmp_path / name).unlink(missing_ok=True)
    # As the hub's cache keeps files.
    (tmp_path / name).symlink_to("elsewhere")
    with pytest.raises(RecipeError, match=r"`inside\.0\.auto_map` names code to run") as caught:
        check_model_folder(tmp_path, ("model", "language_model"))
    (problem,) = caught.value.problems
    assert problem.path == ("model", "language_model")
    assert problem.found == f'{tmp_path / name}: {{"AutoConfig": "evil.Config"}}'


def test_a_config_for_other_versions_counts(tmp_path: Path) -> None:
    """transformers reads it in place of config.json."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.4.0.0.json").write_text(CODE)
    others = [None, 7, "\0", "x" * 5000, "no/such/config.1.json", "sub/config.4.0.0.json"]
    (tmp_path / "config.json").write_text(json.dumps({"configuration_files": others}))
    (problem,) = folder_problems(tmp_path, ())
    assert problem.found is not None and "sub/config.4.0.0.json" in problem.found


def test_what_cannot_be_read_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").mkdir()
    (tmp_path / "adapter_config.json").symlink_to("nowhere")
    (tmp_path / "generation_config.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "processor_config.json").write_text("[" * 200_000)
    (tmp_path / "preprocessor_config.json").write_text('"auto_map"')
    check_model_folder(tmp_path, ())
    check_model_folder(tmp_path / "nowhere", ())


def test_a_pipe_among_the_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(RecipeError) as caught:
        check_model_folder(tmp_path, ("model",))
    (problem,) = caught.value.problems
    assert (problem.code, problem.path) == ("not-an-ordinary-file", ("model",))
    assert problem.found == str(tmp_path / "tokenizer.json")


def test_settings_beyond_all_size_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.touch()
    os.truncate(file, 2**40)
    (problem,) = folder_problems(tmp_path, ("model", "language_model"))
    assert problem.code == "settings-too-large"
    assert problem.found is not None and problem.found.startswith(f"{file}: 1,099,511,627,776 bytes")
