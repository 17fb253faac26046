"""FLOPs and parameters of model sizes around the recipe's, without memory for their weights.

The probe, a process of its own: the run's set-up and steps on this machine, told to its parent as they are measured.

    python -m budget_trainer.planning.probe '{"words": [...], "fd": 3, "deadline": 123.4, "folder": "..."}'

It writes lines of JSON to the file descriptor `fd`, each the whole of what is known so far; `deadline` is of time.monotonic().
The parent ends it there: what was told until then counts. It goes the way of train_mlm.py with the same functions.
"""

from __future__ import annotations

from budget_trainer.budget.clock import BudgetClock

CLOCK = BudgetClock()  # as in train_mlm.py: imports are a part of every run's set-up

import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from budget_trainer.config.recipe import Recipe  # noqa: E402
from budget_trainer.core.errors import InputError, RunError  # noqa: E402
from budget_trainer.data.folder import DataFolder  # noqa: E402
from budget_trainer.model.build import build_model  # noqa: E402
from budget_trainer.model.flops import model_flops_per_token  # noqa: E402
from budget_trainer.planning.result import heads_and_inner, neighbours  # noqa: E402


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
    from budget_trainer.config.parser import parse_recipe
    from budget_trainer.core.stop_request import StopRequest
    from budget_trainer.model.build import parameter_count
    from budget_trainer.model.flops import measure_peak_flops, model_flops_per_token
    from budget_trainer.planning.measure import free_bytes
    from budget_trainer.planning.schedule import Ends, usual
    from budget_trainer.reporting.planned import compared
    from budget_trainer.reporting.report import environment
    from budget_trainer.training import parts
    from budget_trainer.training.engine import engine_name
    from budget_trainer.training.run import PretrainingRun

    marks = Marks()
    ends = Ends(time.monotonic() - CLOCK.elapsed_seconds(), order["deadline"])
    recipe = parse_recipe([*order["words"], *overrides(order["folder"])])
    settings = recipe.as_dict()  # as asked: set-up settles some of it
    trackers: Any = [name for name in recipe.run.report_to or [] if name == "tensorboard"]  # others would show it
    recipe.run.report_to = trackers
    os.environ["TENSORBOARD_LOGGING_DIR"] = f"{order['folder']}/tensorboard"
    run = PretrainingRun(recipe, CLOCK, StopRequest(), ExitStack())
    args, data = run.args, run.data
    if engine_name(args) != "single":
        raise InputError(
            f"plan: it works with one process and no engine ({engine_name(args)}); give --num_processes N"
        )
    marks.mark("imports")

    run.open_blocks()
    marks.mark("data")
    share = data.verify(VERIFY_SECONDS)
    marks.mark("checksums")
    spent = marks.seconds["checksums"]
    most = min(parts.VERIFY_SHARE * recipe.seconds_left(0.0), run.channel.timeout_seconds / 2)
    size = sum(int(file["bytes"]) for split in data.manifest["splits"].values() for file in split["files"])
    marks.seconds["checksums"] = min(most, spent / share if share else size / HASHED_PER_SECOND)
    told.add(**facts(run, settings, compared(settings), environment()["hardware"]))

    collator = parts.make_collator(recipe, data)
    shapes = shapes_around(recipe, data, collator.slots)
    if args.device.type == "cpu":
        check_weights_fit(shapes, recipe.optimizer.optimizer_type, MEMORY_SHARE * free_bytes())
    marks.mark(None)
    counts = recipe.model.embedding_init == "cooccurrence" and recipe.model.model_name_or_path is None
    recipe.model.embedding_init = "normal" if counts else recipe.model.embedding_init
    run.make_model()
    marks.mark("model")
    if counts:
        marks.seconds["counted embeddings"] = count_embeddings(run)
        marks.mark(None)
    peak = measure_peak_flops(args.device, precision_of(args), 0.5)
    marks.mark(None)
    marks.seconds["matmul peak"] = min(1.0, 0.005 * recipe.total_seconds)
    flops = model_flops_per_token(run.model, data.block_size, collator.slots)
    fits_in = FIRST_STEP_SECONDS * USUAL_MFU * peak / (flops * data.block_size)
    small = max(1, min(args.per_device_train_batch_size, 32, int(fits_in)))
    marks.mark(None)
    run.choose_compute_mode(small, min(recipe.seconds_left(0.0), SETTLE_SECONDS / 0.03))
    marks.mark("precision")
    run.optimizer_options = parts.optimizer_options(recipe, args)
    told.add(
        parameters=parameter_count(run.model),
        model_type=run.model.config.model_type,
        flops_per_token=flops,
        speed={"bf16": bool(args.bf16), "compile": compile_kind(recipe)},
        setup=dict(marks.seconds),
        settled_blocks=small,
        auto_speed=bool(recipe.budget.auto_speed),
        shapes=shapes,
    )
    marks.mark(None)
    measure_steps(run, peak, marks, told, ends, steps or usual)


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


