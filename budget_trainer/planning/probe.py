"""FLOPs and parameters of model sizes around the recipe's, without memory for their weights.

The probe, a process of its own: the run's set-up and steps on this machine, told to its parent as they are measured.

    python -m budget_trainer.planning.probe '{"words": [...], "fd": 3, "deadline": 123.4, "folder": "..."}'

It writes lines of JSON to the file descriptor `fd`, each the whole of what is known so far; `deadline` is of time.monotonic().
The parent ends it there: what was told until then counts. It goes the way of train_mlm.py with the same functions.
"""

from __future__ import annotations

import json
import math  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any

import torch

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.config.recipe import Recipe
from budget_trainer.core.errors import InputError, RunError  # noqa: E402
from budget_trainer.data.folder import DataFolder
from budget_trainer.model.build import build_model
from budget_trainer.model.flops import model_flops_per_token
from budget_trainer.planning.result import heads_and_inner, neighbours


def shapes_around(recipe: Recipe, data: DataFolder, slots: int) -> list[dict[str, Any]]:
    """The recipe's shape and standard ones: `layers`, `width`, `heads`, `inner`, `parameters`, `body_parameters` (without
    embeddings and head), `flops_per_token`, `own`. Empty for a model that brings its own shape (model_name_or_path)."""
    m = recipe.model
    if m.model_name_or_path is not None:
        return []
    rows = []
    for layers, width in neighbours(m.num_hidden_layers, m.hidden_size):
        own = (layers, width) == (m.num_hidden_layers, m.hidden_size)
        heads, inner = heads_and_inner(width, m.hidden_size, m.num_attention_heads, m.intermediate_size)
        if own:
            heads, inner = m.num_attention_heads, m.intermediate_size
        with torch.device("meta"):
            model = build_model(
                recipe.model_type,
                vocab_size=data.vocab_size,
                special_ids=data.special_ids,
                max_position_embeddings=m.max_position_embeddings,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                hidden_act=m.hidden_act,
                type_vocab_size=m.type_vocab_size,
                model_config=json.loads(m.model_config) if m.model_config else None,
                add_nsp=recipe.add_nsp,
            )
        model.sparse_last_layer = m.sparse_last_layer
        encoder: Any = getattr(model.base_model, "encoder", None) or model.base_model.layers
        rows.append(
            {
                "layers": layers,
                "width": width,
                "heads": heads,
                "inner": inner,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "body_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
                "flops_per_token": model_flops_per_token(model, data.block_size, slots),
                "own": own,
            }
        )
    return rows


CLOCK = BudgetClock()  # as in train_mlm.py: imports are a part of every run's set-up


Steps = Callable[[Any, Any], Any]  # of Found and Situation (`schedule`)
COUNTED_TOKENS = 250_000  # for embedding_init cooccurrence: more are extrapolated ...
COUNTING_GROWS = 0.44  # ... by this power: 4.1, 6.8 and 10.8 s of a core for 1, 3 and 9 million tokens, 256 wide
VERIFY_SECONDS = 0.5  # of reading checksums, extrapolated to the run's
HASHED_PER_SECOND = 1e9  # bytes, where not even one file was read in that time (see setup.VERIFY_SHARE)
SETTLE_SECONDS = 40.0  # a limit for the probe of precision: too short for it to compile
STATE_BYTES = {"adafactor": 8, "muon": 12}  # of a parameter in float32, its gradient and states; Adam's: 16
MEMORY_SHARE = 0.7  # of what is free, on a CPU
FIRST_STEP_SECONDS = 0.2  # the micro-batch that settles precision takes about this
USUAL_MFU = 0.3  # for that guess only


class Told:
    """What is known so far, told anew as a line whenever something was added."""

    def __init__(self, fd: int) -> None:
        self._stream = os.fdopen(fd, "w", buffering=1)
        self.content: dict[str, Any] = {}

    def add(self, **news: Any) -> None:
        self.content |= news
        self._stream.write(json.dumps(self.content, default=str) + "\n")


