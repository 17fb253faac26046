"""What every command line shares: paths are meant as a shell means them, and any locale can show what is printed."""

import io
import logging
import sys
from pathlib import Path

import pytest

from budget_trainer import fill_mask, migrate
from budget_trainer import plan as planning
from budget_trainer.config.arguments import PARSER
from budget_trainer.core import command
from budget_trainer.glue.arguments import PARSER as GLUE
from budget_trainer.reporting import publish
from budget_trainer.sweep import command as sweeping
from budget_trainer.sweep.spec import SweepSpec
from data_prep import blocks, docstrings, hdf5, inspect, merge, prepare, split, tokenizer

NEW = ["--output_dir", "x"]


def glue(words):
    GLUE.parse(words)


@pytest.mark.parametrize(
    "main, words",
    [
        (blocks.main, ["--input", "?", "--tokenizer", "x", *NEW]),
        (blocks.main, ["--input", "x", "?", "--tokenizer", "x", *NEW]),
        (blocks.main, ["--input", "x", "--tokenizer", "?", *NEW]),
        (blocks.main, ["--input", "x", "--tokenizer", "x", "--output_dir", "?"]),
        (blocks.main, ["--input", "x", "--tokenizer", "x", *NEW, "--validation_text", "?"]),
        (tokenizer.main, ["--input", "?", *NEW]),
        (hdf5.main, ["--input", "?", "--tokenizer", "x", *NEW]),
        (hdf5.main, ["--input", "x", "--tokenizer", "?", *NEW]),
        (merge.main, ["--input", "x", "?", *NEW]),
        (split.main, ["--input", "?", "--num_shards", "2", *NEW]),
        (inspect.main, ["?"]),
        (docstrings.main, ["--output_file", "?"]),
        (docstrings.main, ["--output_file", "x", "--packages", "?"]),
        (prepare.main, ["?"]),
        (fill_mask.main, ["?"]),
        (migrate.main, ["--output", "?", "x"]),
        (migrate.main, ["--data_dir", "?", "x"]),
        (publish.main, ["?"]),
        (planning.main, ["?"]),
        (planning.main, ["x", "--write", "?"]),
        (sweeping.parse_request, ["?"]),
        (sweeping.parse_request, ["x", "--output_dir", "?"]),
        (sweeping.parse_request, ["x", "--data_dir", "?"]),
        (PARSER.parse, ["?"]),
        (PARSER.parse, ["--data_dir", "?"]),
        (PARSER.parse, ["--output_dir=?"]),
        (PARSER.parse, ["--model_name_or_path", "?"]),
        (PARSER.parse, ["--resume_from_checkpoint", "?"]),
        (PARSER.parse, ["--deepspeed", "?"]),
        (glue, ["--glue_dir", "x", "?"]),
        (glue, ["--dataset_name", "?"]),
        (glue, ["--grid", "?"]),
        (glue, ["--tokenizer_name", "?"]),
    ],
)
def test_every_path_of_every_command_goes_through_one_function(main, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("?", "$NO_SUCH_NAME/x") for word in words]

    def work():
        if main.__name__ == "main":
            return main(words)
        main(words)

    assert command.run_command(work) == 2
    error = capsys.readouterr().err
    assert "names the variable NO_SUCH_NAME, which is not set; set it" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_path_flag_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/d")
    parser = command.Parser("x", None)
    parser.add_argument("--a", type=Path)
    parser.add_argument("--b", type="path")
    assert parser.parse_args(["--a=~/x", "--b", "$DATA"]).a == Path("/home/me/x")
    assert PARSER.parse(["--data_dir=~/x"]).groups[1].data_dir == "/home/me/x"
    assert GLUE.parse(["--glue_dir", "$DATA/a", "~/b"]).groups[0].glue_dir == ["/d/a", "/home/me/b"]
    content = {
        "output_dir": "~/s",
        "storage": "sqlite:///$DATA/x.db",
        "recipe": "$DATA/r.yaml",
        "time_per_trial": "1m",
    }
    spec = SweepSpec.read({**content, "parameters": {"learning_rate": ["1e-3"]}}, "name")
    assert [str(spec.output_dir), str(spec.recipe), spec.storage] == ["/home/me/s", "/d/r.yaml", "sqlite:////d/x.db"]
    assert PARSER.parse(["--fsdp_config", '{"a": "$B"}']).groups[-1].fsdp_config == '{"a": "$B"}'


def test_any_locale_can_show_what_is_printed(monkeypatch):
    for encoding, expected in (
        ("ascii", b"\\xe9 \\u4e2d\n"),
        ("latin-1", b"\xe9 \\u4e2d\n"),
        ("utf-8", "é 中\n".encode()),
    ):
        for name in ("stdout", "stderr"):
            raw = io.BytesIO()
            monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
            assert command.run_command(lambda name=name: print("é 中", file=getattr(sys, name), flush=True)) == 0
            assert raw.getvalue() == expected
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), encoding="utf-8"))
    assert (
        command.run_command(lambda: print("caf\udce9")) == 0 and raw.getvalue() == b"caf\\udce9\n"
    )  # a name that is no UTF-8


def test_advice_of_libraries_on_what_is_decided_here_stays_unsaid(monkeypatch, capfd):
    """Only these lines; what else the same loggers say is shown."""

    def work(argv, stop, at_exit):
        for name in command._ADVICE:
            logger = logging.getLogger(name)
            monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(sys.stderr)])
            monkeypatch.setattr(logger, "propagate", False)
            logger.warning("The speedups for torchdynamo mostly come with GPU Ampere or higher and which is not ...")
            logger.warning("Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to ...")
            logger.warning("a warning of %s", name)
        return 0

    assert command.run_script(work, []) == 0 and command.run_script(work, []) == 0
    told = capfd.readouterr().err
    assert all(told.count(f"a warning of {name}") == 2 for name in command._ADVICE)
    assert told.count("speedups") == told.count("Setting accelerator") == 2, "each from the other's logger alone"
