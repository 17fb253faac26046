"""Which of several model sizes suits a budget: their FLOPs, the tokens they would see, and a rule that says how sure it is.

The rule: tokens per parameter (embeddings and head left out). Causal models are trained best at about 20 (Hoffmann et al.
2022, arXiv 2203.15556); for masked ones, which predict a part of the tokens, 10 to 100 times as many tokens per parameter were
found best (OptiBERT, EMNLP 2025, 2025.emnlp-main.1804). Both come from budgets far above a desk's. LOW to HIGH spans from the
first to the lower end of the second; the size nearest to its middle is named.

From what the probe told to the plan: a dict of JSON. Standard library and the pure parts of the package.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.stages import EveryEpochs, EveryShare, Stages, ValidationPlan, make_stages
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.planning.candidates import MicroStep, blocks_per_second, largest_that_fits
from budget_trainer.planning.predict import Costs, Limits, Prediction, simulate
from budget_trainer.reporting.planned import FORMAT, machine

LOW, HIGH = 20.0, 200.0  # tokens per parameter
# (layers, width): tiny to large, of Turc et al. 2019 (arXiv 1908.08962) and Devlin et al. 2018 (arXiv 1810.04805).
SHAPES = ((2, 128), (4, 256), (4, 512), (8, 512), (12, 768), (24, 1024))
NEIGHBOURS = 2  # shapes on either side of the recipe's


def neighbours(layers: int, width: int) -> list[tuple[int, int]]:
    """The recipe's own shape and the NEIGHBOURS standard ones below and above it, by layers x width^2."""
    size = layers * width * width
    below = [shape for shape in SHAPES if shape[0] * shape[1] ** 2 < size][-NEIGHBOURS:]
    above = [shape for shape in SHAPES if shape[0] * shape[1] ** 2 > size][:NEIGHBOURS]
    return [*below, (layers, width), *above]