class Marks:
    """Seconds of set-up by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def mark(self, name: str | None) -> None:
        """What passed since the mark before belongs to `name`; None: to the probe alone."""
        now = CLOCK.elapsed_seconds()
        if name is not None:
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def probe(order: dict[str, Any], told: Told, steps: Steps | None = None) -> None:
    """Measure, and tell; InputError and RunError as the run itself would raise them. `steps`: others than the usual ones."""
    from budget_trainer.budget.channel import Agreement, ControlChannel
    from budget_trainer.config.parser import parse_recipe
    from budget_trainer.core.stop_request import StopRequest
    from budget_trainer.data.folder import DataFolder
    from budget_trainer.model.build import parameter_count
    from budget_trainer.model.flops import measure_peak_flops, model_flops_per_token
    from budget_trainer.planning.measure import free_bytes
    from budget_trainer.planning.schedule import Ends, usual
    from budget_trainer.reporting.planned import compared
    from budget_trainer.reporting.report import environment
    from budget_trainer.training import finish, launch  # noqa: F401 - what a run imports
    from budget_trainer.training import run as run_module
    from budget_trainer.training.engine import engine_name, resolve_engine_config
    from budget_trainer.training.precision import resolve_compute_mode

    marks = Marks()
    ends = Ends(time.monotonic() - CLOCK.elapsed_seconds(), order["deadline"])
    recipe = parse_recipe([*order["words"], *overrides(order["folder"])])
    settings = recipe.as_dict()  # as asked: set-up settles some of it
    run = recipe.run
    trackers: Any = [name for name in run.report_to or [] if name == "tensorboard"]  # others would show it
    run.report_to = trackers
    os.environ["TENSORBOARD_LOGGING_DIR"] = f"{order['folder']}/tensorboard"
    launch.prepare(run)
    if engine_name(run) != "single":
        raise InputError(f"plan: it works with one process and no engine ({engine_name(run)}); give --num_processes N")
    CLOCK.total_seconds = recipe.total_seconds
    channel = ControlChannel()
    agreement = Agreement(channel, StopRequest())
    marks.mark("imports")

    data = DataFolder.open(recipe.data_dir)
    columns = data.columns_for(document_mask=recipe.data.document_mask, next_sentence=recipe.add_nsp)
    blocks = data.train(seed=run.seed, columns=columns)
    run_module.check_data(data, blocks, recipe)
    resolve_engine_config(run)
    marks.mark("data")
    share = data.verify(VERIFY_SECONDS)
    marks.mark("checksums")
    spent = marks.seconds["checksums"]
    most = min(run_module.VERIFY_SHARE * recipe.seconds_left(0.0), channel.timeout_seconds / 2)
    size = sum(int(file["bytes"]) for split in data.manifest["splits"].values() for file in split["files"])
    marks.seconds["checksums"] = min(most, spent / share if share else size / HASHED_PER_SECOND)
    told.add(**facts(recipe, settings, data, compared(settings), environment()["hardware"]))

    collator = run_module.make_collator(recipe, data)
    shapes = shapes_around(recipe, data, collator.slots)
    if run.device.type == "cpu":
        check_weights_fit(shapes, recipe.optimizer.optimizer_type, MEMORY_SHARE * free_bytes())
    marks.mark(None)
    counts = recipe.model.embedding_init == "cooccurrence" and recipe.model.model_name_or_path is None
    recipe.model.embedding_init = "normal" if counts else recipe.model.embedding_init
    model = run_module.make_model(recipe, data, blocks, channel, resumed=False)
    marks.mark("model")
    if counts:
        marks.seconds["counted embeddings"] = count_embeddings(model, data, blocks, recipe)
        marks.mark(None)
    peak = measure_peak_flops(run.device, precision_of(run), 0.5)
    marks.mark(None)
    marks.seconds["matmul peak"] = min(1.0, 0.005 * recipe.total_seconds)
    flops = model_flops_per_token(model, data.block_size, collator.slots)
    fits_in = FIRST_STEP_SECONDS * USUAL_MFU * peak / (flops * data.block_size)
    small = max(1, min(run.per_device_train_batch_size, 32, int(fits_in)))
    micro_batch = collator(blocks.__getitems__(range(small)))
    marks.mark(None)
    left = min(recipe.seconds_left(0.0), SETTLE_SECONDS / 0.03)
    resolve_compute_mode(recipe, model, micro_batch, left, None, channel)
    marks.mark("precision")
    told.add(
        parameters=parameter_count(model),
        model_type=model.config.model_type,
        flops_per_token=flops,
        speed={"bf16": bool(run.bf16), "compile": compile_kind(recipe)},
        setup=dict(marks.seconds),
        settled_blocks=small,
        auto_speed=bool(recipe.budget.auto_speed),
        shapes=shapes,
    )
    marks.mark(None)
    measure_steps(recipe, data, blocks, model, collator, agreement, peak, marks, told, ends, steps or usual)


def overrides(folder: str) -> list[str]:
    """What a probe does otherwise: nothing is kept, nothing is shown, nothing goes to the Hub."""
    return [f"--output_dir={folder}/run", "--disable_tqdm=true", "--push_to_hub=false", "--plan="]


def precision_of(run: Any) -> Any:
    import torch

    return torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else torch.float32


def check_weights_fit(shapes: list[dict[str, Any]], optimizer: str, limit_bytes: float) -> None:
    """Before anything is made of it on a CPU, where what does not fit is not refused but swapped out or killed: weights,
    gradients and the optimizer's states in float32. RunError where they are above the limit."""
    from budget_trainer.planning.schedule import NO_ROOM

    own = next((row["parameters"] for row in shapes if row["own"]), 0)
    if own * STATE_BYTES.get(optimizer, 16) > limit_bytes:
        raise RunError(NO_ROOM)


