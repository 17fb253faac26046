"""Every command that a document shows is taken by the command's own parser, so that a renamed flag is found."""

import argparse
import contextlib
import importlib
import inspect
import re
import subprocess
import sys
from configparser import ConfigParser

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from budget_trainer.config.arguments import KEYS, REPLACED
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.glue.arguments import KEYS as GLUE_KEYS
from budget_trainer.glue.arguments import REFUSED, RENAMED, parse_request
from budget_trainer.glue.plan import read_grid
from budget_trainer.migrate.flags import FLAGS
from data_prep.recipe import DataRecipe
from tests import documents
from tests.conftest import ROOT
from tests.documents import PAGES, name_of

SHELL = [*documents.blocks("bash"), *documents.blocks("sh")]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
ENTRY_POINTS = dict(
    line.replace(" ", "").split("=") for line in SETUP["options.entry_points"]["console_scripts"].split("\n") if line
)
MAKEFILE = (ROOT / "Makefile").read_text()
# Commands and flags of others, which are their own business.
OTHERS = {*"cd export source . set trap wait exit for done fi [ test echo sleep".split()}
OTHERS |= {*"ls cat head tail grep wc tar rm cp mkdir df kill pkill watch git ssh python3".split()}
OTHERS |= {*"hf tensorboard nvidia-smi py-spy sbatch scontrol squeue scancel".split()}
KNOWN = {*"--help --version --print_config --requeue --time --signal --nodes --upgrade --pid --local-dir".split()}


class Parsed(BaseException):
    """Raised behind a parser that took its words, so that nothing more is done."""


@pytest.mark.parametrize(("where", "script"), SHELL, ids=[where for where, _ in SHELL])
def test_shell_is_shell(where, script):
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert not script.startswith("#!") or script == (ROOT / "accelerate_configs" / "slurm.sbatch").read_text()


ALL = sorted({tuple(words) for _, script in SHELL for words in documents.commands(script)})


@pytest.mark.parametrize("words", ALL, ids=[" ".join(words)[:70] for words in ALL])
def test_command(words, monkeypatch, tmp_path):
    """What earlier commands have left in out/ does not matter."""
    check_command([re.sub(r"^out/", f"{tmp_path}/", word) for word in words], monkeypatch)


def test_what_is_wrong_is_found(monkeypatch):
    assert len(ALL) > 50, "commands are found at all"
    for line in (
        "accelerate launch --config_file accelerate_configs/tpu.yaml train_mlm.py recipes/quickstart.yaml ...",
        "python train_mlm.py recipes/quickstart.yaml --dat_dir d --output_dir o --total_training_time 10m",
        "python -m data_prep.blocks --inputs corpus --tokenizer t --output_dir o",
        "make quickstart BUDGETS=3m",
        "somecommand",
    ):
        (words,) = documents.commands(line)
        with pytest.raises((AssertionError, InputError, SystemExit, ImportError, pytest.fail.Exception)):
            check_command(words, monkeypatch)


def check_command(words, monkeypatch):
    """Whether the program that is named takes the flags and values."""
    program, *rest = words
    for word in rest:
        if re.match(r"(recipes|accelerate_configs)/", word):
            assert (ROOT / word).exists(), word
    if program == "make":
        check_make(rest)
    elif program == "torchrun" or (program == "accelerate" and rest[:1] == ["launch"]):
        parser = get_args_parser() if program == "torchrun" else launch_command_parser()
        given = parser.parse_args(
            rest[program == "accelerate" :]
        )  # a file of accelerate_configs/ was looked for above
        check_python([*["-m"] * bool(given.module), given.training_script, *given.training_script_args], monkeypatch)
    elif program == "sbatch" and "accelerate_configs/slurm.sbatch" in rest:
        at = rest.index("accelerate_configs/slurm.sbatch")
        check_python(["train_mlm.py", *rest[at + 1 :]], monkeypatch)
    elif program in ENTRY_POINTS:
        check_entry(ENTRY_POINTS[program], rest, monkeypatch)
    elif program.endswith("python"):
        check_python(rest, monkeypatch)
    elif program == "pip":
        assert all((ROOT / word).exists() for word in rest if word.endswith(".txt"))
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(SETUP["options.extras_require"]), extras
    else:
        assert program in OTHERS, f"a kind of command that no test covers: {' '.join(words)}"


