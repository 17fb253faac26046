"""The flags of the two scripts by topic, each with its unit: what `--help` prints in this order.

A flag of TrainingArguments that stands nowhere here is one of the others. Standard library only.
"""

from __future__ import annotations

UNITS = {
    "TIME": "24h, 90m, 1h30m or 45s; a bare number where the flag says so",
    "SHARE": "from 0 to 1; with %, of a hundred",
    "STAGES": "VALUE@SHARE of the schedule, joined by commas",
    "N, ROWS, STEPS, TOKENS, ...": "whole numbers, of these",
    "RATE": "a learning rate, per step",
    "NATS": "of a loss, the mean over predicted tokens",
    "BOOL": "true or false; alone it means true",
}

_PRECISION = """bf16 BOOL, fp16 BOOL, bf16_dtype TEXT, tf32 BOOL"""
_OPTIMIZER = "adam_beta1 SHARE, adam_beta2 SHARE, adam_epsilon NUMBER, weight_decay NUMBER, max_grad_norm NUMBER"
_LOADER = """dataloader_num_workers N, dataloader_pin_memory BOOL, dataloader_persistent_workers BOOL,
dataloader_prefetch_factor N, dataloader_multiprocessing_context NAME, dataloader_in_order BOOL"""
_LOGGING = """logging_steps STEPS, logging_strategy NAME, logging_first_step BOOL, report_to NAME, run_name TEXT,
disable_tqdm BOOL, log_level NAME, log_level_replica NAME, log_on_each_node BOOL"""
_DISTRIBUTED = """use_cpu BOOL, deepspeed FILE, fsdp TEXT, fsdp_config FILE, accelerator_config FILE,
parallelism_config JSON, average_tokens_across_devices BOOL, ddp_backend NAME, ddp_timeout SECONDS,
ddp_bucket_cap_mb MEGABYTES, ddp_find_unused_parameters BOOL, ddp_broadcast_buffers BOOL, ddp_static_graph BOOL,
local_rank N"""

# Where TrainingArguments' own words are about other scripts.
WORDS = {
    "max_steps": "Optimizer steps at most; -1: as many as the time or the epochs allow.",
    "output_dir": "Folder of this run; it must not hold another one.",
    "resume_from_checkpoint": "auto: go on from the newest complete checkpoint of output_dir, or begin where there is none; "
    "or a checkpoint's folder.",
    "gradient_accumulation_steps": "Micro-batches per step; a step has micro-batch x this x processes rows.",
    "push_to_hub": "Publish what the run keeps, without delaying it.",
    "hub_model_id": "The repository; without USER the token's owner, without the flag the name of output_dir.",
    "hub_strategy": "every_save: each time-marked model as it is saved; end: all of it behind the run.",
    "hub_private_repo": "Make it a private one.",
    "do_train": "Train; of do_train, do_eval and do_predict all three where none is named.",
    "do_eval": "Score the dev splits.",
    "do_predict": "Predict the test splits.",
}

