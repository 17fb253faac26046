"""The command line of every command: exit codes, one-line errors, help, colour, entry points."""

import configparser
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
from tests.conftest import ROOT, run

DOCS = (ROOT / "docs" / "command_line.md").read_text()
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
ENTRY_POINTS = dict(
    (part.strip() for part in line.split("="))
    for line in CONFIG["options.entry_points"]["console_scripts"].strip().splitlines()
)
MODULES = {target.partition(":")[0] for target in ENTRY_POINTS.values()}
SCRIPTS = {"train_mlm", "finetune_glue"}
# A command whose input is not there, by module.
MISSING = {
    "train_mlm": ["/nowhere/recipe.yaml"],
    "finetune_glue": ["/nowhere/recipe.yaml"],
    "sweep": ["/nowhere/sweep.yaml", "--output_dir", "OUT/sweep"],
    "budget_trainer.plan": ["/nowhere/recipe.yaml", "--total_training_time", "1h", "--picture", "OUT/plan.png"],
    "budget_trainer.glue.check_submission": ["/nowhere/glue.zip"],
    "budget_trainer.fill_mask": ["/nowhere/final"],
    "budget_trainer.publish": ["/nowhere/run", "--hub_model_id", "user/name", "--dry_run"],
    "budget_trainer.migrate": ["/nowhere/train.sh"],
    "data_prep.docstrings": ["--packages", "/nowhere/packages", "--output_file", "OUT/corpus.txt"],
    "data_prep.tokenizer": ["--input", "/nowhere/corpus.txt", "--output_dir", "OUT/tokenizer"],
    "data_prep.blocks": [
        "--input",
        "/nowhere/text",
        "--tokenizer",
        "/nowhere/tokenizer",
        "--output_dir",
        "OUT/blocks",
    ],
    "data_prep.prepare": ["/nowhere/recipe.yaml"],
    "data_prep.hdf5": [
        "--input",
        "/nowhere/shards",
        "--tokenizer",
        "/nowhere/tokenizer",
        "--output_dir",
        "OUT/blocks",
    ],
    "data_prep.inspect": ["/nowhere/blocks"],
    "data_prep.merge": ["--input", "/nowhere/a", "/nowhere/b", "--output_dir", "OUT/both"],
    "data_prep.split": ["--input", "/nowhere/a", "--output_dir", "OUT/more", "--num_shards", "2"],
}
NO_TERMINAL = {"NO_COLOR": "", "FORCE_COLOR": "", "TERM": "xterm", "COLUMNS": "100"}


