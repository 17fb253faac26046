"""The command line of every command: exit codes, one-line errors, help, colour, entry points."""

import configparser
import contextlib
import errno
import importlib
import os
import pty
import re
import subprocess
import sys

import pytest

from budget_trainer import __version__
from budget_trainer.core import command
from budget_trainer.core.errors import InputError, RunError
from tests.conftest import ROOT, environment, run
from tests.forked import run_forked

DOCS = (ROOT / "docs" / "command_line.md").read_text()
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
ENTRY_POINTS = dict(
    (part.strip() for part in line.split("="))
    for line in CONFIG["options.entry_points"]["console_scripts"].strip().splitlines()
)
# Of each command, words whose input is not there.
MISSING = {
    "budget_trainer.train_mlm": "/nowhere/recipe.yaml",
    "budget_trainer.finetune_glue": "/nowhere/recipe.yaml",
    "budget_trainer.sweep": "/nowhere/sweep.yaml --output_dir OUT/sweep",
    "budget_trainer.plan": "/nowhere/recipe.yaml --total_training_time 1h --picture OUT/plan.png",
    "budget_trainer.glue.check_submission": "/nowhere/glue.zip",
    "budget_trainer.fill_mask": "/nowhere/final",
    "budget_trainer.publish": "/nowhere/run --hub_model_id user/name --dry_run",
    "budget_trainer.migrate": "/nowhere/train.sh",
    "budget_trainer.core.package_data": "show /nowhere/recipe",
    "data_prep.quickstart": "--profile /nowhere/profile.yaml --output_dir OUT/run --data_dir OUT/data",
    "data_prep.docstrings": "--packages /nowhere/packages --output_file OUT/corpus.txt",
    "data_prep.tokenizer": "--input /nowhere/corpus.txt --output_dir OUT/tokenizer",
    "data_prep.blocks": "--input /nowhere/text --tokenizer /nowhere/tokenizer --output_dir OUT/blocks",
    "data_prep.prepare": "/nowhere/recipe.yaml",
    "data_prep.hdf5": "--input /nowhere/shards --tokenizer /nowhere/tokenizer --output_dir OUT/blocks",
    "data_prep.inspect": "/nowhere/blocks",
    "data_prep.merge": "--input /nowhere/a /nowhere/b --output_dir OUT/both",
    "data_prep.split": "--input /nowhere/a --output_dir OUT/more --num_shards 2",
}
NO_TERMINAL = {"NO_COLOR": "", "FORCE_COLOR": "", "TERM": "xterm", "COLUMNS": "100"}


def test_every_entry_point_resolves_is_listed_and_is_tried_here():
    for name, target in ENTRY_POINTS.items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), target
        assert f"`{name}`" in DOCS and re.search(rf"`(?:python -m )?{re.escape(module)}(?:\.py)?`", DOCS), name
    assert set(MISSING) == {target.partition(":")[0] for target in ENTRY_POINTS.values()}
    for code, meaning in command.EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in DOCS


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """By module how a call with MISSING ends, in which folder it would have written, and how `--help | head -n 1` does."""
    folders = {module: tmp_path_factory.mktemp(module.replace(".", "-")) for module in sorted(MISSING)}
    bad = [["-m", name, *MISSING[name].replace("OUT", str(folder)).split()] for name, folder in folders.items()]
    helps = [["-m", name, "--help"] for name in folders]
    found = run_forked(bad, helps, cwd=ROOT, env=environment(NO_TERMINAL))
    both = zip(folders.items(), found[: len(bad)], found[len(bad) :], strict=True)
    return {name: (done, folder, helped) for (name, folder), done, helped in both}


