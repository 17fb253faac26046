"""The original's 89 flags become keys of a recipe, or are answered: one by one, and those that hang together."""

import random
import re
import shlex
from dataclasses import fields

import pytest

from budget_trainer.budget.curves import make_curve
from budget_trainer.config.arguments import GROUPS as OURS
from budget_trainer.config.arguments import KEYS, REPLACED
from budget_trainer.config.parser import read_recipe
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.migrate import main
from budget_trainer.migrate.flags import FLAGS, ORIGINAL_GROUPS
from budget_trainer.migrate.reading import read_command
from budget_trainer.migrate.recipe import DEFAULTS, convert, recipe_text
from data_prep import blocks, hdf5, merge, split
from tests.conftest import ROOT

COUNTS = (14, 6, 16, 4, 8, 35, 6)  # flags of each group of the original's dataclasses
HEAD = "deepspeed --num_gpus 2 run_pretraining.py --output_dir out --dataset_path shards "
DOCS = (ROOT / "docs" / "migrating.md").read_text()


def drafted(flags, head=HEAD):
    return convert(read_command(head + flags))


def values(flags, head=HEAD):
    """The lines of the recipe, its remarks left out."""
    return {key: value for key, (value, _) in drafted(flags, head).entries.items()}


def taken(draft, folder):
    """What train_mlm.py makes of the recipe's text."""
    (folder / "recipe.yaml").write_text(recipe_text(draft, "recipe.yaml"))
    return parse_recipe([str(folder / "recipe.yaml"), "--use_cpu", "true", "--fp16", "false"])


def test_the_document_is_what_the_table_makes(capsys):
    assert tuple(map(len, ORIGINAL_GROUPS.values())) == COUNTS and len(FLAGS) == sum(COUNTS) == 89
    assert main(["--table"]) == 0
    printed = capsys.readouterr().out
    assert DOCS.endswith(printed) and DOCS.count(printed.splitlines()[0]) == 1
    tables = re.findall(r"^### ([\w -]+?) \((\d+)\)\n\n((?:\|.*\n)+)", DOCS, re.M)
    counts = {name: (int(count), rows.count("\n") - 2) for name, count, rows in tables}
    assert counts == {name: (len(flags), len(flags)) for name, flags in ORIGINAL_GROUPS.items()}
    assert all(f"\n| `{name}` (" in DOCS for name in FLAGS)


def test_the_other_scripts_are_in_the_document_with_flags_that_exist(capsys):
    """Flags of data_prep and train_mlm.py; finetune_glue.py and sweep.py test their own."""
    shown = ""
    for stage in (blocks, hdf5, merge, split):
        with pytest.raises(SystemExit):
            stage.main(["--help"])
        shown += capsys.readouterr().out
    sections = re.findall(r"### (\w+\.py)\n\nHere: (.*)\.\n\n((?:\|.*\n)+)", DOCS)
    assert len(sections) == 7
    for name, here, rows in sections:
        ours = re.findall(r"^\| `[^`]+` \| `(train_mlm\.py )?--(\w+)`", rows, re.M)
        assert ours
        for of_training, flag in ours if "data_prep" in here else ():
            assert flag in KEYS if of_training else f"--{flag} " in shown.replace("]", " "), (name, flag)


def test_the_command_that_the_document_shows(tmp_path):
    (block,) = re.findall(r"```bash\n(.*?)```", DOCS, re.S)
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:4] == ["python", "-m", "budget_trainer.migrate", "--output"]
    assert main(["--output", str(tmp_path / "recipe.yaml"), *words[5:]]) == 0
    assert read_recipe(tmp_path / "recipe.yaml")["fp16"] == "true"


