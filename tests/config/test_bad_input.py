"""Each mistake gets one line with the field, the value and the fix, a non-zero exit, and loses nothing."""

import json
import math
import shutil
import sys
from dataclasses import fields

import pytest
from transformers import AutoTokenizer

from budget_trainer import train_mlm
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.config.arguments import PARSER, ModelArguments
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.glue.arguments import PARSER as GLUE_PARSER
from budget_trainer.training.launch import check_launch
from tests.conftest import TINY, run, words
from tests.model.models import tiny

DROPOUTS = {"hidden_dropout_prob", "attention_probs_dropout_prob"}


@pytest.fixture
def refuse(capfd, tmp_path, data_dir, monkeypatch):
    """Run train_mlm with changed flags (None leaves a flag out); returns its one line of error."""

    def call(changes, output_dir=tmp_path / "out"):
        monkeypatch.setattr(train_mlm, "CLOCK", BudgetClock())
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(output_dir / "tensorboard"))  # or train_mlm sets it for good
        before = set(tmp_path.rglob("*"))
        options = {**TINY, "data_dir": data_dir, "output_dir": output_dir, "total_training_time": "30s", **changes}
        code = train_mlm.main(words({key: value for key, value in options.items() if value is not None}))
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1, (code, lines)
        assert set(tmp_path.rglob("*")) - before <= {tmp_path / "out"}, "at most an empty folder is new"
        return lines[0].removeprefix("error: ")

    return call