def facts(run: Any, settings: dict, compared: dict, hardware: dict) -> dict[str, Any]:
    """What the parent needs of recipe, data and machine."""
    recipe, data, args = run.recipe, run.data, run.args
    b = recipe.budget
    validation = recipe.validation_plan(run.samples_per_epoch)
    asked = {"per_device_train_batch_size", "gradient_accumulation_steps"} & recipe.explicit
    return {
        "recipe": compared,
        "learning_rate": args.learning_rate,
        "schedule": recipe.schedule(),
        "total_seconds": recipe.total_seconds,
        "end_seconds": min(recipe.total_seconds, recipe.early_exit_seconds),
        "checkpoint_seconds": recipe.checkpoint_seconds,
        "checkpoint_samples": None
        if b.num_epochs_between_checkpoints in (None, -1)
        else b.num_epochs_between_checkpoints * run.samples_per_epoch,
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
        "device": str(args.device),
        "workers": args.dataloader_num_workers,
        "mlm_probability": recipe.data.mlm_probability,
        "curves": {
            name: settings[name] for name in ("mlm_probability_curve", "batch_size_curve", "sequence_length_curve")
        },
    }


def count_embeddings(run: Any) -> float:
    """Seconds of counting as many tokens as this budget pays for, from a part of them."""
    from budget_trainer.training import parts

    wanted = parts.counted_tokens(run.recipe, run.data, run.blocks)
    tokens = min(COUNTED_TOKENS, wanted)
    size = run.model.get_input_embeddings().weight.shape[1]
    begin = time.monotonic()
    parts.count_embeddings(run.recipe, run.args, run.data, run.blocks, size, tokens)
    return (time.monotonic() - begin) * (wanted / tokens) ** COUNTING_GROWS


def measure_steps(run: Any, peak: float, marks: Marks, told: Told, ends: Any, steps: Steps) -> None:
    """The Trainer of the run, its saves and its validation rehearsed, then its steps."""
    import torch
    from transformers import PrinterCallback

    from budget_trainer.planning.candidates import first_size, micro_batches, thinned
    from budget_trainer.planning.measure import ProbeTrainer, free_bytes, peak_bytes, reset_peak, return_freed
    from budget_trainer.planning.schedule import Found, Situation, as_dict
    from budget_trainer.training.run import ENDLESS_STEPS

    recipe, args, gpu = run.recipe, run.args, run.args.device.type == "cuda"
    asked = told.content["batch_asked"]
    total = args.per_device_train_batch_size * args.gradient_accumulation_steps if asked else None
    allowed = micro_batches(total, lambda accumulation: _follows(recipe, accumulation))
    if total is None:
        allowed = [size for size in allowed if size <= run.blocks.rows]
    others = _other_shapes(recipe, run.data, run.collator)
    workers = args.dataloader_num_workers
    args.max_steps, args.gradient_accumulation_steps, args.dataloader_num_workers = ENDLESS_STEPS, 1, 0
    recipe.checkpoint_seconds, recipe.markers, recipe.budget.num_epochs_between_checkpoints = math.inf, [], None
    recipe.early_exit_seconds = recipe.job_limit_seconds = math.inf
    CLOCK.total_seconds = max(CLOCK.total_seconds, 10 * ends.whole)
    run.make_trainer(ProbeTrainer)
    trainer, budget = run.trainer, run.budget
    marks.mark("trainer")
    run.rehearse(reserve_disk=False)
    seconds = CLOCK.seconds_by_phase()
    save, rehearsal = seconds["save"], seconds["evaluate"]
    evaluate = budget.evaluate_seconds if rehearsal else 0.0
    marks.mark(None)
    run.job = 1
    run.add_callbacks()
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
    compiles, found = bool(args.torch_compile), Found(peaks={} if gpu else {before: peak_bytes()})
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
    from budget_trainer.training.recovery import is_out_of_memory

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
