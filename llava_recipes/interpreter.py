"""The Python that our processes run in: it imports nothing from the current folder.

With `-m` and `-c` Python puts the folder it is started in first on its path, so that a `secrets.py` beside a
recipe would be run in place of Python's own. There is no `from __future__` here, which is an import too: this
module is loaded while the current folder is still on the path.
"""

import os
import site
import sys

import llava_recipes

_has_left = False


def leave_current_folder() -> None:
    """Take the current folder off this process's import path, and off that of every process it starts.

    Folders that PYTHONPATH names stay, the current one too; an empty entry, as `PYTHONPATH=$UNSET:/x` makes
    one, names none. For a process that is the command's own; what comes after the first call has no effect.
    """
    global _has_left
    if _has_left:
        return
    _has_left = True
    here = _current_folder()
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):
        del sys.path[0]
    given = os.environ.get("PYTHONPATH", "")
    named = _named(given)
    if given and "" in given.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        # Python has made the empty entry the current folder's absolute path.
        if here not in (*map(os.path.abspath, named), *_folders_of_python()):
            sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    os.environ["PYTHONSAFEPATH"] = "1"


def python_words(module: str) -> list[str]:
    """The words that start a module as `python -m` does, without the current folder on the path."""
    return [sys.executable, "-P", "-m", module]


def python_environment() -> dict[str, str]:
    """This process's environment, in which no Python puts the current folder on its path.

    A checkout that is run without being installed is found by the current folder alone: its own folder is
    named in PYTHONPATH then, so that all processes run the same code.
    """
    folders = _named(os.environ.get("PYTHONPATH", ""))
    if not _is_found():
        folders.insert(0, os.path.dirname(_package_folder()))
    path = {"PYTHONPATH": os.pathsep.join(folders)} if folders or "PYTHONPATH" in os.environ else {}
    return {**os.environ, **path, "PYTHONSAFEPATH": "1"}


def _named(python_path: str) -> list[str]:
    return [folder for folder in python_path.split(os.pathsep) if folder]


def _current_folder() -> str | None:
    """None where it was removed: nothing is imported from it then."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _folders_of_python() -> tuple[str, ...]:
    """Where Python's own modules and installed packages are; these stay, whoever stands in them."""
    return (os.path.dirname(os.__file__), *site.getsitepackages(), site.getusersitepackages())


def _package_folder() -> str:
    return os.path.dirname(os.path.abspath(llava_recipes.__file__))


def _is_found() -> bool:
    """Whether an import of this package finds the code that runs now, and no other checkout's."""
    for finder in sys.meta_path:
        spec = finder.find_spec(llava_recipes.__name__, None)
        if spec is not None:
            return spec.origin is not None and os.path.samefile(spec.origin, llava_recipes.__file__)
    return False