OWN = dict.fromkeys(TINY.keys() & {f.name for f in fields(ModelArguments)} - DROPOUTS)  # None leaves the flag out
LOADED = {**OWN, "model_name_or_path": "/nowhere"}
LAYOUT = {"encoder_ln_mode": "pre-ln", "layernorm_embedding": "true", "layer_norm_type": "rms_norm"}
ON_CPU = {"use_cpu": "true"}
POST_LN = {"model_type": "bert-mlm", "encoder_ln_mode": "post-ln", "layernorm_embedding": "false"}
REFUSED = [
    ({"total_training_time": None}, "total_training_time: missing, and lr_schedule time needs it"),
    ({"total_training_time": "0.2s"}, "total_training_time: 0.2s is spent before the first step (set-up and the"),
    (
        {"total_training_time": None, "deadline": "2100-12-24T08:00"},
        "deadline: '2100-12-24T08:00' has no time zone; write it as",
    ),
    ({"deadline": "tomorrow"}, "deadline: 'tomorrow' is not a moment in ISO 8601; write it as"),
    ({"deadline": "2020-12-24T08:00Z"}, "deadline: 2020-12-24T08:00Z is over, it was "),
    (
        {"deadline": "2020-12-24T08:00Z", "resume_from_checkpoint": "auto"},
        "deadline: 2020-12-24T08:00Z is over, it was ",
    ),
    (
        {"deadline": "2100-12-24T08:00Z", "plan": "p.json"},
        "plan: made for a duration, and deadline 2100-12-24T08:00Z is none; leave plan out",
    ),
    ({"job_time_limit": "0.2s"}, "job_time_limit: 0.2s is spent before the first step (set-up and a checkpoint"),
    ({"early_exit_time_marker": "1h"}, "early_exit_time_marker: 1h is beyond total_training_time 30s; lower it"),
    ({"finetune_time_markers": "0.5,1.5"}, "finetune_time_markers: '1.5' is not a share of the budget; write it"),
    ({"mlm_probability_curve": "0.3@0", "mlm_probability": 0.2}, "mlm_probability: 0.2 beside mlm_probability_curve"),
    ({"batch_size_curve": "0.5@0"}, "batch_size_curve: 0.5 of gradient_accumulation_steps 1 is 0.5 micro-batches"),
    ({"sequence_length_curve": "0.0625@0"}, "sequence_length_curve: 0.0625 of a block of 64 tokens is no"),
    ({**ON_CPU, "fp16": "true"}, "fp16: True needs a GPU; use --bf16 true, which a CPU can, or neither"),
    ({"decay_rate": "0.5"}, "decay_rate: 0.5 belongs to curve exp, not linear; leave one out"),
    ({"lr_schedule": "step"}, "max_steps: missing, and lr_schedule step needs it; add"),
    ({"lr_schedule": "constant_step", "max_steps": 10}, "num_warmup_steps: 1000 is not below max_steps 10; lower it"),
    ({"save_only_model": "true"}, "save_only_model: not used here (command line); a checkpoint is for going on"),
    ({"final_weight_rms": 0}, "final_weight_rms: 0 is out of range; give a number above 0"),
    (
        {"final_weight_rms": 0.02, "model_type": "bert"},
        "final_weight_rms: model_type bert cannot have its scales moved",
    ),
    ({"detection_weight": -1}, "detection_weight: -1"),
    (
        {"detection_weight": 20},
        "detection_weight: 20.0, but twin_probability 0 leaves no block in which tokens are replaced",
    ),
    (
        {"detection_weight": 20, "sparse_mask_prediction": "false"},
        "detection_weight: 20.0 needs sparse_mask_prediction, which",
    ),
    ({"detection_weight": 20, "model_type": "bert", "add_nsp": "true"}, "detection_weight: 20.0 beside next-sentence"),
    (
        {"detection_weight": 20, "twin_probability": 0.3, "model_type": "distilbert"},
        "detection_weight: 20.0 needs sparse_mask_prediction and one of",
    ),
    ({"offset_heads": "left"}, "offset_heads: 'left' are not relative positions; write"),
    ({"offset_heads": "-1,1"}, "offset_heads: 'modernbert' without rotary positions and attention biases"),
    ({"model_name_or_path": "/nowhere"}, "beside model_name_or_path /nowhere, which brings its own; leave"),
    (LOADED, "model_name_or_path: /nowhere is no folder and cannot be fetched from the Hub ("),
    *(({**LOADED, flag: LAYOUT[flag]}, f"{flag}: cannot be set beside model_name_or_path") for flag in LAYOUT),
    ({"model_type": "gpt2"}, "model_type='gpt2' has no masked-language-model head; use one of bert-mlm, "),
    ({"encoder_ln_mode": "post-ln"}, "encoder_ln_mode post-ln: contradicts model_type modernbert (pre-ln, a norm"),
    (POST_LN, "encoder_ln_mode post-ln, layernorm_embedding false: model_type bert-mlm would need a native class of"),
    ({**ON_CPU, "layer_norm_type": "apex"}, "layer_norm_type: apex runs on NVIDIA GPUs, this run is on 'cpu'; use"),
    ({"add_nsp": "true"}, "add_nsp: model_type modernbert has no next-sentence head here; use model_type bert or"),
    ({"model_type": "bert-mlm-nsp", "add_nsp": "false"}, "add_nsp: false contradicts model_type bert-mlm-nsp; use"),
    ({"model_type": "bert", "add_nsp": "true"}, "without sentence pairs; make the folder anew"),
    ({"model_type": "bert", "add_nsp": "true", "twin_probability": 0.2}, "twin_probability: 0.2 beside next-sentence"),
    ({"twin_probability": 0.2, "sequence_length_curve": "1@0,0.125@0.5"}, "twin_probability: 0.2 needs blocks of 16"),
    ({**ON_CPU, "optimizer_impl": "apex"}, "optimizer_impl: apex runs on NVIDIA GPUs, this run is on 'cpu'; use"),
    ({"max_coeff": "0.5"}, "max_coeff: 0.5 belongs to optimizer_type lamb, not adamw; leave it out"),
    ({"softmax_samples": 100}, "softmax_samples: 100 belongs to cross_entropy sampled, not chunked; leave one out"),
    (
        {"cross_entropy": "sampled"},
        "softmax_samples: 2048 must be from 1 to below the vocabulary, which has 500 tokens; lower",
    ),
    (
        {"cross_entropy": "sampled", "sparse_mask_prediction": "false"},
        "sampled needs sparse_mask_prediction, which is false",
    ),
    ({"model_config": '{"colour": 1}'}, "colour"),
    ({"model_config": "colour"}, "model_config: 'colour' is not a JSON object; write"),
    ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=32; change one of them"),
    ({"max_position_embeddings": 32}, "max_position_embeddings: 32 is below the longest block"),
    ({"model_config": '{"max_position_embeddings": 32}'}, "max_position_embeddings: this modernbert takes 32"),
    ({"per_device_train_batch_size": 1000000}, "fewer than one batch of 1000000; lower"),
    ({"data_dir": None}, "data_dir: missing; add --data_dir"),
    ({"data_dir": "/nowhere"}, "/nowhere"),
    ({"output_dir": None}, "output_dir"),
    (
        {"deepspeed": "/nowhere.json"},
        "deepspeed: /nowhere.json cannot be read as JSON (No such file or directory); give",
    ),
    ({"fsdp_config": '{"a":'}, 'fsdp_config: {"a": cannot be read as JSON (Expecting value'),
    ({"accelerator_config": "/dev/null"}, "accelerator_config: /dev/null cannot be read as JSON (Expecting value"),
    ({"report_to": "nonesuch"}, "report_to: 'nonesuch' cannot be used"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED)
def test_flags(refuse, changes, expected):
    assert expected in refuse(changes)


@pytest.mark.parametrize(
    ("package", "changes", "told", "extra"),
    [
        ("wandb", {"report_to": "wandb"}, "report_to: 'wandb' cannot be used (", "trackers"),
        ("trackio", {"report_to": "trackio"}, "report_to: 'trackio' cannot be used (", "trackers"),
        ("codecarbon", {"country_iso_code": "DEU"}, "country_iso_code: codecarbon is not installed; ", "energy"),
        ("deepspeed", {"deepspeed": '{"zero_optimization": {}}'}, "deepspeed: not installed; ", "deepspeed"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(refuse, monkeypatch, package, changes, told, extra):
    monkeypatch.setitem(sys.modules, package, None)  # find_spec and import see none
    line = refuse(changes)
    assert line.startswith(told) and f"pip install 'budget-trainer[{extra}]'" in line


def test_data_of_another_tokenizer_than_the_models(refuse, data_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizer")
    tiny("bert", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    text = (tmp_path / "theirs" / "tokenizer.json").read_text()
    (tmp_path / "theirs" / "tokenizer.json").write_text(text.replace('"##s"', '"##x-x"'))
    told = refuse({**LOADED, "model_name_or_path": tmp_path / "theirs"})
    assert (
        "has another tokenizer than the data folder (token " in told and "'##x-x' in the model's and '##s' in" in told
    )


RANGES = {
    **{
        "warmup_proportion": "1 1.5 -0.1",
        "twin_probability": "1.2 -1",
        "mlm_probability": "0 1.5",
        "adam_beta2": "1.0 nan",
    },
    **{
        "muon_weight_decay": "-1",
        "softmax_samples": "0 1.5",
        "logging_steps": "0.1",
        "gradient_accumulation_steps": "0 1.5",
        "loss_spike": "0",
        "price_per_hour": "-1 dear inf nan",
    },
    **{"num_epochs_between_checkpoints": "0 -2", "num_warmup_steps": "-5", "learning_rate": "fast -1 inf"},
    **{"roll_back_lr_factor": "0 2", "max_roll_backs": "-1", "max_bad_steps": "0", "scale_cnt_limit": "0"},
    **dict.fromkeys(("curve", "cross_entropy", "lr_schedule", "embedding_init", "layer_norm_type"), "tanh"),
    **dict.fromkeys(("optimizer_type", "optimizer_impl", "logging_strategy", "decay_shape", "encoder_ln_mode"), "sgd"),
}


@pytest.mark.parametrize(("flag", "values"), RANGES.items())
def test_values_out_of_their_range(flag, values):
    """Said by the flag's own field, in one form, also where the flag would not count."""
    for value in values.split():
        with pytest.raises(InputError, match=rf"^{flag}: .*; (give|choose) "):
            parse_recipe(["--data_dir", "d", "--output_dir", "o", "--total_training_time", "1h", f"--{flag}", value])


def test_no_number_is_infinite_where_a_flag_has_a_range():
    """Of either script, but for the one that says what it means."""
    bounds = ("min", "max", "above", "below")
    for parser in (PARSER, GLUE_PARSER):
        bounded = [f for f in parser.flags.values() if any(getattr(f, bound) is not None for bound in bounds)]
        assert {"price_per_hour", "learning_rate"} <= {known.name for known in bounded}
        for known in (known for known in bounded if known.kind == "float"):
            for text in ("nan", "-inf", *(() if math.inf in known.special else ("inf", "1e999"))):
                with pytest.raises(InputError, match=rf"^{known.name}: .* is out of range; give a number "):
                    known.convert([text])
    assert PARSER.flags["max_coeff"].convert(["inf"]) == math.inf


@pytest.mark.parametrize(
    ("text", "expected"), [("- 3\n", "is not a mapping"), ("a: [\n", "is not YAML"), (None, "cannot be read")]
)
def test_recipe_file(tmp_path, text, expected):
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    with pytest.raises(InputError, match=expected):
        parse_recipe([str(recipe)])


def test_data_folder(refuse, data_dir, tmp_path):
    copy = tmp_path / "copy"

    def damaged(name, content):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(data_dir, copy)
        (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
        return refuse({"data_dir": copy})

    shard, manifest = next(data_dir.glob("train-*.arrow")), json.loads((data_dir / "manifest.json").read_text())
    assert shard.name in damaged(shard.name, None) and shard.name in damaged(shard.name, shard.read_bytes()[:-100])
    assert "tokenizer" in damaged("tokenizer/tokenizer.json", b"{}")
    assert "manifest.json" in damaged("manifest.json", None)
    pairs = json.dumps({**manifest, "packing": "nsp"}).encode()
    assert "sentence pairs (packing 'nsp'), which only next-sentence" in damaged("manifest.json", pairs)


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


def test_a_deadline_is_the_budget_that_it_leaves(tmp_path):
    """What passes between two jobs is lost; beside a duration the earlier counts."""
    flags = {"data_dir": tmp_path, "output_dir": tmp_path / "out", "deadline": "2100-12-24T08:00Z"}
    alone = parse_recipe(words({**flags, "early_exit_time_marker": "900000h"}))
    both = parse_recipe(words({**flags, "total_training_time": "1h"}))
    assert alone.end_field == "deadline" and alone.total_seconds > both.total_seconds == 3600
    assert both.end_field == "total_training_time" and both.total_before_deadline(3000.0, 500.0) == 3500
    assert both.total_before_deadline(3000.0, 9000.0) == 3600 and alone.total_before_deadline(3000.0, 9000.0) == 12000
    assert alone.with_total(12000.0).end_seconds == 12000 and alone.total_seconds > 12000, "the recipe stays as it was"
    for recipe in (alone, both):
        with pytest.raises(InputError, match=r"^deadline: 2100-12-24T08:00Z is over, it was 1m1s ago; give"):
            recipe.total_before_deadline(3000.0, -61.0)


def test_world_size_that_was_not_asked_for(monkeypatch):
    """A launcher that started two processes which do not know of each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE: the launcher started 2 processes, but 1 train together; launch"):
        check_launch(1)
    check_launch(2)


def test_a_launcher_that_started_one_process_of_two(data_dir, tmp_path):
    options = {**TINY, "data_dir": data_dir, "output_dir": tmp_path / "out", "total_training_time": "30s"}
    head = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    done = run([*head, "--num_processes", "2", "train_mlm.py", *words(options)])
    assert done.returncode != 0 and "error: num_processes: the launcher was asked for several" in done.stderr
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_recipe_as_people_write_it(tmp_path):
    """A null names nothing: an ablation that replaces a rate by its curve unsets the rate. A bare number is hours."""
    (tmp_path / "recipe.yaml").write_text("mlm_probability: null\nmlm_probability_curve: 0.3@0,0.15@0.6\n")
    flags = {"data_dir": tmp_path, "output_dir": tmp_path / "out", "total-training-time": 24, "use_cpu": True}
    recipe = parse_recipe([str(tmp_path / "recipe.yaml"), *words(flags)])
    assert recipe.budget.mlm_probability_curve == "0.3@0,0.15@0.6" and "mlm_probability" not in recipe.explicit
    assert recipe.total_seconds == 24 * 3600