OTHER = {"lr_schedule": "step --max_steps 1000", "max_steps": "1000", "num_warmup_steps": "10 --max_steps 100"}
OTHER |= {"hidden_act": "relu", "finetune_time_markers": "0.5,0.9", "total_training_time": "12", "local_rank": "0"}
OTHER |= {"early_exit_time_marker": "6", "num_epochs_between_checkpoints": "2", "train_batch_size": "4096"}
OTHER |= {"decay_rate": "0.5", "adam_beta1": "0.8", "adam_beta2": "0.95", "gradient_predivide_factor": "2"}


def other_value(flag):
    """Not the default, and behind it the flags under which the original read it."""
    value = not flag.default if flag.kind is bool else "name" if flag.kind is str else (flag.default or 1) * 2
    value = next((choice for choice in flag.choices if choice != flag.default), value)
    return " ".join([OTHER.get(flag.name, str(value)), *(f"--{name} {needed}" for name, needed in flag.read_with)])


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.name)
def test_each_flag_with_another_value(flag, tmp_path):
    """It is in the recipe under a key of ours or answered, and train_mlm.py takes what comes out."""
    assert all(other in FLAGS and FLAGS[other].key is not flag.key for other, _ in flag.read_with)
    assert flag.default is None or isinstance(flag.default, flag.kind)
    draft = drafted(f"--{flag.name} {other_value(flag)}")
    answered = dict(draft.answers)
    if flag.key is None:
        assert answered[flag.name] == flag.text != ""
    else:
        assert flag.key in {f.name for group in OURS for f in fields(group)} - REPLACED.keys()
        assert flag.key in draft.entries and flag.name not in answered
        assert draft.entries[flag.key][0] != DEFAULTS[flag.key]
    recipe = taken(draft, tmp_path)
    assert recipe.total_seconds == (12 if flag.name == "total_training_time" else 24) * 3600
    assert all(f"# - {name}:" in (tmp_path / "recipe.yaml").read_text() for name in answered)


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_dropped_in_silence(seed):
    """Any flags together: each has its line or an answer, or the whole is refused in one line."""
    chance = random.Random(seed)
    flags = [flag for flag in FLAGS.values() if flag.name not in ("output_dir", "dataset_path")]
    line = " ".join(f"--{flag.name} {other_value(flag)}" for flag in flags if chance.random() < 0.25)
    try:
        draft = drafted(line)
    except InputError as refused:
        assert re.match(r"[\w, -]+: .*[;,] ", str(refused)) and "\n" not in str(refused)
        return
    answered = {name for name, _ in draft.answers}
    for name in draft.given.values:
        assert FLAGS[name].key in draft.entries or name in answered, name


def test_flags_that_were_off_or_not_read_are_answered_too():
    draft = drafted("--no_finetune_checkpoint_at_end --no_fused_linear_layer --no_sparse_mask_prediction")
    assert draft.entries["finetune_checkpoint_at_end"][0] is draft.entries["sparse_mask_prediction"][0] is False
    assert "fused_linear_layer" in dict(draft.answers)
    draft = drafted("--validation_epochs 3 --early_stop_time 60 --max_coeff 1 --decay_rate 0.5 --num_warmup_steps 9")
    needed = {"validation_epochs": "do_validation true", "early_stop_time": "use_early_stopping true"}
    needed |= {"max_coeff": "optimizer_type lamb", "decay_rate": "curve exp"}
    needed["num_warmup_steps"] = "lr_schedule constant_step"
    answers = {name: f"the original read it with {other} only; left out" for name, other in needed.items()}
    assert dict(draft.answers) == answers and not answers.keys() & draft.entries.keys()


