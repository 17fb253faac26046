"""Commands, scripts and sweep files of the original as they come, and what is said to those that are none."""

import io

import pytest
import yaml

from budget_trainer.config.parser import read_recipe
from budget_trainer.migrate import main
from budget_trainer.migrate.reading import read_command

COMMAND = "deepspeed --num_gpus 8 run_pretraining.py --output_dir out --lr 1e-3 --fp16 --train_batch_size 4096"
CONTINUED = COMMAND.replace(" --", " \\\n    --")
SWEEP = """
hyperparameters:
  lr: [1e-3, 2e-3]
  train_batch_size: [4096, 8192]
default_parameters:
  output_dir: out
  fp16: false
  do_validation: true
  dataset_path: shards
"""


@pytest.fixture
def answer(capsys, monkeypatch):
    """(exit code, stdout, stderr) of the command line; its stdin is a text."""

    def run(*argv, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


# ---- reading ----


@pytest.mark.parametrize(
    "command",
    [
        COMMAND,
        CONTINUED,
        COMMAND.replace(" --", " \\  \r\n --"),
        COMMAND.replace(" --", "\n  --"),  # pasted without its backslashes
        f"#!/bin/bash\n# train\n{CONTINUED}\n",
        COMMAND.replace("--lr 1e-3", "--lr=1e-3").replace("run_pretraining", "../budget/run_pretraining"),
    ],
)
def test_one_command_in_many_forms(command):
    given = read_command(command)
    assert given.values == {"output_dir": "out", "lr": 1e-3, "fp16": True, "train_batch_size": 4096}
    assert given.processes == 8
    given = read_command(f"{command} --dataset_path <dataset path>")
    assert given.values["dataset_path"] == "<dataset path>", "a placeholder is one word"


@pytest.mark.parametrize(
    ("head", "flags", "expected"),
    [
        ("deepspeed --num_gpus 1", [], "accelerate_configs/single_gpu.yaml train_mlm.py r"),
        ("deepspeed", [], "accelerate_configs/ddp.yaml --num_processes 8 train_mlm.py"),
        ("accelerate launch --num_processes=4", [], "ddp.yaml --num_processes 4 train_mlm.py"),
        ("CUDA_VISIBLE_DEVICES=2,3 deepspeed", [], "CUDA_VISIBLE_DEVICES=2,3 accelerate launch --config_file acc"),
        ("CUDA_VISIBLE_DEVICES=2,3 deepspeed", [], "ddp.yaml --num_processes 2 train_mlm.py"),
        ("deepspeed --hostfile hosts", ["--num_processes", 16], "--num_processes; --hostfile hosts is not read"),
        ("deepspeed --hostfile hosts", ["--num_processes", 16], "ddp.yaml --num_processes 16 train_mlm.py"),
    ],
)
def test_the_launch_command(head, flags, expected, answer):
    """`--num_processes` wins, before and behind a command, quoted or not."""
    command = f"{head} run_pretraining.py --output_dir out"
    assert expected in answer(command, *flags)[1] and expected in answer(*flags, *command.split())[1]


# ---- in and out ----


def test_stdin_files_and_the_output(answer, tmp_path):
    code, text, _ = answer(COMMAND)
    assert code == 0 and yaml.safe_load(text)["fp16"] is True
    assert answer(stdin=COMMAND)[1] == answer("-", stdin=COMMAND)[1] == text
    (tmp_path / "train.sh").write_text(CONTINUED)
    output = tmp_path / "recipe.yaml"
    code, said, _ = answer("--output", output, tmp_path / "train.sh")
    assert code == 0 and said.startswith(f"{output}: ") and f"train_mlm.py {output}" in output.read_text()
    assert read_recipe(output)["learning_rate"] == "0.001"
    code, _, error = answer(f"{COMMAND} --seed 7", "--output", output)
    assert code == 2 and error == f"error: output: {output} is there already; give another name, or delete it\n"
    assert "seed: 7" not in output.read_text()


def test_nothing_is_written_for_a_command_that_is_refused(answer, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00\x80")
    assert answer("--output", tmp_path / "recipe.yaml", f"{COMMAND} --colour red")[0] == 2
    assert "is not text; give a text or a YAML file" in answer(tmp_path / "model.bin")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


UNKNOWN = "unknown to the original's run_pretraining.py"
LAUNCHED = "run_pretraining.py --output_dir o"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{COMMAND} --train_batchsize 4096", f"train_batchsize: {UNKNOWN} (command); did you mean train_batch_size?"),
        (f"{COMMAND} --learning_rate 1", f"learning_rate: {UNKNOWN} (command); did you mean lr?"),
        (f"{COMMAND} --colour red", f"colour: {UNKNOWN} (command); docs/migrating.md lists all 89"),
        (f"{COMMAND} --lr fast", "lr: 'fast' is not a number; write --lr 0.011"),
        (f"{COMMAND} --lr nan", "lr: 'nan' is not a number; write --lr 0.011"),
        (f"{COMMAND} --lr --seed 3", "lr: expected one argument; docs/migrating.md"),
        (f"{COMMAND} --output_dir ~/out", "output_dir: '~/out' is for the shell to fill in; write what it stands"),
        (["--lr", "3"], "output_dir: missing"),
        (f"{COMMAND} --seed 4.5", "seed: '4.5' is not a whole number; write --seed 42"),
        (f"{COMMAND} --fp16 perhaps", "fp16: 'perhaps' is not true or false; write --fp16 or leave it out"),
        (f"{COMMAND} --curve cosine", "curve: invalid choice: 'cosine' (choose from 'linear', 'exp'); docs/migrat"),
        (f"{COMMAND} --seed 3 4", "command: '4' belongs to no flag; quote a value with spaces, or take it out"),
        (f"{COMMAND} --dataset_path $DATA", "dataset_path: '$DATA' is for the shell to fill in; write what it stand"),
        (f"{COMMAND} --job_name 'x", "command: cannot be split into words (no closing quotation); close the quotes"),
        (f"{COMMAND} --seed 3 2>&1", "command: '2>&1' belongs to no flag; quote a value with spaces, or take it out"),
        (f"export A=1\n{COMMAND}", "command: 'export A=1 deepspeed --num_gpus 8' before the script is not read"),
        (f"deepspeed --num_gpus two {LAUNCHED}", "command: 'deepspeed --num_gpus two' before the script is not read"),
        (f"mpirun {LAUNCHED}", "command: 'mpirun' before the script is not read, but for a known launcher"),
        ("deepspeed run_pretraining.py --lr 1", "output_dir: missing, and the original needed it too; add"),
        ("python run_glue.py --lr 1", "command: 'python' begins none of run_pretraining.py; docs/migrating.md"),
        (f"{COMMAND}\n{COMMAND}", "command: there are 2 of run_pretraining.py in this text; give one at a time"),
        (" \n ", "command: empty; give deepspeed run_pretraining.py --flag value ..."),
        (["--num_processes", "none", COMMAND], "command line: argument --num_processes: 'none' is not a whole number"),
        (["--output_dir=o --lr 1e-3 --colour red"], "colour: unknown"),
        (["--num_processes", "4", f"srun foo {LAUNCHED}"], "command: 'srun foo' before the script is not read"),
        (["gone.txt"], "command: no file 'gone.txt' can be read; give one, or a whole command"),
        (["--combination", "2", COMMAND], "combination: 2 belongs to a sweep file; leave it out with a command"),
    ],
)
def test_what_is_refused(answer, command, message):
    code, out, error = answer(*([command] if isinstance(command, str) else command))
    assert code == 2 and not out and error.startswith(f"error: {message}") and error.count("\n") == 1


