"""Each mistake gets one line with the field, the value and the fix, a non-zero exit, and loses nothing."""

import json
import shutil

import pytest

import train_mlm
from budget_trainer.clock import BudgetClock
from budget_trainer.errors import InputError
from budget_trainer.setup import check_launch
from tests.conftest import TINY, words


@pytest.fixture
def refuse(capfd, tmp_path, data_dir, monkeypatch):
    """Run train_mlm with changed flags (None leaves a flag out); returns its one line of error."""

    def call(changes, output_dir=tmp_path / "out"):
        monkeypatch.setattr(train_mlm, "CLOCK", BudgetClock())
        before = sorted(path for path in tmp_path.rglob("*"))
        options = {**TINY, "data_dir": data_dir, "output_dir": output_dir, "total_training_time": "30s", **changes}
        code = train_mlm.main(words({key: value for key, value in options.items() if value is not None}))
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1, (code, lines)
        assert sorted(path for path in tmp_path.rglob("*")) == before
        return lines[0].removeprefix("error: ")

    return call


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"total_training_tim": "30s"},
            "total_training_tim: unknown key (command line); did you mean total_training_time?",
        ),
        ({"total_training_time": "-5m"}, "total_training_time: '-5m' is not a duration; write it as"),
        ({"total_training_time": "soon"}, "total_training_time: 'soon' is not a duration; write it as"),
        ({"total_training_time": None}, "total_training_time: missing, and lr_schedule time needs it"),
        ({"checkpoint_every": "30"}, "checkpoint_every: '30' has no unit; write it as"),
        ({"warmup_proportion": "1.5"}, "warmup_proportion: 1.5 is beyond the budget; give a share"),
        ({"early_exit_time_marker": "1h"}, "early_exit_time_marker: 1h is beyond total_training_time 30s; lower it"),
        ({"finetune_time_markers": "0.5,1.5"}, "finetune_time_markers: '1.5' is not a share of the budget; write it"),
        ({"curve": "tanh"}, "curve: 'tanh' is unknown; choose one of"),
        ({"decay_rate": "0.5"}, "decay_rate: 0.5 belongs to curve exp, not linear; leave one out"),
        ({"lr_schedule": "epochs"}, "lr_schedule: 'epochs' is unknown; choose"),
        ({"lr_schedule": "step"}, "max_steps: missing, and lr_schedule step needs it; add"),
        (
            {"lr_schedule": "constant_step", "max_steps": 10},
            "num_warmup_steps: 1000 is not below max_steps 10; lower it",
        ),
        (
            {"num_train_epochs": "3"},
            "num_train_epochs: not used here (command line); use total_training_time or max_steps",
        ),
        ({"learning_rate": "fast"}, "command line: argument --learning_rate"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"optimizer_type": "lamb"}, "optimizer"),
        ({"model_config": '{"colour": 1}'}, "colour"),
        ({"model_config": "colour"}, "model_config: 'colour' is not a JSON object; write"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"mlm_probability": 1.5}, "mlm_probability"),
        ({"max_position_embeddings": 32}, "max_position_embeddings: 32 is below the longest block"),
        ({"per_device_train_batch_size": 1000000}, "fewer than one batch of 1000000; lower"),
        ({"data_dir": None}, "data_dir: missing; add --data_dir"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"output_dir": None}, "output_dir"),
        ({"report_to": "nonesuch"}, "report_to: 'nonesuch' cannot be used"),
        ({"report_to": "wandb"}, "report_to: 'wandb' cannot be used"),
    ],
)
def test_flags(refuse, changes, expected):
    assert expected in refuse(changes)


def test_recipe_file(refuse, tmp_path, data_dir, capfd, monkeypatch):
    recipe = tmp_path / "recipe.yaml"

    def main(text):
        recipe.write_text(text)
        assert train_mlm.main([str(recipe)]) == 2
        return capfd.readouterr().err

    assert "hiden_size: unknown key" in main("hiden_size: 3\n") and "did you mean hidden_size?" in main(
        "hiden_size: 3\n"
    )
    assert "is not a mapping" in main("- 3\n")
    assert "is not YAML" in main("a: [\n")
    assert train_mlm.main([str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capfd.readouterr().err


def test_data_folder(refuse, data_dir, tmp_path):
    copy = tmp_path / "copy"

    def damaged(change):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(data_dir, copy)
        change()
        return refuse({"data_dir": copy})

    shard = next(data_dir.glob("train-*.arrow")).name
    assert shard in damaged(lambda: (copy / shard).unlink())
    assert shard in damaged(lambda: (copy / shard).write_bytes((data_dir / shard).read_bytes()[:-100]))
    assert "tokenizer" in damaged(lambda: (copy / "tokenizer" / "tokenizer.json").write_text("{}"))
    assert "manifest.json" in damaged(lambda: (copy / "manifest.json").unlink())


def test_output_folder(refuse, tmp_path):
    output_dir = tmp_path / "out"
    (output_dir / "final").mkdir(parents=True)
    assert "already has final/; give another folder" in refuse({})
    (output_dir / "final").rmdir()
    (output_dir / "progress.jsonl").write_text("{}\n")
    assert "holds another run (progress.jsonl); add --resume_from_checkpoint auto" in refuse({})
    (output_dir / "progress.jsonl").unlink()
    incomplete = output_dir / "checkpoint-7"
    incomplete.mkdir()
    (incomplete / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": {"bytes": 3}}}))
    assert "is not a complete checkpoint" in refuse({"resume_from_checkpoint": incomplete})


def test_world_size_that_was_not_asked_for(monkeypatch):
    """A launcher that started two processes which do not know of each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE: the launcher started 2 processes, but 1 train together; launch"):
        check_launch(1)
    check_launch(2)
