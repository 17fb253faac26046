"""What the flags of `WatchArguments` must not contradict. Standard library only.

All arguments of a run together: what they must not contradict, and what follows from several of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from budget_trainer.budget.clock import parse_duration
from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.stages import EveryEpochs, EveryShare, Stages, ValidationPlan, make_stages
from budget_trainer.config.arguments import (
    ADAM_FLAGS,
    REPLACED,
    BudgetArguments,
    CardArguments,
    DataArguments,
    ModelArguments,
    OptimizerArguments,
    RunArguments,
    WatchArguments,
)
from budget_trainer.core.errors import InputError
from budget_trainer.data.repeated_passages import SMALLEST_PIECE, check_twins
from budget_trainer.model.optimizers import check_options
from budget_trainer.model.types import check_pair_type, resolve_model_type
from budget_trainer.reporting.hub import PushOptions
from budget_trainer.reporting.planned import read_plan
from budget_trainer.reporting.publish import resolve_push

EPOCHS = ("validation_epochs", "validation_epochs_begin", "validation_epochs_end")
PROPORTIONS = ("validation_begin_proportion", "validation_end_proportion")


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


def check_watch(watch: Any, total_seconds: float) -> None:
    """Refuse (InputError) numbers out of range, two cadences at once, and flags that nothing would read."""
    given = {name: value for name, value in vars(watch).items() if value is not None}
    _check_numbers(given)
    epochs = [name for name in EPOCHS if name in given]
    cadence = epochs[:1] or [name for name in ("validate_every",) if name in given]
    if "validate_every" in given:
        parse_share(watch.validate_every, "validate_every")
        if epochs:
            raise InputError(
                f"{epochs[0]}: {given[epochs[0]]} beside validate_every {watch.validate_every}; leave one out"
            )
    for name in PROPORTIONS:
        if name in given and not epochs:
            raise InputError(f"{name}: {given[name]:g} belongs to validation_epochs, which is not set; add it")
    if cadence and math.isinf(total_seconds):
        raise InputError(
            f"{cadence[0]}: {given[cadence[0]]} goes by shares of the budget, and there is none; add "
            "--total_training_time 24h"
        )
    pair = [name for name in ("early_stop_time", "early_stop_eval_loss") if name in given]
    if len(pair) == 1:
        other = "early_stop_eval_loss" if pair[0] == "early_stop_time" else "early_stop_time"
        raise InputError(f"{pair[0]}: {given[pair[0]]} without {other}; give both or none")
    if pair and not cadence:
        raise InputError(
            f"early_stop_eval_loss: {watch.early_stop_eval_loss:g}, and nothing validates; add --validate_every 2%"
        )


def _check_numbers(given: dict[str, Any]) -> None:
    for name in (*EPOCHS, "max_bad_steps", "scale_cnt_limit"):
        if given.get(name, 1) < 1:
            raise InputError(f"{name}: {given[name]} is below 1; give a whole number from 1 on")
    if given["max_roll_backs"] < 0:
        raise InputError(f"max_roll_backs: {given['max_roll_backs']} is below 0; give 0 for none, or more")
    for name in PROPORTIONS:
        if not 0 <= given.get(name, 0.1) <= 1:
            raise InputError(f"{name}: {given[name]:g} is not in [0, 1]; give a share of the budget")
    if not 0 < given["roll_back_lr_factor"] <= 1:
        raise InputError(f"roll_back_lr_factor: {given['roll_back_lr_factor']:g} is not in (0, 1]; give 0.5, say")
    if not given["loss_spike"] > 0:
        raise InputError(f"loss_spike: {given['loss_spike']:g} is not above 0; give nats, such as 1.0")


@dataclass
class Recipe:
    """All arguments of a run, checked against each other. Limits in seconds are infinite where there is none."""

    model: ModelArguments
    data: DataArguments
    optimizer: OptimizerArguments
    budget: BudgetArguments
    watch: WatchArguments
    card: CardArguments
    run: RunArguments
    path: str | None = None
    explicit: frozenset[str] = frozenset()  # flags that the recipe or the command line named

    def __post_init__(self) -> None:
        b = self.budget
        self.total_seconds = _limit(b.total_training_time, "total_training_time", "h")
        self.early_exit_seconds = _limit(b.early_exit_time_marker, "early_exit_time_marker", "h")
        self.job_limit_seconds = _limit(b.job_time_limit, "job_time_limit")
        self.checkpoint_seconds = _limit(b.checkpoint_every, "checkpoint_every")
        self.early_stop_seconds = _limit(self.watch.early_stop_time, "early_stop_time", "m")
        self.markers = parse_markers(b.finetune_time_markers)
        self.max_steps = self.run.max_steps if self.run.max_steps > 0 else None
        if self.data.data_dir is None:
            raise InputError("data_dir: missing; add --data_dir with a folder made by `python -m data_prep.blocks`")
        self.data_dir, self.output_dir = Path(self.data.data_dir), Path(str(self.run.output_dir))
        self._check()
        self.plan = read_plan(b.plan, self.path) if b.plan else None
        self.push = self._resolve_push()

    @property
    def model_type(self) -> str:
        """The native type that `model_type` and the original's words for the layout choose."""
        m = self.model
        return resolve_model_type(m.model_type, m.encoder_ln_mode, m.layernorm_embedding, m.layer_norm_type)

    @property
    def add_nsp(self) -> bool:
        """Whether next-sentence prediction is trained; the original also said it by the model type."""
        return self.model.add_nsp or self.model.model_type == "bert-mlm-nsp"

    def seconds_left(self, used: float) -> float:
        """Seconds that this job can train in at most, after `used` seconds of the run."""
        return min(min(self.total_seconds, self.early_exit_seconds) - used, self.job_limit_seconds)

    def _check(self) -> None:
        self._check_numbers()
        self._check_continued()
        self._check_model_type()
        if self.budget.lr_schedule not in ("time", "step", "constant_step"):
            raise InputError(
                f"lr_schedule: {self.budget.lr_schedule!r} is unknown; choose time, step or constant_step"
            )
        if self.budget.lr_schedule == "time" and math.isinf(self.total_seconds):
            raise InputError(
                "total_training_time: missing, and lr_schedule time needs it; add --total_training_time 24h"
            )
        if self.budget.lr_schedule != "time" and self.max_steps is None:
            raise InputError(
                f"max_steps: missing, and lr_schedule {self.budget.lr_schedule} needs it; add --max_steps 23000"
            )
        if not math.isinf(self.early_exit_seconds) and self.early_exit_seconds > self.total_seconds:
            raise InputError(
                f"early_exit_time_marker: {self.budget.early_exit_time_marker} is beyond total_training_time "
                f"{self.budget.total_training_time}; lower it or leave it out"
            )
        if math.isinf(self.total_seconds) and self.markers:
            raise InputError(
                "finetune_time_markers: shares of the budget, and there is none; add --total_training_time 24h"
            )
        check_watch(self.watch, self.total_seconds)
        adam = {name: getattr(self.run, name) for name in ADAM_FLAGS}
        own = {name: value for name, value in vars(self.optimizer).items() if not isinstance(value, str)}
        check_options(self.optimizer.optimizer_type, **adam, **own)
        if {"mlm_probability", "mlm_probability_curve"} <= self.explicit and self.budget.mlm_probability_curve:
            raise InputError(
                f"mlm_probability: {self.data.mlm_probability} beside mlm_probability_curve "
                f"{self.budget.mlm_probability_curve}, which says it all; leave one of them out"
            )
        if self.model.cross_entropy not in ("chunked", "full"):
            raise InputError(f"cross_entropy: {self.model.cross_entropy!r} is unknown; choose chunked or full")
        schedule = self.schedule()
        make_curve(schedule["curve"], schedule["warmup_proportion"], **schedule["curve_options"])

    def _resolve_push(self) -> PushOptions | None:
        """How to push. Trainer is not told of it: it would push between two steps, and wait for it."""
        run, card = self.run, self.card
        asked, run.push_to_hub = run.push_to_hub, False
        return resolve_push(
            self.output_dir,
            PushOptions(run.hub_model_id, run.hub_private_repo, card.license, card.language),
            push_to_hub=asked,
            hub_strategy=str(getattr(run.hub_strategy, "value", run.hub_strategy)),
            explicit=self.explicit,
            saves_models=self.budget.finetune_checkpoint_at_end or bool(self.markers),
            main_process=run.process_index == 0,
        )

    def _check_numbers(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self.run, name) < 1:
                raise InputError(f"{name}: {getattr(self.run, name)} is below 1; give a whole number from 1 on")
        epochs = self.budget.num_epochs_between_checkpoints
        if epochs is not None and epochs < 1 and epochs != -1:
            raise InputError(f"num_epochs_between_checkpoints: {epochs} is below 1; give 1 or more, or -1 for never")
        if self.model.embedding_init not in ("normal", "cooccurrence"):
            name = self.model.embedding_init
            raise InputError(f"embedding_init: {name!r} is unknown; choose normal or cooccurrence")
        if self.budget.num_warmup_steps < 0:
            raise InputError(f"num_warmup_steps: {self.budget.num_warmup_steps} is below 0; give 0 or more")

    def stages(self, block_size: int) -> Stages:
        """What changes along the schedule, for blocks of `block_size` tokens."""
        b = self.budget
        return make_stages(
            mlm_probability=self.data.mlm_probability,
            gradient_accumulation_steps=self.run.gradient_accumulation_steps,
            block_size=block_size,
            mlm_probability_curve=b.mlm_probability_curve,
            batch_size_curve=b.batch_size_curve,
            sequence_length_curve=b.sequence_length_curve,
        )

    def validation_plan(self, samples_per_epoch: int) -> ValidationPlan | None:
        """When to validate during training; None where nothing asks for it. An epoch is one shard per process."""
        w = self.watch
        if w.validate_every is not None:
            return EveryShare(parse_share(w.validate_every, "validate_every"))
        if w.validation_epochs is None and w.validation_epochs_begin is None and w.validation_epochs_end is None:
            return None
        return EveryEpochs(
            middle=10 if w.validation_epochs is None else w.validation_epochs,
            begin=1 if w.validation_epochs_begin is None else w.validation_epochs_begin,
            end=1 if w.validation_epochs_end is None else w.validation_epochs_end,
            begin_proportion=0.1 if w.validation_begin_proportion is None else w.validation_begin_proportion,
            end_proportion=0.1 if w.validation_end_proportion is None else w.validation_end_proportion,
            samples_per_epoch=samples_per_epoch,
        )

    def _check_continued(self) -> None:
        """A checkpoint brings its architecture: flags that would be ignored beside it are refused."""
        if self.model.model_name_or_path is None:
            return
        heeded = {
            "model_name_or_path",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "sparse_mask_prediction",
            "sparse_last_layer",
            "cross_entropy",
            "add_nsp",
        }
        if self.model.layer_norm_type != "rms_norm":  # only another kernel on the same weights
            heeded.add("layer_norm_type")
        for name in sorted(self.explicit & {f.name for f in fields(ModelArguments)} - heeded):
            raise InputError(
                f"{name}: cannot be set beside model_name_or_path {self.model.model_name_or_path}, which brings its own; "
                "leave one of them out"
            )

    def _check_model_type(self) -> None:
        model_type = self.model_type
        if self.model.model_type == "bert-mlm-nsp" and "add_nsp" in self.explicit and not self.model.add_nsp:
            raise InputError("add_nsp: false contradicts model_type bert-mlm-nsp; use model_type bert-mlm")
        check_twins(self.data.twin_probability, SMALLEST_PIECE)  # the blocks are not known yet
        if self.add_nsp and self.data.twin_probability:
            raise InputError(
                f"twin_probability: {self.data.twin_probability} beside next-sentence prediction, whose pairs it would "
                "overwrite; leave one of them out"
            )
        if self.add_nsp and self.model.model_name_or_path is None:
            check_pair_type(model_type)

    def schedule(self) -> dict[str, Any]:
        """`schedule`, `curve`, `warmup_proportion` and `curve_options` as TimeScheduleMixin takes them."""
        b = self.budget
        warmup = b.warmup_proportion
        if b.lr_schedule == "constant_step":
            assert self.max_steps is not None
            if b.num_warmup_steps >= self.max_steps:
                raise InputError(
                    f"num_warmup_steps: {b.num_warmup_steps} is not below max_steps {self.max_steps}; lower it"
                )
            warmup = b.num_warmup_steps / self.max_steps
        options: dict[str, Any] = {
            name: getattr(b, name)
            for name in ("decay_rate", "decay_step", "decay_proportion", "decay_shape")
            if getattr(b, name) is not None
        }
        owner = {"decay_rate": "exp", "decay_step": "exp", "decay_proportion": "wsd", "decay_shape": "wsd"}
        for name, value in options.items():
            if owner[name] != b.curve:
                raise InputError(f"{name}: {value!r} belongs to curve {owner[name]}, not {b.curve}; leave one out")
        if options.get("decay_step", 0) > 1:
            if self.max_steps is None:
                raise InputError(
                    f"decay_step: {b.decay_step:g} counts steps, and time has none; give a share such as 0.1"
                )
            options["decay_step"] = options["decay_step"] / self.max_steps
        kind = "time" if b.lr_schedule == "time" else "step"
        return {"schedule": kind, "curve": b.curve, "warmup_proportion": warmup, "curve_options": options}

    def as_dict(self) -> dict[str, Any]:
        """Every flag that is read, with its value, for the report and the card; secrets left out."""
        everything: dict[str, Any] = {}
        for group in (self.model, self.data, self.optimizer, self.budget, self.watch, self.card, self.run):
            own = group.to_dict() if isinstance(group, TrainingArguments) else vars(group)
            read = [f.name for f in fields(group) if f.name not in REPLACED and "token" not in f.name]
            everything |= {name: own[name] for name in read if name in own}
        return {"recipe": self.path, **everything, "push_to_hub": self.push is not None}


def _limit(value: str | None, name: str, bare_unit: str | None = None) -> float:
    return math.inf if value is None else parse_duration(value, name, bare_unit)


def parse_markers(value: str | None) -> list[float]:
    """`0.5,0.9` as rising shares in (0, 1)."""
    if value is None:
        return []
    shares = [parse_share(part, "finetune_time_markers") for part in value.split(",")]
    if any(share >= 1 for share in shares) or len(set(shares)) < len(shares):
        raise InputError(f"finetune_time_markers: {value!r} are not different shares below 1; write them as 0.5,0.9")
    return sorted(shares)


def parse_offsets(value: str) -> list[int]:
    """`-1,1,-2,2` as whole numbers."""
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise InputError(f"offset_heads: {value!r} are not relative positions; write them as -1,1,-2,2") from None
