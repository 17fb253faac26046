"""What follows from several flags of the original together. Each rule changes the draft of a recipe.

Sources: the original's code as described in `docs/migrating.md`; numbers such as (B6) are those of its known defects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.migration.draft import Draft
from budget_trainer.migration.original_flags import NO_LIMIT
from budget_trainer.model_types import resolve_model_type

LAMB_DEFAULTS = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}  # of DeepSpeed's FusedLamb
LAMB_FLAGS = {"adam_beta1": "adam_beta1", "adam_beta2": "adam_beta2", "adam_epsilon": "adam_eps"}


def batch(draft: Draft) -> None:
    """The global batch is the original's: micro-batch x processes x accumulation."""
    given, processes = draft.given, draft.launch.processes
    micro, total = given["train_micro_batch_size_per_gpu"], given["train_batch_size"]
    for name in ("train_micro_batch_size_per_gpu", "train_batch_size"):
        if given[name] < 1:
            raise InputError(f"{name}: {given[name]} is below 1; give a whole number from 1 on")
    if total % (micro * processes):
        nearest = max(1, round(total / (micro * processes))) * micro * processes
        raise InputError(
            f"train_batch_size: {total} is not {micro} (train_micro_batch_size_per_gpu) x {processes} processes x a whole "
            f"number; give train_batch_size {nearest}, or --num_processes of your machine before the command"
        )
    steps = total // (micro * processes)
    text = f"{total} = {micro} x {processes} process{'es' if processes > 1 else ''} x {steps}"
    draft.put("gradient_accumulation_steps", steps, f"train_batch_size {text}")


def time(draft: Draft) -> None:
    """One budget where the original had two defaults of 24 hours; markers that this budget can reach."""
    given = draft.given
    total, marker = given["total_training_time"], given["early_exit_time_marker"]
    if given.names("early_exit_time_marker") and marker > total:
        answer = f"beyond the {total:g} h of total_training_time, which ended the original's run too; left out"
        draft.drop("early_exit_time_marker", "early_exit_time_marker", answer)
    if not given.names("early_exit_time_marker") and total > marker:
        draft.differences.append(
            f"total_training_time {total:g} h alone ended at 24 h all the same (B6, a second default); here it lasts "
            f"{total:g} h. early_exit_time_marker: 24h would end there, on the same curve"
        )
    text = given["finetune_time_markers"]
    if text is not None:
        _markers(draft, text)


def _markers(draft: Draft, text: str) -> None:
    try:
        shares = {float(part) for part in text.split(",") if part.strip()}
    except ValueError:
        raise InputError(f"finetune_time_markers: {text!r} is not a list of shares; write it as 0.5,0.9") from None
    kept = sorted(share for share in shares if 0 < share < 1)
    left_out = ", ".join(f"{share:g}" for share in sorted(shares - set(kept)))
    if left_out:
        answer = f"{left_out} is not between 0 and 1; the end of the budget is final/"
        draft.answers.append(("finetune_time_markers", answer))
    draft.entries.pop("finetune_time_markers")
    if kept:
        draft.put("finetune_time_markers", ",".join(f"{share:g}" for share in kept))


def schedule(draft: Draft) -> None:
    """A schedule by steps needs a last one; the exponential curve in our terms."""
    given = draft.given
    kind, steps = given["lr_schedule"], given["max_steps"]
    limited = steps < NO_LIMIT // 2
    if not limited:
        draft.drop("max_steps", "max_steps", "no limit: left out")
    elif steps < 1:
        raise InputError(f"max_steps: {steps} is below 1; give a whole number from 1 on, or leave it out")
    if kind != "time" and not limited:
        raise InputError(
            f"max_steps: missing, and lr_schedule {kind} needs it (the original never warmed up without it, B4); add "
            "--max_steps 23000 to the command"
        )
    if kind == "constant_step" and given["num_warmup_steps"] >= steps:
        raise InputError(
            f"num_warmup_steps: {given['num_warmup_steps']} is not below max_steps {steps}; lower it in the command"
        )
    if kind == "constant_step":
        draft.drop(
            "warmup_proportion", "warmup_proportion", "the original did not read it with constant_step; left out"
        )
    if given["curve"] == "exp":
        total = given["total_training_time"] if kind == "time" else steps
        warmup = given["num_warmup_steps"] if kind == "constant_step" else total * given["warmup_proportion"]
        _exponential(draft, total - warmup, "hours" if kind == "time" else "steps")


