"""The command that the original published, as it stands there, becomes a recipe that trains."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from budget_trainer.config.parser import read_recipe
from budget_trainer.data.folder import DataFolder
from budget_trainer.migrate import main
from budget_trainer.migrate.reading import read_command
from budget_trainer.migrate.recipe import convert
from data_prep import hdf5
from tests.conftest import ROOT, launcher, losses, progress, read_documents, report, run, words

PUBLISHED = r"""
deepspeed run_pretraining.py --model_type bert-mlm --tokenizer_name bert-large-uncased --hidden_act gelu \
  --hidden_size 1024 --num_hidden_layers 24 --num_attention_heads 16 --intermediate_size 4096 \
  --hidden_dropout_prob 0.1 --attention_probs_dropout_prob 0.1 --encoder_ln_mode pre-ln --lr 1e-3 \
  --train_batch_size 4096 --train_micro_batch_size_per_gpu 32 --lr_schedule time --curve linear \
  --warmup_proportion 0.06 --gradient_clipping 0.0 --optimizer_type adamw --weight_decay 0.01 \
  --adam_beta1 0.9 --adam_beta2 0.98 --adam_eps 1e-6 --total_training_time 24.0 --early_exit_time_marker 24.0 \
  --dataset_path <dataset path> --output_dir /tmp/training-out --print_steps 100 \
  --num_epochs_between_checkpoints 10000 --job_name pretraining_experiment \
  --project_name budget-bert-pretraining --validation_epochs 3 --validation_epochs_begin 1 \
  --validation_epochs_end 1 --validation_begin_proportion 0.05 --validation_end_proportion 0.01 \
  --validation_micro_batch 16 --deepspeed --data_loader_type dist --do_validation --use_early_stopping \
  --early_stop_time 180 --early_stop_eval_loss 6 --seed 42 --fp16
"""
# What recipes/izsak2021.yaml does not say, or says of another thing than the published command.
OWN = """encoder_ln_mode=pre-ln data_dir=data/blocks total_training_time=24h early_exit_time_marker=24h logging_steps=100
num_epochs_between_checkpoints=10000 validation_epochs=3 validation_epochs_begin=1 validation_epochs_end=1
validation_begin_proportion=0.05 validation_end_proportion=0.01 early_stop_time=3h early_stop_eval_loss=6.0
output_dir=/tmp/training-out run_name=pretraining_experiment"""
OF_THE_PAPER = """model_type hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob
attention_probs_dropout_prob type_vocab_size unigram_bias max_predictions_per_seq optimizer_type lr_schedule curve
warmup_proportion per_device_train_batch_size gradient_accumulation_steps learning_rate weight_decay adam_beta1 adam_beta2
adam_epsilon max_grad_norm fp16 dataloader_num_workers seed"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "recipe.yaml"
    assert main(["--output", str(path), PUBLISHED]) == 0
    return path


def test_what_the_published_command_meant(recipe):
    """With the recipe of the paper it agrees wherever both speak, but for how often a line is logged."""
    paper, ours = read_recipe(ROOT / "recipes" / "izsak2021.yaml"), read_recipe(recipe)
    own = {key: value for key, value in ours.items() if key not in OF_THE_PAPER.split()}
    assert own == dict(pair.split("=") for pair in OWN.split()) and ours.keys() - own.keys() == set(
        OF_THE_PAPER.split()
    )
    other = {key for key in ours.keys() - own.keys() if ours[key] != paper[key]}
    assert all(float(ours[key]) == float(paper[key]) for key in other), other
    text = recipe.read_text()
    for flag in ("deepspeed", "tokenizer_name", "data_loader_type", "project_name", "validation_micro_batch"):
        assert f"# - {flag}: " in text
    assert "--input '<dataset path>' --tokenizer google-bert/bert-large-uncased" in text
    assert "accelerate_configs/ddp.yaml --num_processes 8 train_mlm.py" in text


def test_the_data_command_makes_the_folder_that_the_recipe_names(corpus, tokenizer, tmp_path):
    pytest.importorskip("h5py", reason="needs the extra hdf5")
    from tests.data_prep.test_hdf5 import LENGTH, write

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    texts = list(read_documents(corpus))[:60]
    rows = np.array(loaded(texts, truncation=True, max_length=LENGTH, padding="max_length")["input_ids"])
    (tmp_path / "shards").mkdir()
    for number, name in enumerate(("train_shard_0", "train_shard_1", "test_shard_0")):
        third, path = rows[number::3], tmp_path / "shards" / f"{name}.hdf5"
        write(path, third, (third != 0).sum(1), loaded, seed=number)
    flags = f"--dataset_path {tmp_path}/shards --tokenizer_name {tokenizer} --output_dir {tmp_path}/out"
    draft = convert(read_command(f"deepspeed run_pretraining.py {flags}"))
    assert hdf5.main(draft.data_command().split()[3:]) == 0
    data = DataFolder.open(draft.entries["data_dir"][0])
    assert data.block_size == LENGTH and len(data.manifest["splits"]["train"]["files"]) == 2


def test_it_trains(recipe, data_dir, tmp_path):
    """Only budget, model size, batch, precision and places differ from what the command says."""
    changes = {"total_training_time": "20s", "early_exit_time_marker": "20s", "gradient_accumulation_steps": 1}
    changes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    changes |= {"fp16": "false", "data_dir": data_dir, "output_dir": tmp_path / "out"}
    run(launcher("cpu", "train_mlm.py", recipe, *words(changes)), ok=True)
    assert (tmp_path / "out" / "final" / "model.safetensors").exists()
    assert report(tmp_path / "out")["recipe"]["adam_beta2"] == 0.98
    found = [line["loss"] for line in losses(tmp_path / "out")]
    assert len(found) >= 2 and found[-1] < found[0]
    assert any("evaluation" in line for line in progress(tmp_path / "out")), "the cadence of validation_epochs"