def one_line(done):
    """The one line of an error, without a traceback or a usage text."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in done.stderr, done.stderr
    assert "usage:" not in done.stderr
    return errors[0]


def test_every_entry_point_resolves_and_is_listed():
    for name, target in ENTRY_POINTS.items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), target
        assert f"`{name}`" in DOCS and re.search(rf"`(?:python -m )?{re.escape(module)}(?:\.py)?`", DOCS), name


def test_every_command_is_tried_here():
    assert set(MISSING) == MODULES


@pytest.mark.parametrize("module", sorted(MISSING))
def test_bad_input_ends_with_2_in_one_line_and_writes_nothing(module, tmp_path):
    words = [word.replace("OUT", str(tmp_path)) for word in MISSING[module]]
    done = run([sys.executable, "-m", module, *words], env=NO_TERMINAL)
    assert done.returncode == 2, done.stderr
    assert "/nowhere" in one_line(done) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", sorted(MISSING))
def test_a_flag_that_is_unknown_ends_with_2(module, capfd):
    words = ["--no_such_flag", "1"] if module != "budget_trainer.migrate" else ["--no_such_flag"]
    assert importlib.import_module(module).main(words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines


@pytest.mark.parametrize("module", sorted(MISSING))
def test_help_says_how_it_was_called_and_a_closed_pipe_is_no_failure(module):
    script = f"{sys.executable} -m {module} --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = run(["bash", "-c", script], env=NO_TERMINAL)
    first, code = done.stdout.splitlines()
    assert first.startswith(f"usage: python -m {module} ") and code in ("0", str(command.PIPE_CLOSED))
    assert done.stderr == ""


def test_a_pipe_that_is_closed_before_the_output():
    for words in (["budget_trainer.migrate", "--table"], ["train_mlm", "--help"], ["data_prep.prepare", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **NO_TERMINAL}
        line = [sys.executable, "-m", *words]
        done = subprocess.run(line, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert done.returncode == command.PIPE_CLOSED and done.stderr == "", (words, done.stderr)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("field: value; fix"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2),
        (RunError("it is over"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_each_end_has_its_code(error, code, capfd):
    def work():
        raise error

    assert command.run_command(work) == code and code in command.EXIT_CODES
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == (code != 141) and not (code in (1, 2) and not errors[0].startswith("error: "))


def test_the_table_of_exit_codes_is_in_the_documentation():
    for code, meaning in command.EXIT_CODES.items():
        assert f"| {code} | {meaning.replace('|', chr(92) + '|')} |" in DOCS


@pytest.mark.parametrize("name", ["train_mlm", "data_prep.blocks"])
def test_version_and_entry_point(name, tmp_path):
    """As pip writes an entry point: the usage has its name, its exit code is that of the command."""
    entry = next(entry for entry, target in ENTRY_POINTS.items() if target.startswith(f"{name}:"))
    module, function = ENTRY_POINTS[entry].split(":")
    program = tmp_path / entry
    program.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    done = run([sys.executable, program, "--version"])
    assert done.returncode == 0 and done.stdout == f"budget-trainer {__version__}\n"
    done = run([sys.executable, program, "--help"], env=NO_TERMINAL)
    assert done.stdout.startswith(f"usage: {entry} ") and "\033" not in done.stdout
    assert run([sys.executable, program, "--no_such_flag", "1"]).returncode == 2


def test_script_is_called_by_its_name():
    done = run([sys.executable, "train_mlm.py", "--help"], env=NO_TERMINAL)
    assert done.returncode == 0 and done.stdout.startswith("usage: train_mlm.py [recipe.yaml]")


def on_terminal(words, **environment):
    """Exit code and output of a command whose stdout and stderr are a real terminal."""
    leader, follower = pty.openpty()
    full = {**os.environ, "PYTHONPATH": str(ROOT), **NO_TERMINAL, **environment}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=full, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    said = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(leader)
    return process.wait(), said.decode()


BAD = ["-m", "data_prep.split", "--input", "/nowhere", "--output_dir", "/nowhere/out", "--num_shards", "2"]


def test_colour_only_on_a_terminal():
    code, said = on_terminal(BAD)
    assert code == 2 and said.startswith("\033[31merror:\033[0m ") and said.count("\033") == 2
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\033" not in on_terminal(BAD, **environment)[1], environment
    assert "\033" not in run([sys.executable, *BAD], env=NO_TERMINAL).stderr
    assert "\033[31m" in run([sys.executable, *BAD], env={**NO_TERMINAL, "FORCE_COLOR": "1"}).stderr
    code, said = on_terminal(["train_mlm.py", "--help"])
    assert code == 0 and "\033[1mBudget:\033[0m" in said and set(re.findall(r"\033\[(\d+)m", said)) == {"0", "1"}
    code, said = on_terminal(["train_mlm.py", "--no_such_flag", "1"])
    assert code == 2 and "\033[31merror:\033[0m no_such_flag: unknown key" in said


def test_a_second_interrupt_ends_with_130():
    done = run(
        [
            sys.executable,
            "-c",
            "import os, signal, time\n"
            "from budget_trainer.core.command import exit_process, run_script\n"
            "def work(argv, stop, at_exit):\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    assert stop.signal_number == signal.SIGINT\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    time.sleep(60)\n"
            "exit_process(run_script(work, []))\n",
        ]
    )
    assert done.returncode == 130 and done.stderr == "interrupted\n", done.stderr