def check_make(words):
    targets = [word for word in words if "=" not in word]
    assert all(re.search(rf"^{target}:", MAKEFILE, re.M) for target in targets), targets
    for name, _, value in (word.partition("=") for word in words if "=" in word):
        assert re.search(rf"^{name}\s*\?=", MAKEFILE, re.M), name
        assert name != "CONFIG" or (ROOT / value).exists()


def check_python(words, monkeypatch):
    if words[0] == "-m":
        if words[1].split(".")[0] in ("budget_trainer", "data_prep"):
            check_entry(f"{words[1]}:main", words[2:], monkeypatch)
    elif words[0] != "-c":
        path = ROOT / words[0]
        if not path.exists():
            assert re.match(r"(my|your)_?", words[0]), f"{words[0]}: no such script"
            return
        monkeypatch.syspath_prepend(str(path.parent))
        check_entry(f"{words[0].removesuffix('.py').replace('/', '.')}:main", words[1:], monkeypatch)


def check_entry(entry, words, monkeypatch):
    """Parse as `module:function` does; of the two large ones with all checks of values."""
    module, _, function = entry.partition(":")
    if "--help" in words or "-h" in words:
        return
    words = [word for word in words if word != "--print_config"]  # of the same run
    script = module.removeprefix("budget_trainer.")
    if script == "train_mlm":
        if words and not words[0].startswith("-"):
            named = words[0] if words[0].startswith("recipes/") else f"recipes/{words[0]}.yaml"
            words = [str(ROOT / (named if (ROOT / named).exists() else "recipes/quickstart.yaml")), *words[1:]]
        if "..." in words:
            words.remove("...")
            words += "--data_dir data --output_dir out --total_training_time 1h".split()
        assert parse_recipe([*words, "--use_cpu", "true", "--fp16", "false"]).data_dir
    elif script == "finetune_glue":
        request = parse_request([*(word for word in words if word != "..."), "--use_cpu", "true"])
        grid = request.suite.grid
        if grid is not None and (grid.startswith("recipes/") or grid.isidentifier()):
            assert read_grid(grid if grid.isidentifier() else str(ROOT / grid), None, 1)
    elif module == "data_prep.prepare":
        named = f"recipes/data/{words[0]}.yaml" if words[0].isidentifier() else words[0]
        assert DataRecipe.read(ROOT / named, words[1:]).sources
    else:
        parse_alone(importlib.import_module(module), function, words, monkeypatch)


def parse_alone(module, function, words, monkeypatch):
    """The module's own parsing: its `_parse` or `parse`, which check values too, or its main function up to there."""
    home = inspect.getmodule(getattr(module, function))
    for name in ("_parse", "parse"):
        if hasattr(home, name):
            getattr(home, name)(words)
            return
    taken = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        taken(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        call(getattr(module, function), words, monkeypatch)
        pytest.fail(f"{module.__name__} {' '.join(words)}: ended before the flags were parsed")


def call(main, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", *words])
    main(words) if inspect.signature(main).parameters else main()


def flags_of(main, monkeypatch):
    """All flags of the parser that `main` makes."""
    found = set()

    def parse(self, *args, **kwargs):
        found.update(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update(*(parser._option_string_actions for parser in action.choices.values()))
        raise Parsed

    with monkeypatch.context() as patch, contextlib.suppress(Parsed, InputError, SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)  # which parse_args calls
        call(main, [], patch)
    return found


def test_every_flag_that_is_named_exists(monkeypatch):
    """In code within a line: a flag of one of our commands, of a launcher, or of another program."""
    keys = KEYS | GLUE_KEYS | {*RENAMED, *REFUSED, *REPLACED} | {f"no_{key}" for key in KEYS} | set(FLAGS)
    known = {f"--{key}" for key in keys} | set(launch_command_parser()._option_string_actions)
    known |= set(get_args_parser()._option_string_actions)
    modules = {entry.partition(":")[0] for entry in ENTRY_POINTS.values()} - {
        "budget_trainer.train_mlm",
        "budget_trainer.finetune_glue",
    }
    modules |= {
        f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "scaling_point"
    }
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in sorted(modules):
        main = getattr(importlib.import_module(name), "main", None)
        known |= flags_of(main, monkeypatch) if main else set()
    for page in PAGES:
        if page.name != "migrating.md":  # flags of the original's scripts
            named = re.findall(r"(?<![\w-])--[a-z][\w-]*", "\n".join(documents.inline_code(page)))
            assert not set(named) - known - KNOWN, name_of(page)
