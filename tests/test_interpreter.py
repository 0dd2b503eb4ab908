"""Nothing is imported from the current folder: whatever lies beside a recipe is data."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import llava_recipes
from llava_recipes.interpreter import python_environment, python_words
from tests.processes import ROOT, run_process
from tests.tiny import FIXTURES, stage1_values, write_recipe

PACKAGE = Path(llava_recipes.__file__).parent

PROBED = (
    *("apex", "aqlm", "boto3", "brotli", "clearml", "comet_ml", "cuda", "datasets", "decord", "dill", "eetq"),
    *("flash_attn", "flash_attn_interface", "fx2trt_oss", "hqq", "kernels", "librosa", "lmms_eval", "mlflow"),
    *("mistral_common", "neptune", "olefile", "onnx", "onnxruntime", "pandas", "pynvml", "redis", "scipy"),
    *("sklearn", "soundfile", "swanlab", "tabulate", "tensorflow", "tensorrt", "torch_npu", "torch_xla"),
    *("torchao", "torchaudio", "torchvision", "trackio", "transformer_engine", "triton", "tvm", "wandb"),
)
"""What a run's libraries look for and do without."""

TRAP = """\
open({marks!r} + "/" + __name__, "w").close()
raise ImportError(__name__ + " comes from the current folder")
"""
CONSOLE = [str(Path(sys.executable).with_name("llava-recipe"))]
MODULE = [sys.executable, "-m", "llava_recipes"]

LIGHT = (
    ("--version",),
    ("validate", "recipe.yaml"),
    ("plan", "recipe.yaml", "--world-size", "2"),
    ("show", "recipe.yaml"),
    ("new", "pretrain", "--yes", "-o", "-", "--data", str(FIXTURES / "stage1.json")),
    ("migrate", str(ROOT / "tests/migrate/scripts/v1_5/pretrain.sh")),
)
HEAVY = (
    ("run", "recipe.yaml"),
    ("run", "recipe.yaml", "--processes", "2", "--set", "stages.0.output_dir=./on_two"),
    ("export", "run", "--to", "hf", "-o", "exported"),
)
"""In this order: the last one takes what the first has left."""


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder with a file for every module that there is; an imported one leaves a mark."""
    folder = tmp_path_factory.mktemp("trapped")
    (folder / "marks").mkdir()
    names = {*sys.stdlib_module_names, *packages_distributions(), *PROBED, "sitecustomize", "usercustomize"}
    # With `python -m llava_recipes` a folder of this name is the program itself.
    names = {name for name in names if name.isidentifier()} - {"llava_recipes"}
    assert len(names) > 400
    code = TRAP.format(marks=str(folder / "marks"))
    for number, name in enumerate(sorted(names)):
        file = folder / name / "__init__.py" if number % 2 else folder / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    values = stage1_values(Path("run"), max_steps=2, dataloader_num_workers=1)
    del values["stages"][0]["train"]["num_train_epochs"]
    write_recipe(values, folder / "recipe.yaml")
    return folder


def _marks(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "marks").iterdir())


def _run(words: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
    done = run_process(words, cwd=folder, env=env)
    assert (done.returncode, _marks(folder)) == (0, []), done.stdout + done.stderr


def test_a_trap_works(trapped: Path) -> None:
    # A traceback would import modules of its own from Python 3.13 on.
    code = "try:\n    import wandb\nexcept ImportError:\n    raise SystemExit(1)"
    done = run_process([sys.executable, "-c", code], cwd=trapped)
    assert done.returncode == 1 and _marks(trapped) == ["wandb"]
    (trapped / "marks" / "wandb").unlink()


@pytest.mark.parametrize("start", [CONSOLE, MODULE], ids=["llava-recipe", "python -m"])
@pytest.mark.parametrize("words", LIGHT, ids=lambda words: words[0])
def test_a_light_command_imports_nothing_from_the_current_folder(
    start: list[str], words: tuple[str, ...], trapped: Path
) -> None:
    _run([*start, *words], trapped)


def test_no_process_of_a_run_imports_from_the_current_folder(trapped: Path) -> None:
    for words in HEAVY:
        # The one by which Python itself puts the folder first.
        _run([*MODULE, *words], trapped)


@pytest.mark.parametrize(
    ("python_path", "stays"),
    [
        ("{sep}{other}", False),
        ("{other}{sep}", False),
        ("{other}{sep}{sep}{other}", False),
        ("{sep}", False),
        ("{here}{sep}{other}", True),
        ("{here}{sep}{sep}", True),
        (".{sep}{sep}{other}", True),
    ],
)
def test_an_empty_entry_of_the_python_path_names_no_folder(
    python_path: str, stays: bool, tmp_path: Path
) -> None:
    """The folders that it names stay, also the current one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "beside.py").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "elsewhere.py").write_text("")
    given = python_path.format(sep=os.pathsep, here=tmp_path / "here", other=tmp_path / "other")
    show = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from llava_recipes.interpreter import leave_current_folder, python_environment\n"
        "leave_current_folder()\n"
        "import importlib.util, os, subprocess\n"
        "seen = 'import importlib.util; print(*(importlib.util.find_spec(name) is not None '\\\n"
        '    \'for name in ("beside", "elsewhere")))\'\n'
        "exec(seen)\n"
        "sys.stdout.flush()\n"
        "for env in (None, python_environment()):\n"
        "    subprocess.run([sys.executable, '-c', seen], env=env, check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", show],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{stays} {'{other}' in python_path}"] * 3