TRAIN = {
    "Budget": """total_training_time TIME, early_exit_time_marker TIME, job_time_limit TIME, max_steps STEPS,
early_stop_time TIME, early_stop_eval_loss NATS""",
    "Data and output": f"""data_dir DIR, output_dir DIR, resume_from_checkpoint auto|DIR, seed N,
full_determinism BOOL, {_LOADER}""",
    "Model": """model_type NAME, model_name_or_path DIR, hidden_size N, num_hidden_layers N, num_attention_heads N,
intermediate_size N, hidden_act NAME, hidden_dropout_prob SHARE, attention_probs_dropout_prob SHARE,
max_position_embeddings TOKENS, type_vocab_size N, initializer_range NUMBER, encoder_ln_mode NAME,
layernorm_embedding BOOL, layer_norm_type NAME, model_config JSON, embedding_init NAME, embedding_init_std NUMBER,
offset_heads TOKENS, unigram_bias BOOL""",
    "Masking objective": """mlm_probability SHARE, mlm_probability_curve STAGES, mask_replace_prob SHARE,
random_replace_prob SHARE, max_predictions_per_seq TOKENS, dup_factor N, whole_word_mask BOOL, document_mask BOOL,
twin_probability SHARE, add_nsp BOOL""",
    "Optimizer and schedule": f"""optimizer_type NAME, optimizer_impl NAME, learning_rate RATE,
per_device_train_batch_size ROWS, gradient_accumulation_steps N, {_OPTIMIZER}, lr_schedule NAME, curve NAME,
warmup_proportion SHARE, num_warmup_steps STEPS, decay_rate SHARE, decay_step SHARE|STEPS, decay_proportion SHARE,
decay_shape NAME, batch_size_curve STAGES, sequence_length_curve STAGES, muon_learning_rate RATE,
muon_momentum SHARE, muon_weight_decay NUMBER, embedding_learning_rate RATE, bias_correction BOOL, max_coeff NUMBER,
min_coeff NUMBER""",
    "Speed and precision": f"""auto_speed BOOL, {_PRECISION}, torch_compile BOOL, torch_compile_backend NAME,
torch_compile_mode NAME, regional_compile BOOL, sparse_mask_prediction BOOL, sparse_last_layer BOOL,
cross_entropy NAME, activation_checkpointing BOOL, activation_checkpointing_kwargs JSON""",
    "Validation, logging and saving": f"""validate_every SHARE%, validation_epochs SHARDS,
validation_epochs_begin SHARDS, validation_begin_proportion SHARE, validation_epochs_end SHARDS,
validation_end_proportion SHARE, checkpoint_every TIME, num_epochs_between_checkpoints SHARDS, save_total_limit N,
finetune_time_markers SHARES, finetune_checkpoint_at_end BOOL, plan FILE, {_LOGGING}""",
    "When the loss goes wrong": """max_bad_steps STEPS, max_roll_backs N, roll_back_lr_factor SHARE,
scale_cnt_limit STEPS, loss_spike NATS, logging_nan_inf_filter BOOL""",
    "Distributed": _DISTRIBUTED,
    "Hub": """push_to_hub BOOL, hub_model_id USER/NAME, hub_strategy NAME, hub_private_repo BOOL, license NAME,
language CODES""",
}

GLUE = {
    "Task, model and data": f"""task_name NAME..., model_name_or_path DIR|NAME, tokenizer_name DIR|NAME,
output_dir DIR, overwrite_output_dir BOOL, glue_dir DIR..., dataset_name DIR|NAME, max_seq_length TOKENS,
pad_to_max_length BOOL, max_train_samples ROWS, max_eval_samples ROWS, max_predict_samples ROWS, do_train BOOL,
do_eval BOOL, do_predict BOOL, save_model BOOL, {_LOADER}""",
    "Budget": """total_training_time TIME, num_train_epochs EPOCHS, max_steps STEPS,
early_stopping_patience EVALUATIONS""",
    "Several runs (a suite)": """grid FILE, seeds N,N..., intermediate_task NAME, checkpoints DIR...""",
    "Optimizer and schedule": f"""learning_rate RATE, per_device_train_batch_size ROWS, gradient_accumulation_steps N,
lr_scheduler_type NAME, lr_scheduler_kwargs JSON, warmup_steps STEPS|SHARE, optim NAME, optim_args TEXT,
{_OPTIMIZER}, label_smoothing_factor SHARE, train_sampling_strategy NAME, seed N, data_seed N,
full_determinism BOOL""",
    "Speed and precision": f"{_PRECISION}, activation_checkpointing BOOL, activation_checkpointing_kwargs JSON",
    "Validation and logging": f"""eval_strategy NAME, eval_steps STEPS, eval_delay EPOCHS|STEPS, eval_on_start BOOL,
per_device_eval_batch_size ROWS, {_LOGGING}, logging_nan_inf_filter BOOL, project_name TEXT, group_name TEXT""",
    "Distributed": _DISTRIBUTED,
    "Hub": "push_to_hub BOOL, hub_model_id USER/NAME, hub_private_repo BOOL, license NAME, language CODES",
}


def units(groups: dict[str, str]) -> dict[str, dict[str, str]]:
    """Each topic with its flags and their units."""
    entries = {topic: text.replace(",\n", ", ").split(", ") for topic, text in groups.items()}
    return {topic: dict(_flag_and_unit(entry) for entry in found) for topic, found in entries.items()}


def _flag_and_unit(entry: str) -> tuple[str, str]:
    flag, unit = entry.split()
    return flag, unit
