"""What happens while a run trains: what is saved and validated when, stages, the guard against bad steps, progress.

Every decision comes from the agreed reading of `TimeBudgetCallback` and from counts that are equal on all ranks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TextIO

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback

from budget_trainer.budget.callback import TimeBudgetCallback, store_state, stored_state
from budget_trainer.budget.clock import format_duration
from budget_trainer.budget.stages import Stage, Stages, ValidationPlan
from budget_trainer.config.arguments import WatchArguments
from budget_trainer.core.errors import RunError
from budget_trainer.core.io import json_types

if TYPE_CHECKING:
    from budget_trainer.training.trainer import TimeBudgetTrainer

log = logging.getLogger(__name__)
# In TrainerState.stateful_callbacks.
_VALIDATION_KEY, _PROGRESS_KEY, _GUARD_KEY = "validation", "progress", "guard"
_LOWEST_SCALE = 1.0
_LINES_FOR_SPIKES = 20
_LOGGED = (
    "loss masked_loss detection_loss learning_rate grad_norm tokens_per_second tflops mfu data_wait_share bad_steps "
    "predicted_share mlm_probability batch_size sequence_length"
).split()  # of a training line
_WORK = ("train", "data_wait", "compile")  # phases of the clock


class EarlyStop(TrainerCallback):
    """Stops where a validation after `early_stop_time` (seconds of the budget) has a loss above `early_stop_eval_loss`.

    The original's rule (run_pretraining.py:459). The run ends in good order, with the stop reason `early_stop`.
    """

    def __init__(self, time_budget: TimeBudgetCallback, early_stop_time: float, early_stop_eval_loss: float) -> None:
        self.time_budget = time_budget
        self.early_stop_time, self.early_stop_eval_loss = early_stop_time, early_stop_eval_loss

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss, elapsed = (kwargs.get("metrics") or {}).get("eval_loss"), self.time_budget.reading.elapsed
        if loss is None or control.should_training_stop or elapsed < self.early_stop_time:
            return
        if not loss <= self.early_stop_eval_loss:
            self.time_budget.stop_reason = "early_stop"
            control.should_training_stop = control.should_log = True
            if state.is_world_process_zero:
                why = f"after {elapsed:.0f}s the validation loss is {loss:.3f}, above {self.early_stop_eval_loss:g}"
                log.warning("step %d: training stops (early_stop): %s", state.global_step, why)


def _marker_folder(output_dir: Path, share: float) -> Path:
    """`finetune-<percent>`, without trailing zeros: 0.5 -> finetune-50, 0.125 -> finetune-12.5."""
    return output_dir / f"finetune-{round(share * 100, 6):g}"


class FinetuneMarkers(TrainerCallback):
    """Keeps the model at shares of the budget (`finetune_time_markers`), each once over all jobs of a run.

    A marker that no longer fits beside the final save becomes a copy of it (`in_final`, `RunFolder.copy_final`): by then the
    weights are the same.
    """

    def __init__(self, trainer: TimeBudgetTrainer, markers: Sequence[float], output_dir: str | Path) -> None:
        self.trainer, self.time_budget, self.output_dir = trainer, trainer.time_budget, Path(output_dir)
        # A marker's folder says that it was kept: looked for once, at the start, by the main process for all.
        waiting = [share for share in markers if not _marker_folder(self.output_dir, share).exists()]
        self.waiting: list[float] = self.time_budget.channel.gather(waiting)[0]

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for share in [share for share in self.waiting if self.time_budget.share >= share]:
            if self.time_budget.reserve(self.time_budget.reading.save):
                self.waiting.remove(share)
                self.trainer.save_folder(_marker_folder(self.output_dir, share))

    def in_final(self) -> list[str]:
        """After the budget has ended: the folders of the markers that lay within the reserve."""
        if self.time_budget.stop_reason != self.time_budget.end_reason:
            return []  # max_steps came first: their time never did
        end = self.time_budget.end_seconds / self.time_budget.total_seconds
        return [_marker_folder(self.output_dir, share).name for share in self.waiting if share <= end]


class CheckpointCadence(TrainerCallback):
    """A training checkpoint every `every_seconds` of the budget and every `every_samples` samples.

    Both count from the start of the run. One that would endanger the final save is left out.
    """

    def __init__(self, trainer: TimeBudgetTrainer, every_seconds: float, every_samples: int | None = None) -> None:
        self.trainer, self.time_budget = trainer, trainer.time_budget
        self.every_seconds, self.every_samples = every_seconds, every_samples
        self._last = (0, 0)

    def _counts(self) -> tuple[int, int]:
        timed = int(self.time_budget.reading.elapsed // self.every_seconds)
        return timed, 0 if self.every_samples is None else self.trainer.samples_consumed // self.every_samples

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = self._counts()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        counts = self._counts()
        if counts != self._last and self.time_budget.reserve(self.time_budget.reading.checkpoint):
            control.should_save = True
        self._last = counts


class ValidationCadence(TrainerCallback):
    """The pinned evaluation whenever `plan` says so, each mark once, unless that would endanger the final save."""

    def __init__(self, trainer: TimeBudgetTrainer, plan: ValidationPlan) -> None:
        self.trainer, self.time_budget, self.plan = trainer, trainer.time_budget, plan
        self._last = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = int(stored_state(state, _VALIDATION_KEY).get("last", 0))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        mark = self.plan.mark(self._last, self.time_budget.share, self.trainer.samples_consumed)
        if mark > self._last and self.time_budget.reserve(self.time_budget.reading.evaluate):
            control.should_evaluate = True
        self._last = mark
        store_state(state, _VALIDATION_KEY, {"last": mark})


class ProgressLog(TrainerCallback):
    """One JSON line per log in `progress.jsonl` (main process), and the trail of learning rates (every process).

    A training line has `job`, `elapsed_seconds`, `share`, `step`, `loss`, `learning_rate`, `grad_norm`, what `Throughput`
    measured since the line before, the parts of the loss where there are two and, with stages, the realised masking rate,
    batch and sequence length; a validation
    line has `evaluation` instead. `rates_sha256` is the same on all ranks if and only if they took the same steps at bit-equal
    learning rates.
    """

    def __init__(self, time_budget: TimeBudgetCallback, path: str | Path, job: int) -> None:
        self.time_budget, self.path, self.job = time_budget, Path(path), job
        self.steps = 0
        self.learning_rate_last = self.learning_rate_peak = 0.0
        self._rates = hashlib.sha256()
        self._stream: TextIO | None = None

    @property
    def rates_sha256(self) -> str:
        return self._rates.hexdigest()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")  # by a crash
            self._stream = open(self.path, "a", encoding="utf-8")
            if cut:
                self._stream.write("\n")
        self.restore(state)

    def restore(self, state: TrainerState) -> None:
        """Go on from the steps and rates of earlier jobs of the run."""
        vars(self).update(stored_state(state, _PROGRESS_KEY))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        names = ("steps", "learning_rate_last", "learning_rate_peak")
        store_state(state, _PROGRESS_KEY, {name: getattr(self, name) for name in names})

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The rates that this update will use."""
        rates = [float(group["lr"]) for group in kwargs["optimizer"].param_groups]
        self._rates.update("".join(rate.hex() for rate in rates).encode())
        self.steps += 1
        self.learning_rate_last = rates[0]
        self.learning_rate_peak = max(self.learning_rate_peak, rates[0])

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        share = self.time_budget.share
        line: dict[str, Any] = {
            "job": self.job,
            "elapsed_seconds": round(self.time_budget.reading.elapsed, 3),
            "share": None if math.isinf(self.time_budget.total_seconds) else round(share, 6),
            "step": state.global_step,
        }
        if "loss" in logs:
            line |= {name: logs[name] for name in _LOGGED if name in logs}
        elif "eval_loss" in logs:
            line["evaluation"] = {
                name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")
            }
        else:
            return
        if self._stream is not None:
            with suppress(OSError):  # a full disk: the line waits in the buffer, and the next save raises
                self._stream.write(json.dumps(json_types(line), allow_nan=False) + "\n")  # null is what is not finite
                self._stream.flush()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
            self._stream = None


