"""The probe, a process of its own: the run's set-up and steps on this machine.

    python -m budget_trainer.planning.probe FOLDER DEADLINE RECIPE [FLAGS]

It writes what it knows so far to FOLDER/report.pickle whenever that has grown, or the error that ended it. DEADLINE is of
time.monotonic(): there the parent ends it, and the last report counts. Set-up is that of `PretrainingRun`, timed in its parts.
"""

# ruff: noqa: E402 - the clock starts before the heavy imports

from __future__ import annotations

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.lead import ENDLESS_STEPS

CLOCK = BudgetClock()  # as in train_mlm.py: imports are a part of every run's set-up

import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from budget_trainer.config.recipe import parse_recipe, speed_settings
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import write_atomic
from budget_trainer.core.jobs import end_with_parent
from budget_trainer.core.machine import free_memory, reset_resident_peak, resident_peak, return_freed_memory
from budget_trainer.model.flops import body_parameters, measure_peak_flops, model_flops_per_token
from budget_trainer.planning import REPORT_FILE
from budget_trainer.planning.predict import Costs
from budget_trainer.planning.result import ProbeReport
from budget_trainer.planning.steps import NO_ROOM, MicroStep, ProbeSteps, StepRequest, StepResult, Steps, micro_batches
from budget_trainer.reporting.report import environment
from budget_trainer.training.callbacks import (
    CheckpointCadence,
    EarlyStop,
    FinetuneMarkers,
    StageCadence,
    ValidationCadence,
)
from budget_trainer.training.engine import engine_name
from budget_trainer.training.recovery import is_out_of_memory
from budget_trainer.training.run import PretrainingRun
from budget_trainer.training.trainer import TimeBudgetTrainer

_COUNTED_TOKENS = 250_000  # for embedding_init cooccurrence: more are extrapolated ...
_COUNTING_GROWS = (
    0.42  # ... by this power: 0.84, 1.86, 3.2 and 7.0 s of two cores for 0.25, 3.6, 10.6 and 40 million, 256 wide
)
_VERIFY_SECONDS = 0.5  # of reading checksums, extrapolated to the run's
_HASHED_PER_SECOND = 1e9  # bytes, where not even one file was read in that time
_PRECISION_SECONDS = 40.0 / 0.03  # left in the eyes of the run's probe of precision: too short for it to compile
_STATE_BYTES = {"adafactor": 8, "muon": 12}  # of a parameter in float32, its gradient and states; Adam's: 16
_FIRST_STEP_SECONDS, _USUAL_MFU = 0.2, 0.3  # of the micro-batch in which precision is chosen, by this guess
_MEMORY_SHARE = 0.7  # of what is free, on a CPU


