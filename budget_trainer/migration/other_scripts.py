"""The original's other command lines, flag by flag, and what does their work here. Data only, standard library only."""

from __future__ import annotations

from typing import NamedTuple


class Script(NamedTuple):
    """A script of the original: `here` does its work; `flags` are (theirs with default, ours or None, remark)."""

    name: str
    here: str
    flags: tuple[tuple[str, str | None, str], ...]


_TEXT_FIRST = "reading, cleaning and cutting are one command here"
SCRIPTS: tuple[Script, ...] = (
    Script(
        "process_data.py",
        "python -m data_prep.prepare, or data_prep.blocks",
        (
            (
                "-f",
                "--input",
                "a dump as it is published, books, WikiExtractor's output, text: no extractor before it",
            ),
            ("-o", "--output_dir", _TEXT_FIRST),
            ("--type", "--kind", "found by looking; wiki is mediawiki or wikiextractor, bookcorpus is books"),
            ("--n_processes 16", "--num_proc", ""),
        ),
    ),
    Script(
        "shard_data.py",
        "python -m data_prep.blocks; data_prep.split for a finished folder",
        (
            ("--dir", "--input", ""),
            ("-o", "--output_dir", _TEXT_FIRST),
            (
                "--num_train_shards 256",
                "--num_shards",
                "shards differ by at most one row (B9); an epoch is one of them",
            ),
            (
                "--num_test_shards 256",
                "--max_validation_blocks",
                "one fixed set of blocks, not another shard each time (B11)",
            ),
            ("--frac_test .1", "--validation_fraction", "0.01 is the default here; by hash of the document"),
        ),
    ),
    Script(
        "merge_shards.py",
        "python -m data_prep.merge (folders), data_prep.split (fewer shards)",
        (
            ("--data", "--input", "merge: two or more data folders; split: one"),
            ("--output_dir", "--output_dir", ""),
            ("--ratio 1", "--num_shards", "the number of shards wanted, in place of how many become one"),
            ("--grep ''", None, "train and validation are apart in every folder and cannot mix (B20)"),
        ),
    ),
    Script(
        "generate_samples.py",
        "python -m data_prep.blocks; data_prep.hdf5 for samples that are there already",
        (
            ("--dir", "--input", "text: nothing has to be sharded before it"),
            ("-o", "--output_dir", ""),
            (
                "--dup_factor 1",
                "train_mlm.py --dup_factor",
                "fixed maskings without copies on the disk; unset: fresh ones for ever",
            ),
            ("--seed 555", "train_mlm.py --seed", "masks are drawn while training"),
            ("--vocab_file", "--tokenizer", "a vocab.txt, a tokenizer.json, a folder or a name of the Hub"),
            (
                "--do_lower_case 1",
                "--tokenizer",
                "the tokenizer's own; data_prep.tokenizer --no-lowercase trains a cased one (B21)",
            ),
            ("--masked_lm_prob .15", "train_mlm.py --mlm_probability", ""),
            ("--max_seq_length 512", "--block_size", "128 is the default here, as in the paper"),
            ("--model_name", "--tokenizer", ""),
            ("--max_predictions_per_seq 20", "train_mlm.py --max_predictions_per_seq", ""),
            ("--n_processes 8", "--num_proc", ""),
        ),
    ),
    Script(
        "create_pretraining_data.py",
        "python -m data_prep.blocks",
        (
            ("--input_file", "--input", ""),
            ("--output_file", "--output_dir", ""),
            ("--vocab_file, --bert_model", "--tokenizer", ""),
            ("--max_seq_length 128", "--block_size", "longer text goes on in the next block (B24)"),
            ("--dupe_factor 10", "train_mlm.py --dup_factor", ""),
            ("--max_predictions_per_seq 20", "train_mlm.py --max_predictions_per_seq", ""),
            ("--masked_lm_prob .15", "train_mlm.py --mlm_probability", ""),
            ("--short_seq_prob .1", "--short_seq_prob", "with --packing sentences or nsp"),
            ("--do_lower_case", "--tokenizer", "the tokenizer's own"),
            ("--random_seed 12345", "train_mlm.py --seed", "masks are drawn while training"),
            ("--no_nsp", "--packing", "nsp makes sentence pairs; sentences is the original's form without them"),
        ),
    ),
    Script(
        "run_glue.py",
        "finetune_glue.py",
        (
            ("--model_name_or_path", "--model_name_or_path", "any native checkpoint; no args.json beside it (B28)"),
            ("--task_name", "--task_name", ""),
            ("--max_seq_length 128", "--max_seq_length", ""),
            ("--pad_to_max_length True", "--pad_to_max_length", ""),
            ("--fp16_full_eval True", None, "evaluation has the precision of training"),
            ("--early_stopping_patience -1", "--early_stopping_patience", ""),
            ("--group_name", "--group_name", "with --report_to wandb"),
            ("--project_name", "--project_name", "with --report_to wandb"),
            ("--evaluation_strategy", "--eval_strategy", "Transformers' new name"),
        ),
    ),
    Script(
        "generate_training_commands.py",
        "sweep.py, which also runs the trials",
        (
            ("--param_file", "--param_file", "the same YAML; `fp16: false` means false (B27)"),
            ("--job_name bert_large_experiment", "--job_name", ""),
            ("--init_cmd", "--init_cmd", ""),
            ("--search_type grid", "search: in the YAML", "an unknown one is an error (B27)"),
        ),
    ),
)
