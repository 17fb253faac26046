"""All flags of a run together: what they must not contradict, and what follows from several of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, fields
from datetime import datetime
from itertools import permutations
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from budget_trainer.budget.clock import format_duration, parse_deadline, seconds_until
from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.stages import EveryEpochs, EveryShare, Stages, ValidationPlan, make_stages
from budget_trainer.config.arguments import (
    PARSER,
    REPLACED,
    BudgetArguments,
    CardArguments,
    DataArguments,
    ModelArguments,
    OptimizerArguments,
    WatchArguments,
)
from budget_trainer.core.errors import InputError, collected
from budget_trainer.data.repeated_passages import SMALLEST_PIECE, check_repeated_passages
from budget_trainer.model.optimizers import OptimizerOptions
from budget_trainer.model.types import check_pair_type, resolve_model_type
from budget_trainer.reporting.energy import check_country
from budget_trainer.reporting.hub import PushOptions
from budget_trainer.reporting.publish import resolve_push
from budget_trainer.reporting.report import Plan

EPOCHS = ("validation_epochs", "validation_epochs_begin", "validation_epochs_end")
PROPORTIONS = ("validation_begin_proportion", "validation_end_proportion")
_ADAM_FLAGS = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")  # TrainingArguments' own
_CURVES = {"decay_rate": "exp", "decay_step": "exp", "decay_proportion": "wsd", "decay_shape": "wsd"}
# Flags of ModelArguments that count for a model that is continued, too.
_OF_ANY_MODEL = {
    *("model_name_or_path", "hidden_dropout_prob", "attention_probs_dropout_prob", "sparse_mask_prediction"),
    *("sparse_last_layer", "cross_entropy", "softmax_samples", "add_nsp", "final_weight_rms", "detection_weight"),
}


def parse_recipe(argv: Sequence[str] | None = None) -> Recipe:
    """The run that `[recipe.yaml] --flag value ...` describes. Raises InputError for anything it cannot read."""
    parsed = PARSER.parse(argv)
    model, data, optimizer, budget, watch, card, training = parsed.groups
    return Recipe(model, data, optimizer, budget, watch, card, training, parsed.path, frozenset(parsed.explicit))


def parse_share(value: str, name: str) -> float:
    """A share of the budget in (0, 1]: `10%` or `0.1`. InputError for anything else."""
    text = value.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise InputError(f"{name}: {value!r} is not a share of the budget; write it as 10% or 0.1")
    return share


@dataclass(frozen=True)
class Recipe:
    """All flags of a run, checked against each other. `training` has the values of RunArguments' flags as they were asked for.

    Limits in seconds are infinite where there is none.

    Raises:
        InputError: flags contradict each other, or miss another one.
    """

    model: ModelArguments
    data: DataArguments
    optimizer: OptimizerArguments
    budget: BudgetArguments
    watch: WatchArguments
    card: CardArguments
    training: Any
    path: str | None = None
    explicit: frozenset[str] = frozenset()  # flags that the recipe or the command line named

    until: datetime | None = field(init=False)  # the deadline
    total_seconds: float = field(init=False)  # with a deadline: of a run that begins now; the run itself asks again
    early_exit_seconds: float = field(init=False)
    job_limit_seconds: float = field(init=False)
    checkpoint_seconds: float = field(init=False)
    early_stop_seconds: float = field(init=False)
    markers: list[float] = field(init=False)
    model_type: str = field(init=False)  # the native type, of what is said of type and layout
    add_nsp: bool = field(init=False)  # the original also said it by the model type
    offsets: list[int] | None = field(init=False)  # of offset_heads
    model_config: dict[str, Any] | None = field(init=False)
    optimizer_options: OptimizerOptions = field(init=False)
    schedule: dict[str, Any] = field(init=False)  # as TimeScheduleMixin takes it
    plan: Plan | None = field(init=False)  # what was predicted for this run (--plan)
    push: PushOptions | None = field(init=False)  # how to publish it, where that was asked for

    def __post_init__(self) -> None:
        b, m = self.budget, self.model
        layout = (m.model_type, m.encoder_ln_mode, m.layernorm_embedding, m.layer_norm_type)
        derived: dict[str, Callable[[], Any]] = {
            "until": lambda: None if b.deadline is None else parse_deadline(b.deadline),
            "total_seconds": lambda: _seconds("total_training_time", b),
            "early_exit_seconds": lambda: _seconds("early_exit_time_marker", b),
            "job_limit_seconds": lambda: _seconds("job_time_limit", b),
            "checkpoint_seconds": lambda: _seconds("checkpoint_every", b),
            "early_stop_seconds": lambda: _seconds("early_stop_time", self.watch),
            "markers": lambda: _parse_markers(b.finetune_time_markers),
            "model_type": lambda: resolve_model_type(*layout),
            "add_nsp": lambda: m.add_nsp or m.model_type == "bert-mlm-nsp",
            "offsets": lambda: _parse_offsets(m.offset_heads),
            "model_config": lambda: _parse_model_config(m.model_config),
        }
        refusals: list[str] = []
        for name, read in derived.items():
            with collected(refusals):
                object.__setattr__(self, name, read())
        if not refusals and self.until is not None:
            left, goes_on = seconds_until(self.until), self.training.resume_from_checkpoint is not None
            with collected(refusals):  # a job that goes on may have only its evaluation left; else the run asks again
                total = self.total_before_deadline(0.0, max(left, 1.0) if goes_on else left)
                object.__setattr__(self, "total_seconds", total)
        for check in () if refusals else (self._check_needed, self._check_model, self._check_watch):
            with collected(refusals):
                check()
        if refusals:
            raise InputError("; ".join(refusals))
        own, adam = dict(vars(self.optimizer)), {name: getattr(self.training, name) for name in _ADAM_FLAGS}
        options = OptimizerOptions(own.pop("optimizer_type"), **adam, **own)
        object.__setattr__(self, "optimizer_options", options)
        object.__setattr__(self, "schedule", self._schedule())
        object.__setattr__(self, "plan", Plan.read(b.plan, self.path) if b.plan else None)
        object.__setattr__(self, "push", self._push())
        check_country(self.card.country_iso_code)

    @property
    def data_dir(self) -> Path:
        return Path(str(self.data.data_dir))

    @property
    def output_dir(self) -> Path:
        return Path(self.training.output_dir)

    @property
    def max_steps(self) -> int | None:
        return self.training.max_steps if self.training.max_steps > 0 else None

    @property
    def end_seconds(self) -> float:
        """When training ends at the latest."""
        return min(self.total_seconds, self.early_exit_seconds)

    @property
    def end_field(self) -> str:
        """The flag that `end_seconds` is from."""
        if self.early_exit_seconds < self.total_seconds:
            return "early_exit_time_marker"
        asked = _seconds("total_training_time", self.budget)
        return "deadline" if self.total_seconds < asked else "total_training_time"

    @property
    def checkpoint_at_end(self) -> bool:
        """Whether the end leaves a training checkpoint, from which the run goes on with more time."""
        asked = self.budget.checkpoint_at_end
        return self.budget.curve == "wsd" if asked is None else asked

    def total_before_deadline(self, used: float, left: float) -> float:
        """The budget, in seconds, of a run that has used `used` where `left` are left until the deadline.

        What passes between two jobs is lost to it, and the schedule ends with the deadline all the same. InputError where that
        is over.
        """
        if left <= 0:
            ago = format_duration(max(-left, 1.0))
            raise InputError(f"deadline: {self.budget.deadline} is over, it was {ago} ago; give a later one")
        return min(_seconds("total_training_time", self.budget), used + left)

    def with_total(self, total_seconds: float) -> Recipe:
        """This recipe with the budget that its run has found to be left."""
        found = copy(self)
        object.__setattr__(found, "total_seconds", total_seconds)
        return found

    def _check_needed(self) -> None:
        b, endless = self.budget, math.isinf(self.total_seconds)
        beyond = math.inf > self.early_exit_seconds > _seconds("total_training_time", b)
        rates = f"{self.data.mlm_probability} beside mlm_probability_curve {b.mlm_probability_curve}"
        twice = {"mlm_probability", "mlm_probability_curve"} <= self.explicit and b.mlm_probability_curve
        late = f"{b.early_exit_time_marker} is beyond total_training_time {b.total_training_time}"
        refusals = {
            "data_dir: missing; add --data_dir with a folder made by `python -m data_prep.blocks`": not self.data.data_dir,
            "output_dir: missing; add --output_dir with a folder for this run": not self.training.output_dir,
            "total_training_time: missing, and lr_schedule time needs it; add --total_training_time 24h": endless
            and b.lr_schedule == "time",
            f"max_steps: missing, and lr_schedule {b.lr_schedule} needs it; add --max_steps 23000": not self.max_steps
            and b.lr_schedule != "time",
            f"early_exit_time_marker: {late}; lower it or leave it out": beyond,
            f"plan: made for a duration, and deadline {b.deadline} is none; leave plan out, or give "
            "--total_training_time 24h": bool(b.plan and b.deadline),
            "finetune_time_markers: shares of the budget, and there is none; add --total_training_time 24h": endless
            and self.markers,
            f"mlm_probability: {rates}, which says it all; leave one of them out": twice,
        }
        if told := [message for message, refused in refusals.items() if refused]:
            raise InputError("; ".join(told))

    def _check_model(self) -> None:
        m, twins = self.model, self.data.twin_probability
        if m.model_name_or_path is not None:  # a checkpoint brings its architecture
            # apex is only another kernel on the same weights
            used = _OF_ANY_MODEL | ({"layer_norm_type"} if m.layer_norm_type != "rms_norm" else set())
            for name in sorted(self.explicit & {f.name for f in fields(m)} - used):
                raise InputError(
                    f"{name}: cannot be set beside model_name_or_path {m.model_name_or_path}, which brings its own; "
                    "leave one of them out"
                )
        if m.model_type == "bert-mlm-nsp" and "add_nsp" in self.explicit and not m.add_nsp:
            raise InputError("add_nsp: false contradicts model_type bert-mlm-nsp; use model_type bert-mlm")
        if "softmax_samples" in self.explicit and m.cross_entropy != "sampled":
            raise InputError(
                f"softmax_samples: {m.softmax_samples} belongs to cross_entropy sampled, not {m.cross_entropy}; leave one out"
            )
        if m.cross_entropy == "sampled" and not m.sparse_mask_prediction:
            raise InputError("cross_entropy: sampled needs sparse_mask_prediction, which is false; use chunked")
        if m.detection_weight and self.add_nsp:
            raise InputError(
                f"detection_weight: {m.detection_weight} beside next-sentence prediction; leave one of them out"
            )
        if m.detection_weight and not m.sparse_mask_prediction:
            raise InputError(
                f"detection_weight: {m.detection_weight} needs sparse_mask_prediction, which is false; use 0"
            )
        if m.detection_weight and not twins:
            raise InputError(
                f"detection_weight: {m.detection_weight}, but twin_probability 0 leaves no block in which tokens are replaced; "
                "raise it, such as to 0.3"
            )
        if self.add_nsp and twins:
            raise InputError(
                f"twin_probability: {twins} beside next-sentence prediction, whose pairs it would overwrite; leave one of "
                "them out"
            )
        if self.add_nsp and m.model_name_or_path is None:
            check_pair_type(self.model_type)
        check_repeated_passages(twins, SMALLEST_PIECE)  # the blocks are not known yet

    def _check_watch(self) -> None:
        """Refuse two cadences at once, and flags that nothing would read."""
        given = {name: value for name, value in vars(self.watch).items() if value is not None}
        epochs = [name for name in EPOCHS if name in given]
        cadence = epochs or [name for name in ("validate_every",) if name in given]
        if "validate_every" in given:
            parse_share(given["validate_every"], "validate_every")
            if epochs:
                every = given["validate_every"]
                raise InputError(f"{epochs[0]}: {given[epochs[0]]} beside validate_every {every}; leave one out")
        for name in PROPORTIONS:
            if name in given and not epochs:
                raise InputError(f"{name}: {given[name]:g} belongs to validation_epochs, which is not set; add it")
        if cadence and math.isinf(self.total_seconds):
            raise InputError(
                f"{cadence[0]}: {given[cadence[0]]} goes by shares of the budget, and there is none; add "
                "--total_training_time 24h"
            )
        for one, other in permutations(("early_stop_time", "early_stop_eval_loss")):
            if one in given and other not in given:
                raise InputError(f"{one}: {given[one]} without {other}; give both or none")
        if "early_stop_eval_loss" in given and not cadence:
            raise InputError(
                f"early_stop_eval_loss: {given['early_stop_eval_loss']:g}, and nothing validates; add --validate_every 2%"
            )

    def _push(self) -> PushOptions | None:
        """Only the main process needs a token; no network is asked."""
        asked, card = self.training, self.card
        return resolve_push(
            self.output_dir,
            PushOptions(asked.hub_model_id, asked.hub_private_repo, card.license, card.language),
            push_to_hub=asked.push_to_hub,
            hub_strategy=asked.hub_strategy,
            explicit=self.explicit,
            saves_models=self.budget.finetune_checkpoint_at_end or bool(self.markers),
            main_process=os.environ.get("RANK", "0") == "0",
        )

    def stages(self, block_size: int, accumulation: int | None = None) -> Stages:
        """What changes along the schedule, for blocks of `block_size` tokens; `accumulation` other than the recipe's."""
        curves = ("mlm_probability_curve", "batch_size_curve", "sequence_length_curve")
        return make_stages(
            mlm_probability=self.data.mlm_probability,
            gradient_accumulation_steps=accumulation or self.training.gradient_accumulation_steps,
            block_size=block_size,
            **{name: getattr(self.budget, name) for name in curves},
        )

    def validation_plan(self, samples_per_epoch: int) -> ValidationPlan | None:
        """When to validate during training; None where nothing asks for it. An epoch is one shard per process."""
        w = self.watch
        if w.validate_every is not None:
            return EveryShare(parse_share(w.validate_every, "validate_every"))
        if all(getattr(w, name) is None for name in EPOCHS):
            return None
        usual = dict(zip((*EPOCHS, *PROPORTIONS), (10, 1, 1, 0.1, 0.1), strict=True))
        asked: list[Any] = [value if getattr(w, name) is None else getattr(w, name) for name, value in usual.items()]
        return EveryEpochs(*[*asked, samples_per_epoch])

    def _schedule(self) -> dict[str, Any]:
        """`schedule`, `curve`, `warmup_proportion` and `curve_options`."""
        b = self.budget
        warmup = b.warmup_proportion
        if b.lr_schedule == "constant_step":
            assert self.max_steps is not None
            if b.num_warmup_steps >= self.max_steps:
                raise InputError(
                    f"num_warmup_steps: {b.num_warmup_steps} is not below max_steps {self.max_steps}; lower it"
                )
            warmup = b.num_warmup_steps / self.max_steps
        options: dict[str, Any] = {name: getattr(b, name) for name in _CURVES if getattr(b, name) is not None}
        for name, value in options.items():
            if _CURVES[name] != b.curve:
                raise InputError(f"{name}: {value!r} belongs to curve {_CURVES[name]}, not {b.curve}; leave one out")
        if options.get("decay_step", 0) > 1:
            if self.max_steps is None:
                raise InputError(
                    f"decay_step: {b.decay_step:g} counts steps, and time has none; give a share such as 0.1"
                )
            options["decay_step"] = options["decay_step"] / self.max_steps
        make_curve(b.curve, warmup, **options)  # refuses what is out of range
        kind = "time" if b.lr_schedule == "time" else "step"
        return {"schedule": kind, "curve": b.curve, "warmup_proportion": warmup, "curve_options": options}

    def as_dict(self, args: TrainingArguments) -> dict[str, Any]:
        """Every flag that is read, with its value, for the report and the card; secrets left out.

        `args` says what came of the flags of TrainingArguments in this process.
        """
        groups = (self.model, self.data, self.optimizer, self.budget, self.watch, self.card)
        everything = {name: value for group in groups for name, value in vars(group).items()} | args.to_dict()
        read = [name for name in PARSER.flags if name not in REPLACED and "token" not in name and name in everything]
        asked = {name: everything[name] for name in read}
        return {"recipe": self.path, **asked, "push_to_hub": self.training.push_to_hub}


