"""A command of the original as a recipe that train_mlm.py takes: its keys, its comments, the tables of the document."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import UNITS, format_duration
from budget_trainer.config.arguments import GROUPS
from budget_trainer.config.edit import WIDTH, scalar
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.core.package_data import launch_text
from budget_trainer.migrate.flags import DIFFERENCES, FLAGS, NO_LIMIT, ORIGINAL_GROUPS, Flag, Given
from budget_trainer.model.types import resolve_model_type

DEFAULTS: dict[str, Any] = {
    f.name: None if f.default is MISSING else f.default for group in GROUPS for f in fields(group) if f.init
}
_HUB_OWNERS = {"bert": "google-bert", "roberta": "FacebookAI"}  # of the names that had no owner in 2021
_TRAIN_SHARDS = 256  # shard_data's default, before copies


@dataclass
class _Draft:
    """A recipe in the making: by key a value and a remark, answers to flags without a key, and what is different."""

    given: Given
    entries: dict[str, tuple[Any, str]] = field(default_factory=dict)
    answers: list[tuple[str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def drop(self, key: str, answer: str) -> None:
        """Take a line out; answer the flag of the same name where it was given."""
        self.entries.pop(key, None)
        if key in self.given:
            self.answers.append((key, answer))

    def data_command(self) -> str:
        """`data_prep.hdf5` for the original's shards, with as many train shards as they were: an epoch is one of them."""
        name, path = self.given["tokenizer_name"], self.given["dataset_path"]
        roberta = self.given["model_type"] == "bert-mlm-roberta"
        name = name or ("roberta-base" if roberta else "bert-large-uncased")
        owner = _HUB_OWNERS.get(name.partition("-")[0])
        if owner and "/" not in name and not Path(name).exists():
            name = f"{owner}/{name}"
        words = ["python", "-m", "data_prep.hdf5", "--input", path, "--tokenizer", name]
        words += ["--num_shards", str(self.train_shards() or _TRAIN_SHARDS)]
        return shlex.join([*words, "--output_dir", self.entries["data_dir"][0]])

    def train_shards(self) -> int:
        """Train files of dataset_path; 0 where it is not on this machine."""
        return sum(not file.name.startswith("test") for file in Path(self.given["dataset_path"]).rglob("*.hdf5"))


def convert(given: Given, data_dir: str | None = None) -> _Draft:
    """The recipe of what was given; `data_dir` is where the converted data will be. InputError: it cannot be run."""
    draft, path = _Draft(given), given["dataset_path"]
    for defect, text, applies in DIFFERENCES:
        if all(given[name] == value for name, value in applies.items()):
            draft.differences.append(f"{text} ({defect})")
    for flag in FLAGS.values():
        _convert_flag(draft, flag)
    data_dir = data_dir or ("data/blocks" if "<" in path else f"{path.rstrip('/')}-blocks")
    draft.entries["data_dir"] = (data_dir, "made of dataset_path by the command above")
    for convert_related in (_batch, _budget, _schedule, _layout, _lamb, _names):
        convert_related(draft)
    draft.differences += given.remarks
    # train_mlm.py's own checks, of values too; precision and device of the machine that converts do not count.
    words = [f"--{key}={value}" for key, (value, _) in draft.entries.items()]
    parse_recipe([*words, "--use_cpu=true", "--fp16=false"])
    return draft


def _convert_flag(draft: _Draft, flag: Flag) -> None:
    """A line for a flag that was given, and for a default of the original that ours differs from; or an answer."""
    given, value = draft.given, draft.given[flag.name]
    unread = [f"{name} {_shown(needed)}" for name, needed in flag.read_with if given[name] != needed]
    if flag.key is None or unread:
        answer = f"the original read it with {unread[0]} only; left out" if unread else flag.text
        draft.answers += [(flag.name, answer)] if flag.name in given else []
        return
    if flag.unit and value is not None:
        value = format_duration(value * UNITS[flag.unit])
    if flag.name in given:
        draft.entries[flag.key] = (value, "")
    elif not flag.same and value != DEFAULTS[flag.key]:
        draft.entries[flag.key] = (value, f"the original's default of {flag.name}")


# ---- flags that belong together ----


def _batch(draft: _Draft) -> None:
    """The global batch is the original's: micro-batch x processes x accumulation."""
    processes, total = draft.given.processes, draft.given["train_batch_size"]
    micro = max(1, draft.given["train_micro_batch_size_per_gpu"])  # below 1 is refused as our key
    steps, rest = divmod(total, micro * processes)
    if rest:
        nearest = max(1, round(total / (micro * processes))) * micro * processes
        raise InputError(
            f"train_batch_size: {total} is not {micro} (train_micro_batch_size_per_gpu) x {processes} processes x a whole "
            f"number; give train_batch_size {nearest}, or --num_processes of your machine before the command"
        )
    remark = f"train_batch_size {total} = {micro} x {processes} process{'es' if processes > 1 else ''} x {steps}"
    draft.entries["gradient_accumulation_steps"] = (steps, remark)