class BudgetProgressBar(TrainerCallback):
    """`12.4/60.0 min, 47m36s left · loss 2.31 · lr 8.1e-04 · 18,300 tokens/s · validation 2.40`, the last one.

    Steps where there is no time budget.
    """

    def __init__(self, time_budget: TimeBudgetCallback) -> None:
        self.time_budget = time_budget
        self._bar: tqdm | None = None
        self._shown = 0.0
        self._pause = 0.2
        self._tail = self._validated = ""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and not args.disable_tqdm:
            timed = not math.isinf(self.time_budget.end_seconds)
            total = self.time_budget.end_seconds / 60 if timed else state.max_steps
            head = "{percentage:3.0f}%|{bar}| "
            layout = head + ("{desc}" if timed else "{n_fmt}/{total_fmt} steps{desc}")
            self._pause = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log file needs no more
            self._bar = tqdm(total=total, bar_format=layout, dynamic_ncols=True)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = self.time_budget.reading.elapsed
        if self._bar is None or now - self._shown < self._pause:
            return
        self._shown = now
        if math.isinf(self.time_budget.end_seconds):
            self._bar.n, text = state.global_step, ""
        else:
            minutes = now / 60
            self._bar.n = min(minutes, self._bar.total)
            left = format_duration(round(max(0.0, self.time_budget.end_seconds - now)))
            text = f"{minutes:.1f}/{self._bar.total:.1f} min, {left} left"
        self._bar.set_description_str(text + self._tail + self._validated, refresh=True)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            rate = logs.get("tokens_per_second", 0.0)
            self._tail = f" · loss {logs['loss']:.3f} · lr {logs['learning_rate']:.1e} · {rate:,.0f} tokens/s"
        elif logs and "eval_loss" in logs:
            self._validated = f" · validation {logs['eval_loss']:.3f}"

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ShareAxis(TrainerCallback):
    """Makes the used share of the budget an axis of the trackers, beside the step: `share` is in every line of the log.

    Weights & Biases draws everything over `train/share`. TensorBoard, whose axis is a whole number, gets each curve once more
    as `by_share/...` over 10,000ths of the budget. Trackio's page offers every metric as an axis. Without a time budget
    nothing changes. `trackers`: the callbacks of the Trainer, among which TensorBoard's may be.
    """

    def __init__(self, time_budget: TimeBudgetCallback, trackers: Sequence[TrainerCallback]) -> None:
        self.time_budget = time_budget
        self._board = next((one for one in trackers if isinstance(one, TensorBoardCallback)), None)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The callbacks of the trackers came before: what they write to is open."""
        if not state.is_world_process_zero or math.isinf(self.time_budget.total_seconds):
            return
        if "wandb" in (args.report_to or ()):
            import wandb

            wandb.define_metric("train/share")
            wandb.define_metric("*", step_metric="train/share", step_sync=True, overwrite=True)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        writer: Any = None if self._board is None else self._board.tb_writer
        if writer is None or math.isinf(self.time_budget.total_seconds):
            return
        for name, value in (logs or {}).items():
            if isinstance(value, int | float):
                kind = "eval" if name.startswith("eval_") else "train"
                tag = f"by_share/{kind}/{name.removeprefix('eval_')}"
                writer.add_scalar(tag, value, round(10_000 * self.time_budget.share))
        writer.flush()


class Guard(TrainerCallback):
    """Goes back to the last good checkpoint where losses or gradients are not finite, and ends runs that diverge.

    After `max_bad_steps` in a row, or a validation loss that is not finite, `trainer.roll_back()` brings back the newest
    checkpoint if there is one, and from there on every learning rate is `roll_back_lr_factor` of what it would be; time and
    data go on. After `max_roll_backs` of these, or `scale_cnt_limit` steps at fp16's lowest loss scale, the run ends with
    RunError. A logged loss of `loss_spike` nats above the median of the last lines is reported.
    """

    def __init__(self, trainer: TimeBudgetTrainer, limits: WatchArguments) -> None:
        self.trainer, self.limits = trainer, limits
        self.bad_steps = self.roll_backs = self.loss_spikes = 0
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=_LINES_FOR_SPIKES)
        self._scale_low_since: int | None = None

    def counts(self) -> dict[str, Any]:
        """For the report: how often each of these happened over all jobs of the run, and the factor of the rates."""
        return {
            "bad_steps": self.bad_steps,
            "roll_backs": self.roll_backs,
            "loss_spikes": self.loss_spikes,
            "rate_factor": self.trainer.learning_rate_factor,
        }

    def restore(self, state: TrainerState) -> None:
        """Go on from the counts of earlier jobs of the run."""
        counts = {**self.counts(), **stored_state(state, _GUARD_KEY)}
        self.trainer.learning_rate_factor = counts.pop("rate_factor")
        vars(self).update(counts)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.restore(state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.time_budget.bad_step:
            self.bad_steps += 1
            self._in_a_row += 1
            self._warn(state, "a loss or gradient is not finite, the step has no effect (%d in a row)", self._in_a_row)
            if not control.should_training_stop:
                control.should_save = False  # the last good checkpoint is the one before
        else:
            self._in_a_row = 0
        if self._in_a_row >= self.limits.max_bad_steps and not control.should_training_stop:
            self._roll_back(state, f"{self._in_a_row} steps in a row had a loss or gradient that is not finite")
        store_state(state, _GUARD_KEY, self.counts())

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = (kwargs.get("metrics") or {}).get("eval_loss")
        if loss is not None and not math.isfinite(loss) and not control.should_training_stop:
            control.should_save = False
            self._roll_back(state, "the validation loss is not finite")

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self._check_loss_scale(state)
        usual = median(self._losses) if len(self._losses) == _LINES_FOR_SPIKES else math.inf
        if math.isfinite(loss):
            self._losses.append(loss)
            if loss > usual + self.limits.loss_spike:
                self.loss_spikes += 1
                self._warn(state, "loss spike: %.3f, the lines before had a median of %.3f", loss, usual)

    def _check_loss_scale(self, state: TrainerState) -> None:
        scale = self.trainer.loss_scale()
        if scale is None or scale > _LOWEST_SCALE:
            self._scale_low_since = None
            return
        if self._scale_low_since is None:
            self._scale_low_since = state.global_step
        steps = state.global_step - self._scale_low_since
        if steps >= self.limits.scale_cnt_limit:
            raise RunError(
                f"fp16's loss scale is at {scale:g} for {steps} steps (scale_cnt_limit {self.limits.scale_cnt_limit}) at step "
                f"{state.global_step}; use --bf16, or lower the learning rate"
            )

    def _roll_back(self, state: TrainerState, why: str) -> None:
        """Every rank comes here at the same step: what led here was agreed on."""
        if self.roll_backs >= self.limits.max_roll_backs:
            raise RunError(
                f"step {state.global_step}: {why}, after {self.roll_backs} roll-backs (max_roll_backs "
                f"{self.limits.max_roll_backs}); lower learning_rate"
            )
        self.trainer.learning_rate_factor *= self.limits.roll_back_lr_factor
        checkpoint = self.trainer.roll_back() or "the weights as they are, there is no checkpoint yet"
        self.roll_backs += 1
        self._in_a_row = 0
        self._losses.clear()
        factor = self.trainer.learning_rate_factor
        self._warn(state, "%s: back to %s, from here %g of the learning rate", why, checkpoint, factor)

    @staticmethod
    def _warn(state: TrainerState, text: str, *values: Any) -> None:
        if state.is_world_process_zero:
            log.warning("step %d: " + text, state.global_step, *values)


class StageCadence(TrainerCallback):
    """Lets `trainer` enter the stage that its progress asks for, on all ranks at the same step.

    Trainer counts micro-batches and steps where that count is divisible by the accumulation, so a new accumulation
    waits for a count that it divides. New shapes compile again: a stage whose compilation the rest of the budget does not
    carry is left out, and the log says so.
    """

    def __init__(self, trainer: TimeBudgetTrainer, stages: Stages) -> None:
        self.trainer, self.stages = trainer, stages
        self.stage = stages.at(0.0)
        self._declined: Stage | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._enter(self.stages.at(self.trainer.schedule_progress()), compiles=False)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        progress, budget = self.trainer.schedule_progress(), self.trainer.time_budget
        wanted = self.stages.at(progress)
        if control.should_training_stop or wanted in (self.stage, self._declined):
            return
        if self.trainer.micro_batches % wanted.accumulation:
            return  # a step or two later
        compiles = args.torch_compile and not wanted.has_shapes_of(self.stage)
        if compiles and not budget.reserve(budget.reading.compile):
            self._declined = wanted
            if args.should_log:
                log.info("step %d: %s left out, the rest of the budget does not carry it", state.global_step, wanted)
            return
        if args.should_log:
            log.info("step %d, progress %.3f: from here %s", state.global_step, progress, wanted)
        self._enter(wanted, compiles)

    def _enter(self, stage: Stage, compiles: bool) -> None:
        self.stage = stage
        self.trainer.enter_stage(stage, compiles)


class Throughput(TrainerCallback):
    """Counts tokens and model FLOPs per step and turns them into rates when `rates` is asked.

    `flops_per_token` is of the forward and backward pass as `flops.model_flops_per_token` counts them; `peak_flops` is one
    device's measured FLOP/s (0.0: unknown); MFU is the share of it, over all devices, in the seconds of training,
    waiting for data and compiling. Nothing is read back from the device until a line is logged.
    """

    def __init__(self, time_budget: TimeBudgetCallback, world_size: int, peak_flops: float = 0.0) -> None:
        self.time_budget, self.world_size, self.peak_flops = time_budget, world_size, peak_flops
        self.flops_per_token = 0.0
        self.tokens = 0  # of this job, over all ranks
        self.flops = 0.0
        self._predicted: Any = 0  # predicted tokens since the last line; a tensor on the device once it was counted
        self._step_tokens = 0
        self._begin: dict[str, float] = {}
        self._mark: tuple[int, float, dict[str, float]] = (0, 0.0, {})

    def count(self, tokens: int, predicted: Any) -> None:
        """A step's token positions over all ranks and its predicted tokens (a tensor, or None where not known)."""
        self._step_tokens = tokens
        if isinstance(predicted, torch.Tensor):
            self._predicted = self._predicted + predicted.detach()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._begin = self._clock_seconds()
        self._mark = (self.tokens, self.flops, self._begin)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.tokens += self._step_tokens
        self.flops += self._step_tokens * self.flops_per_token

    def rates(self) -> dict[str, float]:
        """Since the line before: `tokens_per_second`, `tflops` (of the model, 1e12 per second over all ranks), `mfu`,
        `data_wait_share` of the worked seconds, and `predicted_share` of the token positions."""
        tokens, flops, before = self._mark
        now = self._clock_seconds()
        self._mark = (self.tokens, self.flops, now)
        spent = {name: now[name] - before.get(name, 0.0) for name in _WORK}
        seconds = max(sum(spent.values()), 1e-9)
        done = self.tokens - tokens
        rate = (self.flops - flops) / seconds
        out = {
            "tokens_per_second": round(done / seconds, 1),
            "tflops": round(rate / 1e12, 6),
            "data_wait_share": round(spent["data_wait"] / seconds, 5),
        }
        if self.peak_flops > 0:
            out["mfu"] = round(rate / (self.peak_flops * self.world_size), 4)
        if isinstance(self._predicted, torch.Tensor) and done:
            out["predicted_share"] = round(float(self._predicted) / done, 5)
        self._predicted = 0
        return out

    def overall(self) -> dict[str, float | None]:
        """Of this job: `model_tflops_per_second`, `mfu`, `peak_tflops` of one device; None where not known."""
        seconds = sum(self._clock_seconds()[name] - self._begin.get(name, 0.0) for name in _WORK)
        rate = self.flops / seconds if seconds > 0 and self.flops else None
        peak = self.peak_flops or None
        return {
            "model_tflops_per_second": None if rate is None else rate / 1e12,
            "mfu": None if rate is None or peak is None else rate / (peak * self.world_size),
            "peak_tflops": None if peak is None else peak / 1e12,
        }

    def _clock_seconds(self) -> dict[str, float]:
        assert self.time_budget.clock is not None
        return self.time_budget.clock.seconds_by_phase()