def speed_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of `Recipe.as_dict` that change how many tokens a budget buys, in the types of JSON: what a plan depends on."""
    found = {name: asked.get(name) for name, known in PARSER.flags.items() if known.speed}
    return dict(json.loads(json.dumps(found, default=str)))


def _seconds(name: str, group: Any) -> float:
    return PARSER.flags[name].seconds(getattr(group, name))


def _parse_markers(value: str | None) -> list[float]:
    """`0.5,0.9` as rising shares in (0, 1)."""
    if value is None:
        return []
    shares = [parse_share(part, "finetune_time_markers") for part in value.split(",")]
    if any(share >= 1 for share in shares) or len(set(shares)) < len(shares):
        raise InputError(f"finetune_time_markers: {value!r} are not different shares below 1; write them as 0.5,0.9")
    return sorted(shares)


def _parse_model_config(text: str | None) -> dict[str, Any] | None:
    value = None
    with suppress(ValueError):
        value = json.loads(text or "{}")
    if not isinstance(value, dict):
        raise InputError(
            f"model_config: {text!r} is not a JSON object; write '{{\"key\": value}}', or a mapping in a recipe"
        )
    return value or None


def _parse_offsets(value: str | None) -> list[int] | None:
    """`-1,1,-2,2` as whole numbers."""
    try:
        return None if value is None else [int(part) for part in value.split(",")]
    except ValueError:
        raise InputError(f"offset_heads: {value!r} are not relative positions; write them as -1,1,-2,2") from None