def _budget(draft: _Draft) -> None:
    """One budget where the original had two defaults of 24 hours; what is saved on the way."""
    given, total = draft.given, draft.given["total_training_time"]
    if given["early_exit_time_marker"] < total and "early_exit_time_marker" not in given:
        draft.differences.append(
            f"total_training_time {total:g} h alone ended at 24 h all the same (B6, a second default); here it does not, but "
            "with early_exit_time_marker: 24h"
        )
    elif given["early_exit_time_marker"] > total:
        draft.drop("early_exit_time_marker", f"beyond total_training_time ({total:g} h), which ends a run; left out")
    markers = (given["finetune_time_markers"] or "").split(",")
    kept = [share for share in markers if not re.fullmatch(r"\s*(1\.?0*)?\s*", share)]
    if len(kept) < len(markers):
        draft.drop("finetune_time_markers", "1.0 is left out: the end of the budget is final/")
    if kept:
        draft.entries["finetune_time_markers"] = (",".join(kept), "")
    if not 1 <= given["num_epochs_between_checkpoints"] <= 1000:
        draft.differences.append(
            "no checkpoint is left after a crash, as with theirs; checkpoint_every: 1h leaves one (B13)"
        )


def _schedule(draft: _Draft) -> None:
    """A schedule by time or by steps, and the length that its curve has."""
    given, kind, share = draft.given, draft.given["lr_schedule"], draft.given["warmup_proportion"]
    length, unit = (given["total_training_time"], "hours") if kind == "time" else (given["max_steps"], "steps")
    if given["max_steps"] >= NO_LIMIT // 2:
        draft.drop("max_steps", "no limit: left out")
    elif given["max_steps"] < 1:
        raise InputError(f"max_steps: {given['max_steps']} is below 1; give a whole number from 1 on, or leave it out")
    else:
        draft.differences.append("the original looked at max_steps after a whole shard; here it is the last step (B5)")
    if kind == "constant_step":
        draft.drop("warmup_proportion", "the original did not read it with constant_step; left out")
    warmup = given["num_warmup_steps"] if kind == "constant_step" else length * share
    if given["curve"] == "exp":
        _exponential(draft, length - warmup, unit)
    elif kind == "time" and length - warmup < 1:  # theirs divided by at least one hour
        draft.differences.append(
            "with less than an hour of decay their learning rate fell at once to a fraction of its peak (B3); here the curve "
            "spans the budget: a rate found there may be too high"
        )


def _exponential(draft: _Draft, rest: float, unit: str) -> None:
    """`decay_rate` once every `decay_step` hours or steps, over the `rest` of the schedule behind the warmup."""
    rate, step = draft.given["decay_rate"], draft.given["decay_step"]
    every = f"{rate:g} every {step} {unit}"
    if not (rate > 0 and step > 0 and rest > 0):
        raise InputError(f"decay_rate: {every} over {rest:g} cannot decay; give positive numbers, and less warmup")
    share, end = step / rest, rate ** (rest / step)
    if share > 1:  # ours is a share of the schedule, at most all of it
        rate, share = round(end, 9), 1.0
    draft.entries |= {
        "decay_rate": (rate, f"from {every}"),
        "decay_step": (round(share, 9), "of what the warmup leaves"),
    }
    hours = " (B4: theirs counted steps in hours)" if unit == "hours" else ""
    draft.differences.append(
        f"curve exp: the same decay, to {end:.3g} of the peak{hours}; their warmup was a square, here it is a line"
    )


def _layout(draft: _Draft) -> None:
    """The native class of the original's words, and what that class has not."""
    given = draft.given
    if given["encoder_ln_mode"] == "post-ln" and not given["layernorm_embedding"]:
        answer = "post-ln is the native bert, which always has a norm behind the embeddings"
        draft.drop("layernorm_embedding", answer)
        draft.differences.append(f"encoder_ln_mode: {answer}")
    names = ("encoder_ln_mode", "layernorm_embedding", "layer_norm_type")
    words = {name: draft.entries[name][0] for name in names if name in draft.entries}
    native = resolve_model_type(given["model_type"], **words)
    draft.entries["model_type"] = (given["model_type"], f"saved as the native {native}")
    draft.entries["unigram_bias"] = (False, "theirs started the output bias at 0")
    if native == "eurobert":
        for name in ("hidden_dropout_prob", "type_vocab_size"):
            draft.drop(name, "the native eurobert, which has RMSNorm, has none of it")
        draft.entries["hidden_dropout_prob"] = (0.0, "eurobert has none")
        draft.differences.append(
            "layer_norm_type rms_norm is eurobert, another network than theirs: rotary positions, gated blocks, no biases"
        )
    if words.get("layer_norm_type") == "apex":
        draft.entries["layer_norm_type"] = ("apex", "needs apex and a GPU; without this line PyTorch's, same weights")
    if given["add_nsp"] or given["model_type"] == "bert-mlm-nsp":
        draft.differences.append(
            "their next-sentence prediction could not run (B7); it needs shards with labels, or data_prep.blocks --packing nsp"
        )