def test_the_defaults_of_the_original_are_written_out_where_ours_differ():
    """24 hours, and not twice; the rest is our default, or is marked as meaning the same."""
    written = values("")
    unequal = {"learning_rate", "adam_beta2", "gradient_accumulation_steps", "total_training_time", "hidden_act"}
    unequal |= {"type_vocab_size", "max_predictions_per_seq", "logging_steps", "dataloader_num_workers", "run_name"}
    assert written.keys() == unequal | {"model_type", "unigram_bias", "data_dir", "output_dir"}
    expected = {"learning_rate": 0.011, "total_training_time": "24h", "gradient_accumulation_steps": 1024}
    assert {key: written[key] for key in expected} == expected and written["data_dir"] == "shards-blocks"
    silent = [flag for flag in FLAGS.values() if flag.key and not flag.read_with and not flag.same]
    assert all(DEFAULTS[flag.key] == flag.default for flag in silent if flag.key not in written)


def test_values():
    for flags, expected in (
        ("--total_training_time 1.5", {"total_training_time": "1h30m"}),
        ("--early_exit_time_marker 12", {"total_training_time": "24h", "early_exit_time_marker": "12h"}),
        ("--do_validation --use_early_stopping", {"early_stop_time": "12h", "early_stop_eval_loss": 2.1}),
        ("--fp16 false", {"fp16": False}),
        ("--fp16=True", {"fp16": True}),
        ("--finetune_time_markers 0.5,0.9,1.0", {"finetune_time_markers": "0.5,0.9"}),
        ("--current_run_id 7", {"output_dir": "out/pretraining_experiment-7", "run_name": "pretraining_experiment-7"}),
        ("--optimizer_type LAMB --adam_beta2 0.98", {"adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_coeff": 0.3}),
        ("--lr 1e-3 --lr 2e-3", {"learning_rate": 2e-3}),
    ):
        found = values(flags)
        assert {key: found.get(key) for key in expected} == expected


def test_the_global_batch_is_the_originals():
    for head, flags, micro, steps in (
        ("deepspeed run_pretraining.py", "", 32, 256),  # 8 GPUs are assumed
        ("deepspeed --num_gpus=4 run_pretraining.py", "", 32, 512),
        ("accelerate launch --num_processes 4 run_pretraining.py", "--train_batch_size 4096", 32, 32),
        ("torchrun --nproc-per-node=2 run_pretraining.py", "--train_batch_size 4096", 32, 64),
        ("python -u run_pretraining.py", "--train_micro_batch_size_per_gpu 64", 64, 1024),
        ("python3 -m torch.distributed.launch --nproc_per_node 8 run_pretraining.py", "", 32, 256),
    ):
        found = values(f"{flags} --output_dir out", f"{head} ")
        assert found.get("per_device_train_batch_size", 32) == micro, head
        assert found["gradient_accumulation_steps"] == steps, head


CONSTANT = "--lr_schedule constant_step --max_steps 9000"


@pytest.mark.parametrize(
    ("flags", "multiplier"),
    [  # (B4) theirs: rate ** ((position - warmup) / step) in hours or steps
        ("--curve exp", lambda share: 0.99 ** (24 * (share - 0.06) / 1000)),
        ("--curve exp --decay_rate 0.5 --decay_step 6", lambda share: 0.5 ** (24 * (share - 0.06) / 6)),
        ("--curve exp --lr_schedule step --max_steps 9000", lambda share: 0.99 ** (9000 * (share - 0.06) / 1000)),
        (f"--curve exp {CONSTANT} --num_warmup_steps 900", lambda share: 0.99 ** (9000 * (share - 0.1) / 1000)),
    ],
)
def test_the_exponential_curve_is_the_originals_behind_the_warmup(flags, multiplier, tmp_path):
    schedule = taken(drafted(flags), tmp_path).schedule
    curve = make_curve(schedule["curve"], schedule["warmup_proportion"], **schedule["curve_options"])
    for share in (0.1, 0.5, 0.9, 1.0):
        assert curve(share) == pytest.approx(multiplier(share), rel=1e-6)


