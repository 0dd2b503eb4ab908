"""Start Python processes that import nothing from the current folder.

With `-m` and `-c`, Python puts the current folder first on its path: it would run a `secrets.py` next to a
recipe instead of its own. There is no `from __future__` here, which is an import too: this module is loaded
while the current folder is still on the path.
"""

import os
import site
import sys

import llava_recipes

_has_left = False


def leave_current_folder() -> None:
    """Remove the current folder from the import path of this process and of every process it starts.

    Folders that PYTHONPATH names stay, even the current one; an empty entry, as in `PYTHONPATH=$UNSET:/x`,
    names none. For processes of the command line only; calls after the first have no effect.
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
        # Python has replaced the empty entry by the absolute path of the current folder.
        if here not in (*map(os.path.abspath, named), *_folders_of_python()):
            sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    os.environ["PYTHONSAFEPATH"] = "1"


def is_own_process() -> bool:
    """Whether this process is one of the command line, not a program that calls `main` as a function."""
    return _has_left


def python_words(module: str) -> list[str]:
    """The command line that runs a module as `python -m` does, without the current folder on the path."""
    return [sys.executable, "-P", "-m", module]


def python_environment() -> dict[str, str]:
    """This process's environment, changed so that no Python puts the current folder on its path.

    A checkout that isn't installed would only be found through the current folder: PYTHONPATH then names its
    folder, so that all processes run the same code.
    """
    folders = _named(os.environ.get("PYTHONPATH", ""))
    if not _is_found():
        folders.insert(0, os.path.dirname(_package_folder()))
    path = {"PYTHONPATH": os.pathsep.join(folders)} if folders or "PYTHONPATH" in os.environ else {}
    return {**os.environ, **path, "PYTHONSAFEPATH": "1"}


def _named(python_path: str) -> list[str]:
    return [folder for folder in python_path.split(os.pathsep) if folder]


def _current_folder() -> str | None:
    """None if it was removed: nothing can be imported from it then."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _folders_of_python() -> tuple[str, ...]:
    """The folders of Python's own modules and of installed packages, which stay on the path."""
    return (os.path.dirname(os.__file__), *site.getsitepackages(), site.getusersitepackages())


def _package_folder() -> str:
    return os.path.dirname(os.path.abspath(llava_recipes.__file__))


def _is_found() -> bool:
    """Whether importing this package finds the code that runs now, not another checkout's."""
    for finder in sys.meta_path:
        spec = finder.find_spec(llava_recipes.__name__, None)
        if spec is not None:
            return spec.origin is not None and os.path.samefile(spec.origin, llava_recipes.__file__)
    return False