def _lamb(draft: _Draft) -> None:
    """DeepSpeed's FusedLamb had values of its own: the adam_* flags did not reach it."""
    if draft.given["optimizer_type"] != "lamb":
        return
    for name, value in (("adam_beta1", 0.9), ("adam_beta2", 0.999), ("adam_eps", 1e-8)):
        given = draft.given.values.get(name, value)
        if given != value:
            draft.answers.append((name, f"{given:g} did not reach their lamb, which had {value:g}; so here"))
        draft.entries[FLAGS[name].key or ""] = (value, "what the original's lamb had, whatever the command said")


def _names(draft: _Draft) -> None:
    """Where a run writes, and what it is called; runs of a sweep differ by their id."""
    name, folder, run_id = (draft.given[flag] for flag in ("job_name", "output_dir", "current_run_id"))
    if not folder:
        raise InputError("output_dir: missing, and the original needed it too; add --output_dir DIR to the command")
    if run_id:
        name = f"{name}-{run_id}"
        draft.entries |= {"run_name": (name, ""), "output_dir": (str(Path(folder) / name), "")}


# ---- text ----


def recipe_text(draft: _Draft, recipe: str) -> str:
    """The YAML of a recipe, in a file that its launch command names `recipe`; its comments as docs/migrating.md says."""
    given, shards = draft.given, "" if draft.train_shards() else f"; here shard_data's default of {_TRAIN_SHARDS}"
    one = given.processes == 1
    launch = launch_text("single_gpu") if one else launch_text("ddp", f"--num_processes {given.processes}")
    launch = f"{given.environment}{launch} {shlex.quote(recipe)}"
    data = (
        "Once, the data: the masked tokens are put back, copies that differ by their masks dropped (needs h5py). "
        "--num_shards: the train shards of dataset_path, divided by the dup_factor they were made with (an epoch is "
        f"one shard per process){shards}:"
    )
    several = "for several machines accelerate_configs/multi_node_ddp.yaml"
    text = [
        *_comment("Made by python -m budget_trainer.migrate of flags of IntelLabs/academic-budget-bert."),
        *("#", *_comment(data), f"#   {' '.join(draft.data_command().splitlines())}"),
        *_comment(f"Then the training, processes: {given.processes} ({given.why}); {several}:"),
        f"#   {' '.join(launch.splitlines())}",
    ]
    answers = [f"{name}: {answer}" for name, answer in draft.answers]
    for heading, lines in (("What is different now:", draft.differences), ("Flags without a key here:", answers)):
        if lines:
            text += ["#", f"# {heading}", *(part for line in dict.fromkeys(lines) for part in _comment(line, "- "))]
    for group in GROUPS:
        entries = [(f.name, *draft.entries[f.name]) for f in fields(group) if f.name in draft.entries]
        text += [""] if entries else []
        text += [f"{key}: {scalar(value)}" + (f"  # {remark}" if remark else "") for key, value, remark in entries]
    return "\n".join(text) + "\n"


def _comment(text: str, mark: str = "") -> list[str]:
    """Comment lines, behind `mark`; line breaks become spaces, so that nothing can leave the comment."""
    first, others = f"# {mark}", f"# {' ' * len(mark)}"
    flat = " ".join(text.split())
    return textwrap.wrap(flat, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False)


def table() -> str:
    """The generated part of docs/migrating.md: all flags by group, and the differences by defect."""
    parts = ["<!-- From here on made by: python -m budget_trainer.migrate --table -->"]
    parts += ["", f"## The {len(FLAGS)} flags of run_pretraining.py", ""]
    parts += ["In brackets: the default. `-` where there is none."]
    for name, flags in ORIGINAL_GROUPS.items():
        parts += ["", f"### {name} ({len(flags)})", "", "| theirs | here | remark |", "|---|---|---|"]
        parts += map(_row, flags)
    parts += ["", "## What a recipe says is different", "", "| defect | where it applies |", "|---|---|"]
    return "\n".join([*parts, *(f"| {defect} | {text} |" for defect, text, _ in DIFFERENCES)]) + "\n"


def _row(flag: Flag) -> str:
    unit = {"h": " hours", "m": " minutes"}.get(flag.unit, "")
    theirs = f"`{flag.name}` ({_shown(flag.default)}{unit})"
    here = f"`{flag.key}` ({_shown(DEFAULTS[flag.key])})" if flag.key else "-"
    conditions = " and ".join(f"{name} {_shown(value)}" for name, value in flag.read_with)
    remarks = [", ".join(flag.choices), flag.text, conditions and f"read with {conditions}"]
    return f"| {theirs} | {here} | {'; '.join(filter(None, remarks))} |"


def _shown(value: Any) -> str:
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return "2^63 - 1" if value == NO_LIMIT else f"{value:g}" if isinstance(value, float) else str(value)