def compile_kind(recipe: Any) -> str:
    if not recipe.run.torch_compile:
        return "no"
    return "regional" if recipe.budget.regional_compile else "whole"


def facts(recipe: Any, settings: dict, data: Any, compared: dict, hardware: dict) -> dict[str, Any]:
    """What the parent needs of recipe, data and machine."""
    from budget_trainer.training import run as run_module

    run, b = recipe.run, recipe.budget
    validation = recipe.validation_plan(run_module.samples_per_epoch(recipe, data))
    asked = {"per_device_train_batch_size", "gradient_accumulation_steps"} & recipe.explicit
    return {
        "recipe": compared,
        "learning_rate": run.learning_rate,
        "schedule": recipe.schedule(),
        "total_seconds": recipe.total_seconds,
        "end_seconds": min(recipe.total_seconds, recipe.early_exit_seconds),
        "checkpoint_seconds": recipe.checkpoint_seconds,
        "checkpoint_samples": None
        if b.num_epochs_between_checkpoints in (None, -1)
        else b.num_epochs_between_checkpoints * run_module.samples_per_epoch(recipe, data),
        "markers": recipe.markers,
        "max_steps": recipe.max_steps,
        "writes_final": b.finetune_checkpoint_at_end,
        "validation": None if validation is None else [type(validation).__name__, vars(validation)],
        "batch_asked": bool(asked),
        "block_size": data.block_size,
        "rows": int(data.manifest["splits"]["train"]["rows"]),
        "dup_factor": recipe.data.dup_factor,
        "data": {"path": str(data.path), "fingerprint": data.fingerprint},
        "hardware": hardware,
        "device": str(run.device),
        "workers": run.dataloader_num_workers,
        "mlm_probability": recipe.data.mlm_probability,
        "curves": {
            name: settings[name] for name in ("mlm_probability_curve", "batch_size_curve", "sequence_length_curve")
        },
    }