@contextmanager
def _want_of_memory() -> Iterator[None]:
    """Say it in the planner's words: a run's speak of resuming."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or is_out_of_memory(error.__cause__):
            raise RunError(NO_ROOM) from None
        raise


@_want_of_memory()
def probe(
    words: Sequence[str],
    folder: Path,
    deadline: float = math.inf,
    send: Callable[[ProbeReport], None] = lambda report: None,
    take_steps: Callable[[ProbeSteps], Steps] = ProbeSteps.all,
) -> None:
    """Set the run of `words` up in `folder`, take steps until `deadline` (of time.monotonic()), and `send` what is known.

    Raises:
        InputError, RunError: as the run itself would.
    """
    setup: dict[str, float] = {}  # seconds by what they went into
    marked = 0.0

    def mark(name: str | None) -> None:
        """What passed since the mark before belongs to `name`; None: to the probe alone."""
        nonlocal marked
        now = CLOCK.elapsed_seconds()
        if name is not None:
            setup[name] = setup.get(name, 0.0) + now - marked
        marked = now

    quiet = [f"--output_dir={folder}/run", "--disable_tqdm=true", "--push_to_hub=false", "--plan="]
    asked = recipe = parse_recipe([*words, *quiet])
    counts = recipe.model.embedding_init == "cooccurrence" and recipe.model.model_name_or_path is None
    if counts:  # timed on a part
        recipe = replace(recipe, model=replace(recipe.model, embedding_init="normal"))
    os.environ["TENSORBOARD_LOGGING_DIR"] = f"{folder}/tensorboard"
    run = PretrainingRun(recipe, CLOCK, StopRequest(), ExitStack(), trackers=False)
    args, memory, gpu = run.args, _Memory(run.args.device), run.args.device.type == "cuda"
    flags = asked.as_dict(args)  # set-up resolves some of it
    trackers: Any = [name for name in args.report_to or [] if name == "tensorboard"]  # others would show it
    args.report_to = trackers
    if engine_name(args) != "single":
        raise InputError(f"plan: it takes one process and no engine ({engine_name(args)}); give --num_processes N")
    mark("imports")

    run.read_data()
    run.check_data()
    mark("data")
    setup["checksums"] = _checksum_seconds(run)
    report = ProbeReport(
        recipe=recipe,
        costs=Costs(run.data.block_size, run.samples_per_epoch),
        flags=speed_settings(flags),
        data={"path": str(run.data.path), "fingerprint": run.data.fingerprint},
        rows=int(run.data.manifest["splits"]["train"]["rows"]),
        hardware=environment()["hardware"],
        device=str(args.device),
    )
    send(report)
    if not gpu and recipe.model.model_name_or_path is None:
        # Asked before they are made: what does not fit here is not refused, as by a GPU, but swapped out or killed.
        with torch.device("meta"):
            parameters = run.untrained_model().num_parameters()
        if parameters * _STATE_BYTES.get(recipe.optimizer.optimizer_type, 16) > memory.limit():
            raise RunError(NO_ROOM)
    mark(None)

    run.make_model()
    mark("model")
    if counts:
        setup["counted embeddings"] = _counting_seconds(run)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    report.flops_per_token = model_flops_per_token(run.model, run.data.block_size, run.collator.slots)
    blocks_per_second = _USUAL_MFU * measure_peak_flops(args.device, dtype, 0.5) / report.flops_per_token
    fitting = int(_FIRST_STEP_SECONDS * blocks_per_second / run.data.block_size)
    report.tried_blocks = max(1, min(args.per_device_train_batch_size, 32, fitting))
    mark(None)
    run.choose_compute_mode(report.tried_blocks, min(run.seconds_left(0.0), _PRECISION_SECONDS))
    mark("precision")
    report.parameters, report.model_type = run.model.num_parameters(), run.model.config.model_type
    if recipe.model.model_name_or_path is None:
        report.body_parameters = body_parameters(run.model.base_model)
        report.predicted_share = run.collator.slots / run.data.block_size
    report.bf16 = bool(args.bf16)
    if args.torch_compile:
        report.compile = "regional" if run.regional_compile else "whole"
    report.setup = dict(setup)
    send(report)

    total, workers, collators = report.total_per_process, args.dataloader_num_workers, _stage_collators(run)

    def follows(accumulation: int) -> bool:
        """Whether the curve of the batch gives whole micro-batches."""
        with suppress(InputError):
            return bool(recipe.stages(run.data.block_size, accumulation))
        return False

    allowed = micro_batches(total, follows)
    allowed = [size for size in allowed if total is not None or size <= run.blocks.rows]
    args.max_steps, args.gradient_accumulation_steps, args.dataloader_num_workers = ENDLESS_STEPS, 1, 0
    mark(None)
    run.make_trainer(_ProbeTrainer)
    trainer, budget = run.trainer, run.budget
    assert isinstance(trainer, _ProbeTrainer) and trainer.throughput is not None
    mark("trainer")
    run.rehearse(reserve_disk=False)
    rehearsed = CLOCK.seconds_by_phase()
    costs = replace(report.costs, save=rehearsed["save"], rehearse=rehearsed["evaluate"], workers=workers)
    reserve, checkpoint = budget.save_seconds, budget.checkpoint_seconds
    report.costs = replace(costs, reserve=reserve, checkpoint=checkpoint, evaluate=budget.evaluate_seconds)
    report.peak_flops = trainer.throughput.peak_flops
    mark(None)
    run.job = 1
    run.add_callbacks()
    for kind in (StageCadence, FinetuneMarkers, CheckpointCadence, ValidationCadence, EarlyStop):
        trainer.remove_callback(kind)  # steps only, however long it takes
    trainer.remove_callback(PrinterCallback)  # a run has its bar instead
    CLOCK.total_seconds = budget.early_exit_seconds = budget.job_limit_seconds = math.inf
    mark("trainer")

    memory.return_freed()  # by the probe of precision
    # Where the high-water mark cannot be reset it is that probe's: below it no growth shows.
    tried = 0 if memory.reset_peak() else report.tried_blocks
    report.results.peaks = {} if gpu else {tried: memory.peak()}
    report.limit_bytes, started = memory.limit(memory.peak()), time.monotonic()

    def send_results() -> None:
        report.setup = {**setup, "start of training": (trainer.first_step_at or started) - started}
        send(report)

    steps = ProbeSteps(report.results, allowed, total, tried=report.tried_blocks, marked=tried, workers=workers)
    steps.limit_bytes, steps.deadline, steps.gpu = report.limit_bytes, deadline, gpu
    steps.compiles, steps.collators, steps.report = bool(args.torch_compile), collators, send_results
    trainer.measure(take_steps(steps))
    send_results()


def _checksum_seconds(run: PretrainingRun) -> float:
    """Of the run's check of its data, by a part of it."""
    begin = time.monotonic()
    share = run.data.verify(_VERIFY_SECONDS)
    spent = time.monotonic() - begin
    size = sum(int(file["bytes"]) for split in run.data.manifest["splits"].values() for file in split["files"])
    return min(run.verify_seconds, spent / share if share else size / _HASHED_PER_SECOND)


def _counting_seconds(run: PretrainingRun) -> float:
    """Of counting as many tokens as this budget pays for, by a part of them."""
    wanted = run.counted_tokens
    tokens = min(_COUNTED_TOKENS, wanted)
    begin = time.monotonic()
    run.count_embeddings(run.first_rows(tokens))
    return (time.monotonic() - begin) * (wanted / tokens) ** _COUNTING_GROWS