def test_a_checkout_that_is_not_installed_is_found_by_every_process(tmp_path: Path) -> None:
    """By name alone: what else lies beside it stays unseen in the first process."""
    (tmp_path / "llava_recipes").symlink_to(ROOT / "llava_recipes")
    show = (
        "import llava_recipes, subprocess\n"
        "from llava_recipes.interpreter import leave_current_folder, python_environment, python_words\n"
        "leave_current_folder()\n"
        "words = [*python_words('x')[:2], '-c', 'import llava_recipes; print(llava_recipes.__file__)']\n"
        "print(llava_recipes.__file__, flush=True)\n"
        "subprocess.run(words, env=python_environment(), check=True)\n"
    )
    done = run_process([sys.executable, "-S", "-c", show], cwd=tmp_path, env={"PYTHONPATH": ""})
    assert done.stderr == ""
    assert done.stdout.splitlines() == [str(tmp_path / "llava_recipes" / "__init__.py")] * 2


def test_a_command_of_the_process_itself_changes_no_path_of_a_caller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava_recipes.cli.main import main

    before: list[Any] = [list(sys.path), dict(os.environ)]
    assert main(["--version"]) == 0
    assert [sys.path, dict(os.environ)] == before
    assert capsys.readouterr().out.startswith("llava-recipe ")
    assert python_words("module")[1:] == ["-P", "-m", "module"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "named", ""]))
    assert python_environment()["PYTHONPATH"].endswith("named")


def test_what_leaves_the_folder_imports_only_what_python_has_loaded() -> None:
    """All others would be looked for in the current folder; `__future__` too."""
    for name in ("interpreter.py", "__init__.py"):
        tree = ast.parse((PACKAGE / name).read_text("utf-8"))
        found = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert found <= {"os", "site", "sys", "llava_recipes"}
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    first, second = ast.parse((PACKAGE / "__main__.py").read_text("utf-8")).body[1:3]
    assert ast.unparse(first) == "from llava_recipes.interpreter import leave_current_folder"
    assert ast.unparse(second) == "leave_current_folder()"


def test_every_python_that_is_started_leaves_the_folder() -> None:
    """No other module writes the words that start one."""
    files = sorted(PACKAGE.rglob("*.py"))
    started = [
        file.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.List | ast.Tuple) and any(map(_is_python, node.elts))
    ]
    assert started == ["interpreter.py"]


def _is_python(word: ast.expr) -> bool:
    return ast.unparse(word) == "sys.executable"