def count_embeddings(model: Any, data: Any, blocks: Any, recipe: Any) -> float:
    """Seconds of counting as many tokens as this budget pays for, from a part of them."""
    from budget_trainer.model.initialization import cooccurrence_embeddings
    from budget_trainer.training import run as run_module

    size = model.get_input_embeddings().weight.shape[1]
    wanted = min(run_module.COUNTED_TOKENS_PER_SECOND * recipe.total_seconds, run_module.MOST_COUNTED_TOKENS)
    wanted = min(wanted, blocks.rows * data.block_size)
    tokens = min(COUNTED_TOKENS, wanted)
    begin = time.monotonic()
    rows = blocks.__getitems__(range(max(1, int(tokens) // data.block_size)))["input_ids"]
    cooccurrence_embeddings(rows, data.vocab_size, size, special_ids=data.special_ids, seed=recipe.run.seed)
    return (time.monotonic() - begin) * (wanted / tokens) ** COUNTING_GROWS


def measure_steps(
    recipe: Any,
    data: Any,
    blocks: Any,
    model: Any,
    collator: Any,
    agreement: Any,
    peak: float,
    marks: Marks,
    told: Told,
    ends: Any,
    steps: Steps,
) -> None:
    """The Trainer of the run, its saves and its validation rehearsed, then its steps."""
    import torch
    from transformers import PrinterCallback

    from budget_trainer.budget.callback import TimeBudgetCallback
    from budget_trainer.model.optimizers import build_optimizer
    from budget_trainer.planning.candidates import first_size, micro_batches, thinned
    from budget_trainer.planning.measure import ProbeTrainer, free_bytes, peak_bytes, reset_peak, return_freed
    from budget_trainer.planning.schedule import Found, Situation, as_dict
    from budget_trainer.training import run as run_module
    from budget_trainer.training.callbacks import Throughput
    from budget_trainer.training.run import add_callbacks

    run, gpu = recipe.run, recipe.run.device.type == "cuda"
    asked = told.content["batch_asked"]
    total = run.per_device_train_batch_size * run.gradient_accumulation_steps if asked else None
    allowed = micro_batches(total, lambda accumulation: _follows(recipe, accumulation))
    if total is None:
        allowed = [size for size in allowed if size <= blocks.rows]
    others = _other_shapes(recipe, data, collator)
    validation = recipe.validation_plan(run_module.samples_per_epoch(recipe, data))
    options = run_module.optimizer_options(recipe)
    workers = run.dataloader_num_workers
    run.max_steps, run.gradient_accumulation_steps, run.dataloader_num_workers = run_module.ENDLESS_STEPS, 1, 0
    recipe.checkpoint_seconds, recipe.markers, recipe.budget.num_epochs_between_checkpoints = math.inf, [], None
    CLOCK.total_seconds = max(CLOCK.total_seconds, 10 * ends.whole)
    budget = TimeBudgetCallback(clock=CLOCK, agreement=agreement)
    trainer = ProbeTrainer(
        model=model,
        args=run,
        blocks=blocks,
        data_collator=collator,
        processing_class=data.load_tokenizer(),
        create_optimizer_fn=partial(build_optimizer, recipe.optimizer.optimizer_type, **options),
        evaluation=run_module.make_evaluation(data),
        time_budget=budget,
        throughput=Throughput(budget, 1, peak),
        regional_compile=recipe.budget.regional_compile,
        **recipe.schedule(),
    )
    marks.mark("trainer")
    trainer.rehearse_save(recipe.output_dir)
    save = CLOCK.seconds_by_phase()["save"]
    rehearsal = evaluate = 0.0
    if validation is not None:
        trainer.rehearse_evaluation(validation.seconds_between(recipe.total_seconds))
        rehearsal, evaluate = CLOCK.seconds_by_phase()["evaluate"], budget.evaluate_seconds
    marks.mark(None)
    add_callbacks(trainer, recipe, None, run_module.samples_per_epoch(recipe, data), 1)
    trainer.remove_callback(PrinterCallback)  # a run has its bar instead
    marks.mark("trainer")
    told.add(
        setup=dict(marks.seconds),
        save={"model": save, "reserve": budget.save_seconds, "checkpoint": budget.checkpoint_seconds},
        evaluate={"rehearsal": rehearsal, "each": evaluate},
        peak_flops=peak,
        total_per_process=total,
    )

    torch.cuda.empty_cache() if gpu else return_freed()  # of the probe of precision
    settled = told.content["settled_blocks"]
    before = 0 if gpu or reset_peak() else settled  # or the mark is still that probe's: below it no growth shows
    compiles, found = bool(run.torch_compile), Found(peaks={} if gpu else {before: peak_bytes()})
    started = time.monotonic()
    limit = torch.cuda.get_device_properties(0).total_memory if gpu else peak_bytes() + MEMORY_SHARE * free_bytes()

    def tell() -> None:
        told.add(
            setup={**marks.seconds, "start of training": (trainer.first_step_at or started) - started},
            found=as_dict(found),
            limit_bytes=limit,
        )

    smallest = first_size(allowed, settled, before)
    sizes = thinned([size for size in allowed if size >= smallest])
    situation = Situation(sizes, total, workers, limit, ends, gpu, compiles, others, tell)
    trainer.measure(steps(found, situation))
    tell()


def _follows(recipe: Any, accumulation: int) -> bool:
    """Whether the curve of the batch gives whole micro-batches at this accumulation."""
    from budget_trainer.budget.stages import make_stages

    try:
        make_stages(
            mlm_probability=recipe.data.mlm_probability,
            gradient_accumulation_steps=accumulation,
            block_size=1024,
            batch_size_curve=recipe.budget.batch_size_curve,
        )
    except InputError:
        return False
    return True


def _other_shapes(recipe: Any, data: Any, collator: Any) -> dict[str, Any]:
    """Collators of the stages behind the first one, where they have other shapes; named rate@parts."""
    stages = recipe.stages(data.block_size)
    starts = {at for steps in (stages.mlm_probability, stages.sequence_parts) for at, _ in steps}
    wanted = [stages.at(at) for at in sorted(starts)]
    made = {
        f"{stage.mlm_probability}@{stage.sequence_parts}": collator.with_stage(
            mlm_probability=stage.mlm_probability, sequence_parts=stage.sequence_parts
        )
        for stage in wanted
    }
    first = stages.at(0.0)
    if first.sequence_parts == 1:
        made.pop(f"{first.mlm_probability}@1", None)
    return made


def _end_with_parent() -> None:
    """Standard input ends where the parent has ended, however that came: then this process and its compilers do too."""

    def wait() -> None:
        while os.read(0, 64):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def planned_error(error: Exception) -> Exception:
    """What the parent is told: want of memory in the planner's words (a run's speak of going on). Raises what is a defect."""
    from budget_trainer.planning.schedule import NO_ROOM
    from budget_trainer.training.checkpoints import is_out_of_memory

    if is_out_of_memory(error) or is_out_of_memory(error.__cause__):
        return RunError(NO_ROOM)
    if isinstance(error, InputError | RunError):
        return error
    raise error


def main() -> int:
    _end_with_parent()
    order = json.loads(sys.argv[1])
    told = Told(order["fd"])
    try:
        probe(order, told)
    except (InputError, RuntimeError) as caught:
        error = planned_error(caught)
        told.add(error=str(error), bad_input=isinstance(error, InputError))
        return 2 if isinstance(error, InputError) else 1
    told.add(finished=True)
    sys.stdout.flush()
    os._exit(0)  # the parent waits: no time for taking modules down


if __name__ == "__main__":
    sys.exit(main())