@pytest.mark.parametrize("module", sorted(MISSING))
def test_bad_input_ends_with_2_in_one_line_and_writes_nothing(module, ends, capfd):
    done, folder, _ = ends[module]
    *before, line = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and "/nowhere" in line, done.stderr
    assert not re.search("^error|^usage|Traceback", "\n".join(before), re.M) and not list(folder.iterdir())
    words = ["--no_such_flag", *(["1"] if module != "budget_trainer.migrate" else [])]
    assert importlib.import_module(module).main(words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("module", sorted(MISSING))
def test_help_says_how_it_was_called_and_a_closed_pipe_is_no_failure(module, ends):
    _, _, done = ends[module]
    assert done.stdout.startswith(f"usage: python -m {module} ") and done.stdout.count("\n") == 1
    assert done.returncode in (0, command.PIPE_CLOSED) and done.stderr == "", done


def test_a_pipe_that_is_closed_before_the_output():
    for words in (["budget_trainer.migrate", "--table"], ["train_mlm", "--help"], ["data_prep.prepare", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **NO_TERMINAL}
        line = [sys.executable, "-m", *words]
        done = subprocess.run(line, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert done.returncode == command.PIPE_CLOSED and done.stderr == "", (words, done.stderr)


def _of_a_pool():
    """What `datasets` raises when its processes do not end at once after Ctrl-C."""
    error = RuntimeError()
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("field: value; fix"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2),
        (RunError("it is over"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (_of_a_pool(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_each_end_has_its_code(error, code, capfd):
    def work():
        raise error

    assert command.run_command(work) == code and code in command.EXIT_CODES
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == (code != 141) and not (code in (1, 2) and not errors[0].startswith("error: "))
    assert not any("--resume" in line for line in errors), "no flag of another command"


@pytest.mark.parametrize("name", ["budget_trainer.train_mlm", "data_prep.blocks"])
def test_version_and_entry_point(name, tmp_path):
    """As pip writes an entry point: the usage has its name, its exit code is that of the command."""
    entry, target = next(pair for pair in ENTRY_POINTS.items() if pair[1].startswith(f"{name}:"))
    program = tmp_path / entry
    program.write_text(f"import sys\nimport {name}\nsys.exit({target.replace(':', '.')}())\n")
    done = run([sys.executable, program, "--version"])
    assert done.returncode == 0 and done.stdout == f"budget-trainer {__version__}\n"
    done = run([sys.executable, program, "--help"], env=NO_TERMINAL)
    assert done.stdout.startswith(f"usage: {entry} ") and "\033" not in done.stdout
    assert run([sys.executable, program, "--no_such_flag", "1"]).returncode == 2


def test_the_usage_of_a_script_has_its_file():
    done = run([sys.executable, "train_mlm.py", "--help"], env=NO_TERMINAL)
    assert done.stdout.startswith("usage: train_mlm.py [recipe.yaml]") and "\033" not in done.stdout


def on_terminal(words, **variables):
    """Exit code and output of a command whose stdout and stderr are a real terminal."""
    leader, follower = pty.openpty()
    full = {**os.environ, "PYTHONPATH": str(ROOT), **NO_TERMINAL, **variables}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=full, **streams)
    os.close(follower)
    output = b""
    with open(leader, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # the other end is closed
        while part := terminal.read(65536):
            output += part
    return process.wait(), output.decode()


BAD = ["-m", "budget_trainer.core.package_data", "show", "/nowhere"]  # which has no heavy imports


def test_colour_only_on_a_terminal():
    code, output = on_terminal(BAD)
    assert code == 2 and output.startswith("\033[31merror:\033[0m ") and output.count("\033") == 2
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\033" not in on_terminal(BAD, **variables)[1], variables
    assert "\033" not in run([sys.executable, *BAD], env=NO_TERMINAL).stderr
    assert "\033[31m" in run([sys.executable, *BAD], env={**NO_TERMINAL, "FORCE_COLOR": "1"}).stderr
    code, output = on_terminal(["train_mlm.py", "--help"])
    assert code == 0 and "\033[1mBudget:\033[0m" in output and set(re.findall(r"\033\[(\d+)m", output)) == {"0", "1"}
    code, output = on_terminal(["train_mlm.py", "--no_such_flag", "1"])
    assert code == 2 and "\033[31merror:\033[0m no_such_flag: unknown key" in output


def test_a_second_interrupt_ends_with_130():
    """At once, where there are other ranks; what atexit was given is done."""
    code = """
import atexit, os, signal, threading, time
from budget_trainer.core.command import exit_process, run_script

def work(argv, stop, at_exit):
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal_number == signal.SIGINT
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

atexit.register(print, "flushed")
threading.Thread(target=time.sleep, args=(60,)).start()
exit_process(run_script(work, []))
"""
    done = run([sys.executable, "-c", code], env={"RANK": "0"}, timeout=50)
    assert done.returncode == 130 and (done.stdout, done.stderr) == ("flushed\n", "interrupted\n"), done
