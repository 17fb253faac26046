"""One run on GLUE, a task with a seed and a configuration: from its flags to `result.json`."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError, StopAsked
from budget_trainer.core.io import fresh_folder, publish_folder, write_atomic, write_json_atomic
from budget_trainer.glue.arguments import Request
from budget_trainer.glue.data import load_task
from budget_trainer.glue.model import load_checkpoint, load_classifier
from budget_trainer.glue.results import MODEL, PREDICTIONS, RESULT, card_scores, read_result, write_result
from budget_trainer.glue.tasks import Task
from budget_trainer.glue.trainer import GlueTrainer, Predictor, Rows, predict
from budget_trainer.reporting.card import FINE_TUNING, GLUE_REPORT
from budget_trainer.reporting.energy import EnergyMeter, account
from budget_trainer.reporting.publish import BackgroundPush
from budget_trainer.reporting.report import environment
from budget_trainer.training import launch
from budget_trainer.training.engine import resolve_engine
from budget_trainer.training.recovery import explain_out_of_memory
from budget_trainer.training.run_folder import RunFolder, discard, staging_folder

log = logging.getLogger(__name__)
_PROBE_BATCHES = 2
_FIXED_SECONDS = 1.0  # what does not grow with the model: seen 0.7 s too late of 44 beside other work
_UNEVEN = 1.2  # a later evaluation may take so much longer than the one measured
# Flags that change what a run computes; `lr_scheduler_type`, the number of processes and the device are noted beside them.
_GLUE_FLAGS = """max_seq_length pad_to_max_length max_train_samples max_eval_samples max_predict_samples
early_stopping_patience total_training_time""".split()
_RUN_FLAGS = """learning_rate per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps weight_decay
adam_beta1 adam_beta2 adam_epsilon max_grad_norm warmup_steps eval_strategy eval_steps bf16 fp16 train_sampling_strategy
label_smoothing_factor""".split()


class GlueRun:
    """One run. Every rank calls its methods, in this order.

    Nothing is written before `claim_folder`. The methods raise InputError or RunError, and StopAsked on all ranks where a
    signal has come to any of them.
    """

    def __init__(
        self, request: Request, clock: BudgetClock, stop: StopRequest, energy: EnergyMeter | None = None
    ) -> None:
        """Start the processes' communication and check what can be checked without folder, data and model.

        `energy` counts since the clock began; None: from here on.
        """
        self.request, self.args, self.output_dir = request, request.run, request.output_dir
        self.energy = energy or EnergyMeter(clock)
        self.task, self.clock, self.labels_assumed = request.tasks[0], clock, False
        launch.prepare(self.args, request.explicit, compiles=False)
        engine = resolve_engine(self.args)
        if engine in ("deepspeed-zero3", "fsdp"):  # scoring, and keeping the best weights, would gather them each time
            shards = f"{engine} shards the weights, which an encoder on GLUE does not need"
            raise InputError(
                f"distributed_type: {shards}; launch with accelerate_configs/ddp.yaml, zero1.yaml or zero2.yaml"
            )
        if not math.isinf(clock.total_seconds):
            GlueTrainer.curve_name(self.args)  # refuses early what does not follow time
        self.agreement = Agreement(ControlChannel(timeout_seconds=min(600.0, self.args.ddp_timeout)), stop)
        launch.count_devices(self.energy, self.args, self.agreement.channel)
        self.energy.keep_reading()

    @contextmanager
    def owned_folder(self) -> Iterator[None]:
        """The output folder is this run's during the block. InputError where it has a result already, or another owner."""
        with RunFolder(self.output_dir).owned(self.agreement.channel):
            there = [name for name in (RESULT, PREDICTIONS, MODEL) if (self.output_dir / name).exists()]
            if there and not self.request.glue.overwrite_output_dir:
                has = f"{self.output_dir} already has {there[0]}"
                raise InputError(
                    f"output_dir: {has}; add --overwrite_output_dir to replace it, or give another folder"
                )
            yield

    def load(self) -> None:
        """Load and check the data, the checkpoint's folder and the tokenizer, and encode the rows."""
        glue, args = self.request.glue, self.args
        self.data = load_task(self.task, self.request.glue_dir, glue.dataset_name)
        self.data.check(do_train=args.do_train, do_eval=args.do_eval, do_predict=args.do_predict)
        self.splits = [(split, owner) for split, owner in self.task.answered if split.name in self.data.splits]
        for split, _ in self.splits:
            limit = glue.max_predict_samples if split.is_test else glue.max_eval_samples
            limit = glue.max_train_samples if split is self.task.train else limit
            self.data.splits[split.name] = self.data.splits[split.name].first(limit)
        self.folder, self.tokenizer, self.digest = load_checkpoint(str(glue.model_name_or_path), glue.tokenizer_name)
        dev = self.task.dev if args.do_eval else ()
        self.dev = {split.name: self._encoded(split.name) for split in dev if split.name in self.data.splits}
        self.test = [split.name for split, _ in self.splits if split.is_test and args.do_predict]

    def _encoded(self, split: str) -> Rows:
        return Rows(self.tokenizer, self.data.splits[split], self.request.glue.max_seq_length)

    def build_trainer(self) -> None:
        """The model with a head for the task, and the Trainer with the budget."""
        args, glue = self.args, self.request.glue
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        if glue.pad_to_max_length:
            collator = DataCollatorWithPadding(self.tokenizer, padding="max_length", max_length=glue.max_seq_length)
        else:  # to the longest row of a batch; on a GPU to a multiple of 8, for its matrix units
            multiple = 8 if args.device.type == "cuda" else None
            collator = DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=multiple)
        self.predictor = Predictor(collator, args.per_device_eval_batch_size, args.device, self.agreement, dtype)
        if not self.dev:
            args.eval_strategy = "no"
        self.model = self._classifier(self.folder, glue.max_seq_length, new_head=args.do_train)
        self.trainer = GlueTrainer(
            model=self.model,
            args=args,
            train_dataset=self._encoded("train") if args.do_train else None,
            data_collator=collator,
            processing_class=self.tokenizer,
            time_budget=TimeBudgetCallback(clock=self.clock, agreement=self.agreement),
            task=self.task,
            dev=self.dev,
            predictor=self.predictor,
            patience=glue.early_stopping_patience,
        )
        if self.agreement.agree_on_stop():
            raise StopAsked(f"{self.agreement.stop_asked_by} during set-up")

    def claim_folder(self) -> None:
        """Make the folder, and remove what an earlier run left of its result; nothing else in it is touched."""
        if self.args.should_save:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / RESULT).unlink(missing_ok=True)  # first: what is half removed is not finished
            for name in (PREDICTIONS, MODEL):
                shutil.rmtree(self.output_dir / name, ignore_errors=True)

    def train(self) -> None:
        """Train as long as the budget lets or the epochs say; the best weights by the dev score become the model.

        Without do_train the checkpoint's own weights are scored.
        """
        if not self.args.do_train:
            if self.args.do_eval:
                self.trainer.evaluate()
            return
        if not math.isinf(self.clock.total_seconds):
            self._reserve_end()
        with explain_out_of_memory(self.args):
            self.trainer.train()
        if self.trainer.time_budget.stop_reason == "stop_requested":
            raise StopAsked(f"{self.agreement.stop_asked_by} during training")
        self.trainer.evaluate_last_weights()
        self._keep_best()

    def _reserve_end(self) -> None:
        """Reserve the time for one evaluation, the predictions, and writing and reading the model: a few batches are timed."""
        trainer, budget, clock = self.trainer, self.trainer.time_budget, self.clock
        begin = clock.elapsed_seconds()
        with clock.phase("save"):
            if self.args.should_save:
                self.model.save_pretrained(fresh_folder(staging_folder(self.output_dir / MODEL)))
                discard(self.output_dir / MODEL)
        save, begin = clock.elapsed_seconds() - begin, clock.elapsed_seconds()
        rows: Any = next(iter(self.dev.values()), trainer.train_dataset)
        with clock.phase("evaluate"):
            self.predictor.logits(self.model, rows, _PROBE_BATCHES)
        probed = min(len(rows), _PROBE_BATCHES * self.predictor.batch_size * self.args.world_size)
        per_row = _UNEVEN * (clock.elapsed_seconds() - begin) / probed
        budget.evaluate_seconds = per_row * sum(len(split) for split in self.dev.values())
        tested = sum(len(self.data.splits[name]) for name in self.test)
        score = budget.evaluate_seconds + per_row * tested
        budget.save_seconds = 2 * budget.save_allowance(save) + score + _FIXED_SECONDS

    def _keep_best(self) -> None:
        """Write the best weights, which only one rank holds, to `model/`, and read them back as a plain model on every rank."""
        target, trainer = self.output_dir / MODEL, self.trainer
        with self.clock.phase("save"):
            if self.args.should_save:
                staging = fresh_folder(staging_folder(target))
                self.model.save_pretrained(staging, state_dict=trainer.best_state)
                self.tokenizer.save_pretrained(staging)
                publish_folder(staging, target)
                trainer.best_state = None
            self.agreement.channel.barrier()
            self.model = self._classifier(target, 1, new_head=False)

    def _classifier(self, folder: Path, max_seq_length: int, new_head: bool) -> Any:
        model = load_classifier(folder, self.task, self.tokenizer, max_seq_length, self.args.seed, new_head)
        self.labels_assumed |= model.labels_assumed
        return model

    def predict(self) -> None:
        """The logits of every split: of dev those that were scored, of the test splits the model's."""
        self.logits = dict(self.trainer.best_logits)
        with self.clock.phase("evaluate"):
            self.logits |= {name: self.predictor.logits(self.model, self._encoded(name)) for name in self.test}

    def write_result(self) -> None:
        """Write the predictions and, last, `result.json` (main process); the budget ends here."""
        if self.args.should_save:
            with self.clock.phase("save"):
                scored = [(split.name, owner) for split, owner in self.splits if split.name in self.logits]
                paths = {name: self._write_predictions(name, owner) for name, owner in scored}
                if not self.request.glue.save_model:
                    shutil.rmtree(self.output_dir / MODEL, ignore_errors=True)
            self.clock.stop()
        taken = None if self.args.should_save else self.energy.take()
        for record in filter(None, self.agreement.channel.gather(taken)):
            self.energy.add(record)  # on the rank that writes, what other machines have counted
        if self.args.should_save:
            write_result(self.output_dir, self._result(paths))
            if (value := self.trainer.headline) is not None:
                log.info("%s: %s %.4f on dev; %s", self.task.name, self.task.headline, value, self.output_dir / RESULT)
        self.agreement.channel.barrier()

    def _write_predictions(self, split: str, task: Task) -> str:
        """Write a split's outputs, row i of its official file as row i; returns the path inside of `output_dir`.

        `logits` [rows][classes] as the model gave them (STS-B: [rows][1], the score), `predictions` class numbers or scores,
        `label_names` in the order of the classes (empty for STS-B), `references` the labels of a dev split, null in test.
        """
        logits = self.logits[split]
        content = {
            "task": task.name,
            "split": split,
            "rows": len(logits),
            "label_names": list(task.labels),
            "predictions": predict(task, split, logits).tolist(),
            "references": self.dev[split].labels.tolist() if split in self.dev else None,
            "logits": [[round(float(value), 6) for value in row] for row in logits],
        }
        path = f"{PREDICTIONS}/{split}.json"
        (self.output_dir / PREDICTIONS).mkdir(exist_ok=True)
        write_atomic(self.output_dir / path, json.dumps(content) + "\n")
        return path

    def _result(self, predictions: dict[str, str]) -> dict[str, Any]:
        """`result.json`: `metrics` of the best evaluation, the `headline` that chose it, how, from what, on what; seconds."""
        args, trainer, best, budget = self.args, self.trainer, self.trainer.best, self.trainer.time_budget
        model: Any = trainer.model
        trained_best = best if args.do_train else None
        return {
            "task": self.task.name,
            "seed": args.seed,
            "model": {
                "name_or_path": self.request.glue.model_name_or_path,
                "sha256": self.digest,
                "type": model.config.model_type,
                "parameters": sum(p.numel() for p in model.parameters()),
            },
            "configuration": self._configuration(),
            "headline": {
                "metric": self.task.headline,
                "split": best and next(iter(self.dev)),
                "value": trainer.headline,
            },
            "labels_assumed": self.labels_assumed,
            "metrics": best["metrics"] if best else {},
            "evaluations": trainer.evaluations,
            "best_epoch": trained_best and trained_best["epoch"],
            "best_step": trained_best and trained_best["step"],
            "steps": trainer.state.global_step,
            "epochs": round(trainer.state.epoch or 0.0, 4),
            "stopped_by": (budget.stop_reason or "num_train_epochs") if args.do_train else None,
            "seconds": {"total": self.clock.elapsed_seconds(), **self.clock.seconds_by_phase()},
            "energy": account(
                self.energy.record(),
                self.clock.elapsed_seconds(),
                self.request.card.country_iso_code,
                self.request.card.price_per_hour,
            ),
            "budget_seconds": self.request.total_seconds,
            "rows": {name: len(examples) for name, examples in self.data.splits.items()},
            "official_rows": self.data.official(),
            "absent_splits": self.data.absent,
            "data_sha256": self.data.digest,
            "predictions": predictions,
            "environment": {**environment(), "device": args.device.type, "processes": args.world_size},
        }

    def _configuration(self) -> dict[str, Any]:
        """The flags that change what a run computes, with their values; of an enumeration its value."""
        flags = {name: getattr(self.request.glue, name) for name in _GLUE_FLAGS}
        flags |= {name: getattr(self.args, name) for name in (*_RUN_FLAGS, "lr_scheduler_type")}
        return {name: getattr(value, "value", value) for name, value in flags.items()}

    def push(self) -> None:
        """Push `model/` where that was asked for, and write into `result.json`, at `hub`, what came of it (main process).

        A push that fails changes nothing else. It waits for the Hub, outside of the budget.
        """
        options, result = self.request.push, read_result(self.output_dir)
        if not self.args.should_save or options is None or result is None:
            return
        model = self.output_dir / MODEL
        rate, flags = result["configuration"]["learning_rate"], self.request.own_flags()
        scores = card_scores(self.task, {rate: result["metrics"]}, rate, result["rows"], seeds=1, flags=flags)
        write_json_atomic(model / GLUE_REPORT, {"scores": scores, FINE_TUNING: _used(result)})
        write_result(self.output_dir, {**result, "hub": BackgroundPush(model, options).finish()})


def _used(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's card says of a run beside its scores, under the names of `run_report.json`."""
    where = result["environment"]
    known = {name: where.get(name) for name in ("hardware", "versions", "git_commit")}
    return {"energy": result.get("energy"), "world_size": where.get("processes"), **known}