def heads_and_inner(width: int, own_width: int, own_heads: int, own_inner: int) -> tuple[int, int]:
    """Heads of the recipe's size and its ratio of the feed-forward block, for another width."""
    head = max(1, own_width // own_heads)
    heads = max(1, width // head)
    while width % heads:
        heads -= 1
    return heads, max(8, round(own_inner / own_width * width / 8) * 8)


def judge(shapes: Sequence[Mapping[str, Any]], tokens: float) -> list[dict[str, Any]]:
    """Each of `shapes` (`flops_per_token`, `body_parameters`, `own`: the recipe's) with the tokens it would see.

    By FLOPs: the own shape's `tokens` at the same FLOP/s. `tokens_per_parameter`, and `fits` where the rule names it.
    """
    own = next(shape for shape in shapes if shape["own"])
    rows = []
    for shape in shapes:
        seen = tokens * own["flops_per_token"] / shape["flops_per_token"]
        rows.append({**shape, "tokens": seen, "tokens_per_parameter": seen / shape["body_parameters"]})
    middle = math.log(math.sqrt(LOW * HIGH))
    nearest = min(rows, key=lambda row: abs(math.log(max(row["tokens_per_parameter"], 1e-9)) - middle))
    return [{**row, "suits": row is nearest} for row in rows]


def reasoning(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `judge` found, in words, with what is not known."""
    best = next(row for row in rows if row["suits"])
    ratio = best["tokens_per_parameter"]
    shape = f"{best['layers']} layers x {best['width']}"
    said = f"By tokens per parameter without embeddings, {shape} suits this budget best ({ratio:,.0f} per parameter"
    said += f"; {LOW:g} to {HIGH:g} is the aim)."
    if ratio < LOW:
        said += " Even the smallest here sees few tokens for its size."
    elif ratio > HIGH:
        said += " Even the largest here sees many tokens for its size."
    return said + (
        f" The {LOW:g} is that of causal models (Hoffmann et al. 2022), ten times that the lower end for masked ones"
        " (OptiBERT, EMNLP 2025). Sure to a factor of several at best: in budgets of minutes larger models than that did as"
        " well or better (recipes/README.md), and other sizes' tokens are by FLOPs, while small models reach a smaller share"
        " of a device. A sweep over the two best sizes at a tenth of the budget tells more."
    )


NOTE_PASSES = 4  # repeats are almost as good as new text up to here for causal models (Muennighoff et al. 2023)
WARN_PASSES = 40  # the most that is known of masked ones: BERT itself (Devlin et al. 2018, about 40 epochs)
COMPILE_PROBED_FROM_SECONDS = 1500.0  # precision.COMPILE_PROBE_SECONDS / precision.PROBE_SHARE


def make_plan(told: Mapping[str, Any], *, num_processes: int, price_per_hour: float | None) -> dict[str, Any]:
    """The whole plan; times in seconds, memory in bytes, `end_at` as a UNIX time if the run began now.

    Raises:
        InputError: the budget does not carry the set-up.
        RunError: the probe ended before it knew enough.
    """
    found = told.get("found")
    if not found or not found["micro_batch"]:
        raise RunError(
            f"probe: its time was over {_state(told)}; give it more with --probe_seconds 120 (or free the machine)"
        )
    micro_batch, total = found["micro_batch"], told["total_per_process"] or found["micro_batch"]
    accumulation = total // micro_batch
    stages = make_stages(
        mlm_probability=told["mlm_probability"],
        gradient_accumulation_steps=accumulation,
        block_size=told["block_size"],
        **told["curves"],
    )
    if told["rows"] < total * num_processes:
        raise InputError(
            f"num_processes: {num_processes} processes take {total * num_processes} blocks per step, "
            f"{told['data']['path']} has {told['rows']}; lower it or per_device_train_batch_size, or prepare more text"
        )
    compiled = _compiled(told, found)
    setup = _setup(told, micro_batch, found["compile_seconds"][-1] if found["compile_seconds"] else 0.0)
    rates = {int(size): _rate(told, MicroStep(**step), int(size)) for size, step in found["measured"].items()}
    prediction, costs = _predict(told, found, stages, compiled, setup, micro_batch, num_processes)
    tokens = prediction.tokens
    working = prediction.train_seconds + prediction.compile_seconds
    per_step = told["flops_per_token"] * tokens / num_processes / max(working, 1e-9)
    passes = prediction.samples / told["rows"]
    plan = {
        "format": FORMAT,
        "made_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "recipe": {
            **told["recipe"],
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": accumulation,
        },
        "data": told["data"],
        "machine": machine(told["hardware"]),
        "device": told["device"],
        "num_processes": num_processes,
        "total_seconds": _finite(told["total_seconds"]),
        "end_seconds": _finite(told["end_seconds"]),
        "prediction": {name: value for name, value in vars(prediction).items() if name != "schedule"},
        "passes_over_corpus": passes,
        "repeats": repeats(passes, told["dup_factor"]),
        "micro_batch": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "total_batch": total * num_processes,
        "batch_asked": told["batch_asked"],
        "measured": {
            size: {"tokens_per_second": rates[size] * told["block_size"], "memory_bytes": _peak(found, size)}
            for size in sorted(rates)
        },
        "rounds": found["rounds"],
        "refused": found["refused"],
        "cut_short": found["cut_short"],
        "unmeasured_stages": found["unmeasured"],
        "probe_failed": told.get("failed"),
        "largest_micro_batch": _largest(found, told),
        "memory_bytes": _peak(found, micro_batch),
        "memory_limit_bytes": told["limit_bytes"],
        "speed": {**told["speed"], "compile": compiled["kind"]},
        "compile": compiled,
        "setup": setup,
        "save_seconds_each": told["save"]["model"],
        "checkpoint_seconds_each": told["save"]["checkpoint"],
        "evaluate_seconds_each": told["evaluate"]["each"],
        "steady": found["steady"] if compiled["step"] else None,
        "step_seconds": costs.step.seconds(accumulation, costs.workers),
        "mfu": per_step / told["peak_flops"] if told["peak_flops"] else None,
        "peak_flops": told["peak_flops"],
        "parameters": told["parameters"],
        "model_type": told["model_type"],
        "schedule": prediction.schedule,
        "stages": {
            name: list(getattr(stages, name)) for name in ("mlm_probability", "accumulation", "sequence_parts")
        },
        "sizes": judge(told["shapes"], tokens) if told["shapes"] else [],
        "cost": None if price_per_hour is None else price_per_hour * _billed(told, prediction) / 3600,
        "price_per_hour": price_per_hour,
    }
    return plan


def repeats(passes: float, dup_factor: int | None) -> dict[str, Any]:
    """`level` (fine, note or warning) and `text` on so many passes over the corpus."""
    limit = WARN_PASSES if dup_factor is None else min(WARN_PASSES, NOTE_PASSES * dup_factor)
    if passes <= NOTE_PASSES:
        return {"level": "fine", "text": "repeats of up to 4 passes cost almost nothing (Muennighoff et al. 2023)"}
    known = (
        "up to 4 passes are almost as good as new text, later ones less and less, for causal models (Muennighoff et al. "
        "2023, arXiv 2305.16264). Masked ones see other targets in each pass: BERT was trained for about 40 (Devlin et "
        "al. 2018), while masked models of proteins over-fitted repeated data (arXiv 2411.02142). Unsure: watch the "
        "held-out loss"
    )
    if passes <= limit:
        return {"level": "note", "text": known}
    fixed = "" if dup_factor is None else f" With dup_factor {dup_factor} the masks repeat too."
    return {"level": "warning", "text": f"more than {limit} passes: {known}; more text would help.{fixed}"}


def _predict(
    told: Mapping[str, Any],
    found: Mapping[str, Any],
    stages: Stages,
    compiled: Mapping[str, Any],
    setup: Mapping[str, float],
    micro_batch: int,
    num_processes: int,
) -> tuple[Prediction, Costs]:
    step = MicroStep(**(compiled["step"] or found["measured"][str(micro_batch)]))
    relative = {}
    for name, value in found["relative"].items():
        rate, _, parts = name.partition("@")
        relative[float(rate), int(parts)] = value
    costs = Costs(
        setup=sum(setup.values()),
        compile=compiled["seconds"],
        save=told["save"]["model"],
        reserve=told["save"]["reserve"],
        checkpoint=told["save"]["checkpoint"],
        evaluate=told["evaluate"]["each"],
        rehearse=told["evaluate"]["rehearsal"],
        micro_batch=micro_batch,
        step=step,
        relative=relative,
        workers=told["workers"],
    )
    schedule = told["schedule"]
    limits = Limits(
        total=told["total_seconds"],
        end=told["end_seconds"],
        max_steps=told["max_steps"],
        by_steps=schedule["schedule"] == "step",
        checkpoint_every=told["checkpoint_seconds"],
        checkpoint_samples=told["checkpoint_samples"] and told["checkpoint_samples"] * num_processes,
        markers=tuple(told["markers"]),
        writes_final=told["writes_final"],
    )
    curve = make_curve(schedule["curve"], schedule["warmup_proportion"], **schedule["curve_options"])
    prediction = simulate(
        costs,
        limits,
        stages,
        _validation(told["validation"], num_processes),
        block_size=told["block_size"],
        num_processes=num_processes,
        curve=curve,
        learning_rate=told["learning_rate"],
    )
    return prediction, costs


def _validation(told: Any, num_processes: int) -> ValidationPlan | None:
    """The run's plan; an "epoch" is a shard per process, and the probe was one process."""
    if told is None:
        return None
    kind, values = told
    if kind == "EveryShare":
        return EveryShare(**values)
    return EveryEpochs(**{**values, "samples_per_epoch": values["samples_per_epoch"] * num_processes})


def _compiled(told: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """`kind`, `seconds` that compiling will take the run, the steady `step` of that kind (None: not measured) and `measured`.

    A run behind this probe finds in the cache what the probe has compiled: less than the probe took.
    """
    kind, times = told["speed"]["compile"], found["compile_seconds"]
    none = {"kind": "no", "seconds": 0.0, "step": None, "cold_seconds": None, "measured": True}
    if kind == "no":
        return {**none, "step": (found["steady"] or none)["step"]}
    if not found["steady"]:
        return {**none, "kind": kind, "measured": False}
    steady = found["steady"]
    step, eager = MicroStep(**steady["typical"]), MicroStep(**found["measured"][str(found["micro_batch"])])
    left = told["end_seconds"]
    probed = told["auto_speed"] and left >= COMPILE_PROBED_FROM_SECONDS
    gains = step.seconds(1) < eager.seconds(1)
    if math.isfinite(left):
        gains = (left - times[-1]) / step.seconds(1) > left / eager.seconds(1)
    if probed and not gains:
        return {**none, "cold_seconds": times[0]}  # the run's own probe will find it does not pay
    return {"kind": kind, "seconds": times[-1], "step": steady["step"], "cold_seconds": times[0], "measured": True}


def _setup(told: Mapping[str, Any], micro_batch: int, compile_seconds: float) -> dict[str, float]:
    """Seconds of set-up by what they go into, at the micro-batch that was chosen."""
    seconds = dict(told["setup"])
    if told["auto_speed"]:
        seconds["precision"] *= micro_batch / told["settled_blocks"]
        if told["speed"]["compile"] != "no" and told["end_seconds"] >= COMPILE_PROBED_FROM_SECONDS:
            seconds["compiling in the run's probe"] = 2 * compile_seconds
    return seconds


def _rate(told: Mapping[str, Any], step: MicroStep, size: int) -> float:
    return blocks_per_second(step, size, told["total_per_process"], told["workers"])


def _peak(found: Mapping[str, Any], size: int) -> float | None:
    return found["peaks"].get(str(size))


def _largest(found: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """`tried`: the largest that was tried and fitted; `extrapolated`: what the growth of memory lets expect (or None)."""
    peaks = {int(size): peak for size, peak in found["peaks"].items()}
    return {"tried": max(peaks), "extrapolated": largest_that_fits(peaks, told["limit_bytes"])}


def _state(told: Mapping[str, Any]) -> str:
    for name, words in (("peak_flops", "among its first steps"), ("parameters", "before the first step")):
        if name in told:
            return words
    return "while it was setting up"


def _billed(told: Mapping[str, Any], prediction: Prediction) -> float:
    return told["end_seconds"] if math.isfinite(told["end_seconds"]) else prediction.used_seconds


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
