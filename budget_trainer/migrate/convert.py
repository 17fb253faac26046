"""Flags of the original -> keys of a recipe, one by one; `rules` then looks at those that hang together.

What follows from several flags of the original together. Each rule changes the draft of a recipe.

Sources: the original's code as described in `docs/migrating.md`; numbers such as (B6) are those of its known defects.

A command line or a combination of a sweep of the original -> a recipe that train_mlm.py takes.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import UNITS, format_duration
from budget_trainer.config.arguments import GROUPS
from budget_trainer.config.parser import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.migrate.original import FLAGS, NO_LIMIT, Flag, Given, differences
from budget_trainer.migrate.reading import Launch
from budget_trainer.model.types import resolve_model_type

DEFAULTS: dict[str, Any] = {
    f.name: None if f.default is MISSING else f.default for group in GROUPS for f in fields(group) if f.init
}


@dataclass
class Entry:
    """A line of the recipe."""

    value: Any
    remark: str = ""


@dataclass
class Draft:
    """A recipe in the making: its lines by key, and for flags without a line what has their place."""

    given: Given
    launch: Launch
    entries: dict[str, Entry] = field(default_factory=dict)
    answers: list[tuple[str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, remark: str = "") -> None:
        self.entries[key] = Entry(value, remark)

    def drop(self, key: str, flag: str, answer: str) -> None:
        """Take a line out; where the flag was given, say why."""
        self.entries.pop(key, None)
        if self.given.names(flag):
            self.answers.append((flag, answer))


def first_draft(given: Given, launch: Launch) -> Draft:
    """Every flag that was given, and every default of the original that ours differs from."""
    draft = Draft(given, launch)
    for flag in FLAGS.values():
        named = given.names(flag.name)
        unread = [f"{name} {str(value).lower()}" for name, value in flag.read_with if given[name] != value]
        if flag.key is None or unread:
            if named:
                text = flag.text if flag.key is None else f"the original read it with {unread[0]} only; left out"
                draft.answers.append((flag.name, text))
            continue
        value = converted(flag, given[flag.name])
        if named or (not flag.same and value != DEFAULTS[flag.key]):
            draft.put(flag.key, value, "" if named else f"the original's default of {flag.name}")
    return draft


def converted(flag: Flag, value: Any) -> Any:
    """A value of the original as ours: durations get their unit. InputError: one that is not above zero."""
    if not flag.unit or value is None:
        return value
    if value <= 0:
        unit = {"h": "hours", "m": "minutes"}[flag.unit]
        raise InputError(f"{flag.name}: {value} is not above zero; give {unit}, such as {flag.default}")
    return format_duration(value * UNITS[flag.unit])


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


HUB_NAMES = {"bert": "google-bert", "roberta": "FacebookAI"}  # owners of the names that had none in 2021
TRAIN_SHARDS = 256  # shard_data's default, before copies


def convert(given: Given, launch: Launch, data_dir: str | None = None) -> Draft:
    """The recipe of what was given, for `launch`'s processes; `data_dir` is where the converted data will be.

    Raises:
        InputError: what the original could not have run, or no native class and no flag here can do.
    """
    draft = first_draft(given, launch)
    for rule in RULES:
        rule(draft)
    data(draft, data_dir)
    draft.differences = [*differences(given), *draft.differences, *given.remarks]
    check(draft)
    return draft


def check(draft: Draft) -> None:
    """Refuse (InputError) what train_mlm.py would: precision and device of the machine that converts do not count."""
    words = [f"--{key}={as_word(entry.value)}" for key, entry in draft.entries.items()]
    parse_recipe([*words, "--use_cpu=true", "--fp16=false"])


def as_word(value: Any) -> str:
    """A value as the command line and YAML write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def train_shards(given: Given) -> int:
    """Train files of dataset_path; 0 where it is not on this machine."""
    return sum(not file.name.startswith("test") for file in Path(given["dataset_path"]).rglob("*.hdf5"))


def data_command(draft: Draft) -> str:
    """`data_prep.hdf5` for the original's shards, with as many train shards as they were: an epoch is one of them."""
    given = draft.given
    roberta = given["model_type"] == "bert-mlm-roberta"
    tokenizer = given["tokenizer_name"] or ("roberta-base" if roberta else "bert-large-uncased")
    if "/" not in tokenizer and tokenizer.partition("-")[0] in HUB_NAMES and not Path(tokenizer).exists():
        tokenizer = f"{HUB_NAMES[tokenizer.partition('-')[0]]}/{tokenizer}"
    words = ["python", "-m", "data_prep.hdf5", "--input", given["dataset_path"], "--tokenizer", tokenizer]
    words += [
        "--num_shards",
        str(train_shards(given) or TRAIN_SHARDS),
        "--output_dir",
        draft.entries["data_dir"].value,
    ]
    return shlex.join(words)