# ---- sweeps ----


def test_a_sweep_is_one_of_its_combinations(answer, tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    found = []
    for number in (1, 2, 3, 4):
        code, text, _ = answer(tmp_path / "sweep.yaml", "--combination", number)
        recipe = yaml.safe_load(text)
        assert code == 0 and recipe["fp16"] is False and recipe["validation_epochs"] == 10
        assert f"combination {number} of 4 of lr, train_batch_size; sweep.py runs them all" in text
        assert "fp16: false means false" in text
        assert recipe["output_dir"] == f"out/bert_large_experiment-{number}"
        found.append((recipe["learning_rate"], recipe["gradient_accumulation_steps"]))
    assert "combination: 5 is not one of the 4 of this sweep" in answer("--combination", 5, stdin=SWEEP)[2]
    assert found == [(1e-3, 16), (1e-3, 32), (2e-3, 16), (2e-3, 32)]  # the original's order, 8 processes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hyperparameters:\n  lr: 1e-3\n", "lr: '1e-3' is not a list of values; write lr: [first, second]"),
        ("hyperparameters:\n  lr: []\n", "lr: [] is not a list of values; write"),
        ("hyperparameters:\n  lr: [1e-3, fast]\n", "lr: 'fast' is not a number; write --lr 0.011"),
        ("hyperparameters:\n  lerning: [1]\n", "lerning: unknown to the original's run_pretraining.py (sweep file)"),
        ("default_parameters:\n  lr: [1]\n", "lr: ['1'] is not one value; write a number or a word"),
        ("default_parameters: 3\n", "default_parameters: is not a mapping; write one `flag: value` per line"),
        ("default_parameters:\nparameters:\n", "parameters: not a section of a sweep file; it has hyperparameters"),
        ("default_parameters:\n  - [\n", "sweep file: is not YAML"),
        ("hyperparameters:\n  lr: [1]\ndefault_parameters:\n  lr: 2\n", "lr: stands in hyperparameters and in def"),
    ],
)
def test_sweeps_that_are_none(answer, text, message):
    code, _, error = answer(stdin=text)
    assert code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1
