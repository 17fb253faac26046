"""What a person and a program see of a run: a bar that counts the budget, and progress.jsonl."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.callbacks.time_budget import TimeBudgetCallback

STATE_KEY = "progress"  # in TrainerState.stateful_callbacks
LOGGED: tuple[str, ...] = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "tflops",
    "mfu",
    "data_wait_share",
)
LOGGED += ("bad_steps", "predicted_share", "mlm_probability", "batch_size", "sequence_length")
REMEMBERED = ("steps", "learning_rate_last", "learning_rate_peak")


class ProgressLog(TrainerCallback):
    """One JSON line per log in `progress.jsonl` (main process), and the trail of learning rates (every process).

    A training line has `job`, `elapsed_seconds`, `share`, `step`, `loss`, `learning_rate`, `grad_norm`, what `Throughput`
    measured since the line before and, with stages, the realised masking rate, batch and sequence length; a validation
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")  # by a crash
            self._stream = open(self.path, "a", encoding="utf-8")
            if cut:
                self._stream.write("\n")
        self.restore(state)

    def restore(self, state: TrainerState) -> None:
        """Take over the steps and rates of earlier jobs from a checkpoint's state."""
        stored: Any = state.stateful_callbacks or {}
        for name, value in (stored.get(STATE_KEY) or {}).items():
            setattr(self, name, value)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stored: Any = state.stateful_callbacks
        stored[STATE_KEY] = {name: getattr(self, name) for name in REMEMBERED}

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """The rates that this update will use."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._rates.update("".join(rate.hex() for rate in rates).encode())
        self.steps += 1
        self.learning_rate_last = rates[0]
        self.learning_rate_peak = max(self.learning_rate_peak, rates[0])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        share = self.time_budget.share
        line: dict[str, Any] = {
            "job": self.job,
            "elapsed_seconds": round(self.time_budget.reading.elapsed, 3),
            "share": None if math.isinf(self.time_budget.total_seconds) else round(share, 6),
            "step": state.global_step,
        }
        if "loss" in logs:
            line |= {name: _number(logs[name]) for name in LOGGED if name in logs}
        elif "eval_loss" in logs:
            line["evaluation"] = {
                name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")
            }
        else:
            return
        if self._stream is not None:
            with suppress(OSError):  # a full disk: the line waits in the buffer, the next save will speak up
                self._stream.write(json.dumps(line) + "\n")
                self._stream.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
            self._stream = None


def _number(value: float) -> float | None:
    """None where a number is not finite: JSON has no word for it."""
    return value if math.isfinite(value) else None


class BudgetProgressBar(TrainerCallback):
    """`12.4/60.0 min · loss 2.31 · lr 8.1e-04 · 18,300 tokens/s`; steps where there is no time budget."""

    def __init__(self, time_budget: TimeBudgetCallback) -> None:
        self.time_budget = time_budget
        self._bar: tqdm | None = None
        self._shown = 0.0
        self._pause = 0.2
        self._tail = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and not args.disable_tqdm:
            timed = not math.isinf(self.time_budget.end_seconds)
            total = self.time_budget.end_seconds / 60 if timed else state.max_steps
            head = "{percentage:3.0f}%|{bar}| "
            layout = head + ("{desc}" if timed else "{n_fmt}/{total_fmt} steps{desc}")
            self._pause = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log file needs no more
            self._bar = tqdm(total=total, bar_format=layout, dynamic_ncols=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = self.time_budget.reading.elapsed
        if self._bar is None or now - self._shown < self._pause:
            return
        self._shown = now
        if math.isinf(self.time_budget.end_seconds):
            self._bar.n, text = state.global_step, ""
        else:
            minutes = self.time_budget.reading.elapsed / 60
            self._bar.n = min(minutes, self._bar.total)
            text = f"{minutes:.1f}/{self._bar.total:.1f} min"
        self._bar.set_description_str(text + self._tail, refresh=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            rate = logs.get("tokens_per_second", 0.0)
            self._tail = f" · loss {logs['loss']:.3f} · lr {logs['learning_rate']:.1e} · {rate:,.0f} tokens/s"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