def _stage_collators(run: PretrainingRun) -> dict[tuple[float, int], Any]:
    """Collators of the stages after the first one, where they have other shapes; by masking rate and parts of a block."""
    stages = run.stages
    starts = {at for steps in (stages.mlm_probability, stages.sequence_parts) for at, _ in steps}
    shapes = [(stage.mlm_probability, stage.sequence_parts) for stage in map(stages.at, sorted(starts))]
    collator = run.collator
    made = {shape: collator.with_stage(mlm_probability=shape[0], sequence_parts=shape[1]) for shape in shapes}
    if shapes[0][1] == 1:  # the run's own collator is of that one
        made.pop(shapes[0])
    return made


class _Memory:
    """The memory of the run's device, in bytes: what torch reserves of a GPU, what this process has resident on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"

    def peak(self) -> float:
        """The most that was used so far, since `reset_peak` where that works."""
        return float(torch.cuda.max_memory_reserved() if self._gpu else resident_peak())

    def reset_peak(self) -> bool:
        """Let the high-water mark begin anew at what is used now; False where the system does not do that."""
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        return self._gpu or reset_resident_peak()

    def limit(self, used: float = 0.0) -> float:
        """What the steps may use: a GPU whole, on a CPU `used` and _MEMORY_SHARE of what it can still give."""
        if self._gpu:
            return float(torch.cuda.get_device_properties(0).total_memory)
        return used + _MEMORY_SHARE * free_memory()

    def return_freed(self) -> None:
        """Give back to the system what was freed and is still held, by torch on a GPU and by glibc's malloc."""
        if self._gpu:
            torch.cuda.empty_cache()
        return_freed_memory()


class _ProbeDone(Exception):
    """Ends the training that the probe is."""


class _ProbeTrainer(TimeBudgetTrainer):
    """Takes the steps that are asked for, instead of the run's.

    Everything else is the run's: precision, compilation, loss, clipping, optimizer, guards, callbacks. On a GPU the
    queue is drained at the borders of the parts, so that each has its own time.
    """

    _steps: Steps
    _request: StepRequest | None = None
    _fits = True
    _next_block = 0
    _begin = _fetched = _worked = 0.0
    first_step_at: float | None = None  # of time.monotonic()

    def measure(self, steps: Steps) -> None:
        """Take the steps that `steps` asks for, to its end; it is sent what came of each.

        A step may want for memory anywhere: in its batch, in forward and backward, or in the optimizer, whose first step
        makes its states. Then training begins anew, and `steps` is sent that it did not fit.
        """
        self._steps, self._memory = steps, _Memory(self.args.device)
        done = False
        while not done:
            try:
                self.train()
            except _ProbeDone:
                done = True
            except RuntimeError as error:
                wanted_memory = is_out_of_memory(error) or is_out_of_memory(error.__cause__)
                if self._request is None or not self._fits or not wanted_memory:  # before a step: nothing fits
                    raise
                self._fits = False
            if not self._fits:  # outside of the handler: its traceback holds the tensors
                assert self.model is not None and self.optimizer is not None
                self.model.zero_grad(set_to_none=True)
                self.optimizer.state.clear()  # some are made, some not
                self._memory.return_freed()

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        now = self._now()
        try:
            if self._request is None:
                self.first_step_at = now
                self._request = next(self._steps)
            else:
                step = MicroStep(self._fetched - self._begin, self._worked - self._fetched, now - self._worked)
                self._request = self._steps.send(StepResult(step, self._memory.peak(), self._fits))
        except StopIteration:
            raise _ProbeDone from None
        self._fits = True
        self._memory.reset_peak()
        self._begin = self._fetched = self._worked = self._now()
        blocks: Any = self.train_dataset
        size = self._request.micro_batch
        begin = self._next_block if self._next_block + size <= blocks.rows else 0
        self._next_block = begin + size
        rows = blocks.__getitems__(range(begin, begin + size))
        collate: Any = self._request.collator or self.data_collator
        self.args.per_device_train_batch_size = size
        result = super().get_batch_samples(iter([collate(rows)]), 1, device)
        self._fetched = self._worked = self._now()
        return result

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        assert self._request is not None
        eager = self._request.eager and self.args.torch_compile
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._worked = self._now()
        return loss

    def _now(self) -> float:
        if self.args.device.type != "cpu":
            torch.accelerator.synchronize(self.args.device)
        return time.monotonic()


def _main(folder: Path, deadline: float, words: Sequence[str]) -> None:
    end_with_parent()

    def send(message: ProbeReport | Exception) -> None:
        write_atomic(folder / REPORT_FILE, pickle.dumps(message), durable=False)

    try:
        probe(words, folder, deadline, send)
    except (InputError, RunError) as error:
        send(error)
    sys.stdout.flush()
    os._exit(0)  # the parent waits: no time for taking modules down


if __name__ == "__main__":
    _main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