def _exponential(draft: Draft, rest: float, unit: str) -> None:
    """`decay_rate` once every `decay_step` hours or steps, over the `rest` of the schedule behind the warmup."""
    rate, step = draft.given["decay_rate"], draft.given["decay_step"]
    if not (rate > 0 and step > 0 and rest > 0):
        raise InputError(
            f"decay_rate: {rate:g} every {step} {unit} over {rest:g} cannot decay; give positive numbers and a "
            "warmup_proportion below 1"
        )
    share, end = step / rest, rate ** (rest / step)
    if share > 1:
        draft.put("decay_rate", round(end, 9), f"what {rate:g} every {step} {unit} makes of it by the end ...")
        draft.put("decay_step", 1.0, "... of the schedule")
    else:
        draft.put("decay_rate", rate, "at each ...")
        draft.put("decay_step", round(share, 9), f"... of what the warmup leaves: {step} {unit}")
    draft.differences.append(
        f"curve exp: the same decay, to {end:.3g} of the peak"
        + (" (B4: theirs counted steps in hours)" * (unit == "hours"))
        + "; their warmup was a square, here it is a line. Without decay_rate and decay_step it falls to 0.01"
    )


def layout(draft: Draft) -> None:
    """The native class of the original's words, and what that class has not."""
    given = draft.given
    if given["encoder_ln_mode"] == "post-ln" and not given["layernorm_embedding"]:
        answer = "post-ln is the native bert, which has a norm behind the embeddings; theirs could leave it out"
        draft.drop("layernorm_embedding", "layernorm_embedding", answer)
        draft.differences.append(f"encoder_ln_mode: {answer}")
    words: dict[str, Any] = {
        name: draft.entries[name].value if name in draft.entries else None
        for name in ("encoder_ln_mode", "layernorm_embedding", "layer_norm_type")
    }
    native = resolve_model_type(given["model_type"], **words)
    draft.put("model_type", given["model_type"], f"saved as the native {native}")
    if native == "eurobert":
        for name in ("hidden_dropout_prob", "type_vocab_size"):
            answer = "the native eurobert, which has RMSNorm, has none of it"
            draft.drop(name, name, answer)
        draft.put("hidden_dropout_prob", 0.0, "eurobert has none")
        draft.differences.append(
            "layer_norm_type rms_norm: the native class with RMSNorm is eurobert, another network than theirs: rotary "
            "positions, gated feed-forward blocks, no biases"
        )
    if given.names("layer_norm_type") and given["layer_norm_type"] == "apex":
        draft.put("layer_norm_type", "apex", "needs apex and a GPU; without this line PyTorch's, on the same weights")
    draft.put("unigram_bias", False, "theirs started the output bias at 0")


def optimizer(draft: Draft) -> None:
    """DeepSpeed's lamb got none of the adam_* flags: it had its own defaults."""
    if draft.given["optimizer_type"] != "lamb":
        return
    for key, value in LAMB_DEFAULTS.items():
        given = draft.given.values.get(LAMB_FLAGS[key], value)
        if given != value:
            draft.answers.append(
                (LAMB_FLAGS[key], f"{given:g} did not reach their lamb, which had {value:g}; so here")
            )
        draft.put(key, value, "what the original's lamb had, whatever the command said")


def names(draft: Draft) -> None:
    """Where a run writes, and what it is called; runs of a sweep differ by their id."""
    given = draft.given
    if not given["output_dir"]:
        raise InputError(
            "output_dir: missing, and the original did not start without it; add --output_dir DIR to the command"
        )
    name, folder, run_id = given["job_name"], given["output_dir"], given["current_run_id"]
    if run_id:
        name = f"{name}-{run_id}"
        draft.put("output_dir", str(Path(folder) / name))
    draft.put("run_name", name, draft.entries["run_name"].remark)


def data(draft: Draft, data_dir: str | None) -> None:
    """The data folder that `data_prep.hdf5` makes of the original's shards."""
    path = draft.given["dataset_path"]
    if data_dir is None:
        data_dir = "data/blocks" if "<" in path else f"{path.rstrip('/')}-blocks"
    draft.put("data_dir", data_dir, "made of dataset_path by the command above")


RULES = (batch, time, schedule, layout, optimizer, names)