def test_defects_of_the_original_are_named_where_they_apply():
    for flags, *defects in (
        ("", "B5", "B12", "B13", "B16", "B17", "B24"),
        ("--total_training_time 0.5", "B3"),
        ("--curve exp", "B4"),
        ("--total_training_time 48", "B6"),
        ("--data_loader_type dist", "B8"),
        ("--do_validation", "B11"),
        ("--add_nsp", "B7"),
        ("--max_steps 9", "B5"),
    ):
        assert all(any(f"({defect}" in line for line in drafted(flags).differences) for defect in defects), flags
    lines = " ".join(drafted("--do_validation --num_epochs_between_checkpoints 3").differences)
    assert not re.search(r"\(B(3|4|6|7|8|12|13)\b", lines)
    assert "eurobert, another network than theirs" in " ".join(drafted("--layer_norm_type rms_norm").differences)
    assert "needs apex" in drafted("--layer_norm_type apex").entries["layer_norm_type"][1]


def test_layouts_of_the_original_are_native_models(tmp_path):
    for flags, native in (
        ("--layer_norm_type apex", "megatron-bert"),
        ("--encoder_ln_mode post-ln --layernorm_embedding false", "bert"),
        ("--add_nsp --encoder_ln_mode post-ln --layernorm_embedding", "bert"),
        ("--layernorm_embedding", "roberta-prelayernorm"),
        ("--layer_norm_type rms_norm --hidden_dropout_prob 0.2 --type_vocab_size 2", "eurobert"),
    ):
        assert taken(drafted(flags), tmp_path).model_type == native


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr_schedule step", "max_steps: missing, and lr_schedule step needs it; add --max_steps"),
        ("--lr_schedule constant_step --max_steps 1000", "num_warmup_steps: 1000 is not below max_steps 1000; low"),
        ("--max_steps 0", "max_steps: 0 is below 1; give a whole number from 1 on"),
        ("--train_batch_size 100", "train_batch_size: 100 is not 32 (train_micro_batch_size_per_gpu) x 2 processes"),
        ("--train_micro_batch_size_per_gpu 0", "per_device_train_batch_size: 0 is out of range; give"),
        ("--train_batch_size 0", "gradient_accumulation_steps: 0 is out of range; give"),
        ("--total_training_time 0", "total_training_time: '0s' is not above zero; write it as"),
        ("--curve exp --decay_step 0", "decay_rate: 0.99 every 0 hours over 22.56 cannot decay; give positive"),
        ("--encoder_ln_mode post-ln --layer_norm_type rms_norm", "a native class of this layout, there is none; use"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(flags, message):
    with pytest.raises(InputError) as refused:
        drafted(flags)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["/data/my shards", "ends with: a colon", "#hash", "é", '"quoted"', "null-blocks"])
def test_any_text_comes_back_as_it_was(path, tmp_path):
    draft = convert(read_command(shlex.join(["run_pretraining.py", "--dataset_path", path, "--output_dir", path])))
    (tmp_path / "recipe.yaml").write_text(recipe_text(draft, "recipe.yaml"))
    assert read_recipe(tmp_path / "recipe.yaml")["output_dir"] == path


def test_the_data_command_is_one_of_data_prep(tmp_path):
    for flags, tokenizer in (
        ("", "google-bert/bert-large-uncased"),
        ("--tokenizer_name bert-base-cased", "google-bert/bert-base-cased"),
        ("--tokenizer_name my/own", "my/own"),
        ("--model_type bert-mlm-roberta", "FacebookAI/roberta-base"),
    ):
        words = drafted(flags).data_command().split()
        assert words[:5] == ["python", "-m", "data_prep.hdf5", "--input", "shards"]
        assert words[6] == tokenizer and words[7:9] == ["--num_shards", "256"]
    for name in ("train_shard_0", "train_shard_1", "train_shard_2", "test_shard_0"):
        (tmp_path / f"{name}.hdf5").touch()  # as many as there are: an "epoch" is one of them
    draft = drafted("", f"deepspeed run_pretraining.py --output_dir o --dataset_path {tmp_path} ")
    assert "--num_shards 3" in draft.data_command()
