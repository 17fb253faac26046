"""The recipes, grids, sweep files and launch profiles that come with the package, by name: found, listed, shown, copied.

    budget-recipes                      each with a line about it
    budget-recipes show glue/paper
    budget-recipes copy cpu_10m my.yaml
    budget-profile ddp                  the path of a launch profile, for accelerate launch --config_file

setup.cfg puts them inside of the package that it builds; in a clone they are the folders recipes/ and accelerate_configs/
beside it, which also serve an editable install.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from budget_trainer.core.command import Parser, run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import made_parents, user_path, write_atomic

_PACKAGE = Path(__file__).resolve().parents[1]
# The clone that this package is used from; None where it is installed, with its files inside of it.
CLONE = None if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent
_HOME = CLONE or _PACKAGE
# Folders of recipes/, and what takes their files.
_TAKEN_BY = {
    "": "train_mlm.py, budget-train-mlm",
    "glue": "finetune_glue.py --grid, budget-finetune-glue --grid",
    "sweeps": "sweep.py, budget-sweep",
    "data": "python -m data_prep.prepare, budget-prep-prepare",
}


def _recipes() -> dict[str, Path]:
    """The recipes by their names, as `cpu_10m` and `glue/paper`, in the order of _TAKEN_BY."""
    folders = {folder: _HOME / "recipes" / folder for folder in _TAKEN_BY}
    return {
        f"{folder}/{path.stem}".lstrip("/"): path
        for folder, place in folders.items()
        for path in sorted(place.glob("*.yaml"))
    }


def _profiles() -> dict[str, Path]:
    """The launch profiles by their names; what is no YAML (`slurm.sbatch`) has its ending."""
    files = sorted((_HOME / "accelerate_configs").glob("*.*"))
    return {path.stem if path.suffix == ".yaml" else path.name: path for path in files}


def _nearest(name: str, known: Collection[str], otherwise: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else otherwise


def _is_name(text: str) -> bool:
    """Whether `text` may name a file of the package: one without an ending that is not there as a path."""
    return re.fullmatch(r"[\w-]+(/[\w-]+)?", text) is not None and not Path(text).is_file()


def recipe_path(text: str, field: str, folder: str = "") -> str:
    """The file that a person means by `text`: a path, or the name of a recipe of the package where there is no such file.

    Args:
        folder: `glue`, `sweeps` or `data`, whose recipes are found without it too.

    Raises:
        InputError: naming `field`, for a bare name that is none, or a path that can be none (`user_path`).
    """
    text = user_path(text, field)
    if not _is_name(text):
        return text
    known = _recipes()
    for name in (f"{folder}/{text}", text):
        if name in known:
            return str(known[name])
    if "/" in text:
        return text  # a path to a file that is not there, which its reader says
    names = [name.rpartition("/")[2] for name in known if name.rpartition("/")[0] == folder]
    fix = _nearest(text, names, "give a YAML file, or a name that budget-recipes lists")
    raise InputError(f"{field}: {text!r} is neither a file nor a recipe of the package; {fix}")


def profile_path(text: str, field: str) -> Path:
    """The launch profile that a person means by `text`: a file, or a name such as `ddp`. InputError where it is neither."""
    text = user_path(text, field)
    known = _profiles()
    if text in known and not Path(text).is_file():
        return known[text]
    if not Path(text).is_file():
        fix = _nearest(text, known, f"give a profile as in accelerate_configs/, or one of {', '.join(known)}")
        raise InputError(f"{field}: {text} is not there; {fix}")
    return Path(text)


def check_profile(path: Path, field: str) -> None:
    """Refuse (InputError) a launch profile of DeepSpeed where that is not installed, as the launcher does in a traceback."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if re.search(r"^distributed_type: *['\"]?DEEPSPEED\b", text, re.M) and find_spec("deepspeed") is None:
        fix = "pip install 'budget-trainer[deepspeed]', or give a profile without it, as ddp"
        raise InputError(f"{field}: {path.stem} starts DeepSpeed, which is not installed; {fix}")


def _in_clone() -> bool:
    with suppress(OSError):  # the current folder may be gone
        return CLONE is not None and Path.cwd() == CLONE
    return False


def script_words(script: str) -> list[str]:
    """What a launcher or Python is given to start a script (`train_mlm`): in the clone its file, elsewhere the module."""
    return [f"{script}.py"] if _in_clone() else ["-m", f"budget_trainer.{script}"]


def launch_text(profile: str, *flags: str, script: str = "train_mlm") -> str:
    """`accelerate launch` of a script with a launch profile of the package, as a person writes it here."""
    file = f"accelerate_configs/{profile}.yaml" if _in_clone() else f"$(budget-profile {profile})"
    return " ".join(["accelerate launch --config_file", file, *flags, *script_words(script)])


def next_steps(output_dir: Path) -> str:
    """What to do with a finished run: commands to copy, a line each."""
    folder = shlex.quote(str(output_dir))
    glue = shlex.join(["python", *script_words("finetune_glue")])
    steps = {
        "try it": f'python -m budget_trainer.fill_mask {folder}/final --text "The [MASK] is empty."',
        "GLUE": f"{glue} --model_name_or_path {folder}/final --task_name CoLA,SST-2 --grid quick --output_dir {folder}-glue",
        "publish": f"python -m budget_trainer.publish {folder} --hub_model_id USER/NAME",
    }
    return "next:\n" + "\n".join(f"  {what:8} {command}" for what, command in steps.items())


def _about(path: Path) -> str:
    """The first line of a recipe, which says in a comment what it is for."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").strip().rstrip(".")


def _list() -> None:
    known = _recipes()
    width = 2 + max(map(len, known), default=0)
    for folder, taken_by in _TAKEN_BY.items():
        print(f"{taken_by}:")
        for name, path in known.items():
            if name.rpartition("/")[0] == folder:
                print(f"  {name:<{width}}{_about(path)}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("budget-recipes", __doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "action",
        nargs="?",
        choices=("show", "copy"),
        help="print a recipe, or write it for editing; without: list all",
    )
    add("name", nargs="?", help="of the recipe, as cpu_10m, glue/paper")
    add("file", nargs="?", type=Path, help="with copy: where to (NAME.yaml in this folder)")
    return parser.parse_args(argv)


def _run(given: argparse.Namespace) -> None:
    if given.action is None:
        _list()
        return
    known = _recipes()
    if given.name is None:
        raise InputError(f"name: missing; give one of {', '.join(known)}")
    if given.name not in known:
        fix = _nearest(given.name, known, "budget-recipes lists them")
        raise InputError(f"name: {given.name!r} is no recipe of the package; {fix}")
    text = known[given.name].read_text(encoding="utf-8")
    if given.action == "show":
        print(text, end="")
        return
    file = given.file or Path(known[given.name].name)
    if file.exists():
        raise InputError(f"file: {file} is there already; give another name")
    with made_parents(file):
        write_atomic(file, text)
    print(f"{file}: a copy of {given.name}")


def main(argv: Sequence[str] | None = None) -> int:
    """`budget-recipes`: 0 done, 2 for a name that is none or a file that is there already."""
    return run_command(lambda: _run(_arguments(argv)))


def profile(argv: Sequence[str] | None = None) -> int:
    """`budget-profile NAME` prints the path of a launch profile that can be launched here; without a name, all names."""

    def work() -> None:
        parser = Parser("budget-profile", "The path of a launch profile, for accelerate launch --config_file.")
        parser.add_argument("name", nargs="?", help=f"one of {', '.join(_profiles())}; without: these names")
        name = parser.parse_args(argv).name
        if name is None:
            print("\n".join(_profiles()))
            return
        path = profile_path(name, "name")
        check_profile(path, "name")
        print(path)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
