"""In which order the probe takes its steps: a ladder of sizes, the best in turns, stages, compiled. Generators only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budget_trainer.core.errors import RunError
from budget_trainer.planning.candidates import (
    MicroStep,
    bisect_fits,
    blocks_per_second,
    choose,
    contenders,
    mean_step,
    predicted_memory,
    typical,
)
from budget_trainer.planning.measure import Order, Schedule, Taken

LEAST_ROUNDS, MOST_ROUNDS = 3, 40
CACHED = ("fx_codegen_and_compile",)  # torch's name of what its cache saves
# Shares of the time that is left when they begin; the steady steps have the rest.
LADDER, TURNS, STAGES = 0.25, 0.3, 0.5
CLOSING_SECONDS = 2.0
TELL_EVERY_SECONDS, WINDOW_SECONDS = 1.0, 4.0
NO_ROOM = (
    "per_device_train_batch_size: what the probe does does not fit into the memory of this machine, however small the "
    "micro-batch; plan a smaller model or shorter blocks"
)


@dataclass(frozen=True)
class Ends:
    """The probe's time, in seconds of time.monotonic()."""

    begin: float
    deadline: float

    @property
    def whole(self) -> float:
        return self.deadline - self.begin

    def after(self, share: float) -> float:
        """When this share of what is left now will have passed; the parent needs the last seconds."""
        now = time.monotonic()
        return now + share * max(0.0, self.deadline - CLOSING_SECONDS - now)


@dataclass(frozen=True)
class Situation:
    """What the steps are taken in: rising `sizes` to try, `total` blocks per process and step (None: open), the loader's
    `workers`, the memory's limit in bytes, the time, the device, whether the run compiles, collators of `others`, the other
    stages, and what tells the parent."""

    sizes: Sequence[int]
    total: int | None
    workers: int
    limit_bytes: float
    ends: Ends
    gpu: bool
    compiles: bool
    others: Mapping[str, Callable]
    tell: Callable[[], None]


@dataclass
class Found:
    """What the steps told. Seconds and bytes."""

    measured: dict[int, list[MicroStep]] = field(default_factory=dict)
    peaks: dict[int, float] = field(default_factory=dict)  # by micro-batch; on a CPU 0 is what was used before
    refused: int | None = None  # the smallest that did not fit, or would not by the measured growth
    cut_short: int | None = None  # the first size that the time did not allow to try
    micro_batch: int | None = None
    relative: dict[str, float] = field(default_factory=dict)  # of stages' shapes, work to the first one's
    unmeasured: list[str] = field(default_factory=list)  # stages' shapes for which there was no time
    steady: list[MicroStep] = field(default_factory=list)  # of `micro_batch` as the run takes them
    compiling: float | None = None  # the first compiled step
    saved: float = 0.0  # of it, by what is in the cache now


def usual(found: Found, now: Situation) -> Schedule:
    """The probe's steps. RunError where not even one size could be measured."""
    yield from ladder(found, now.sizes, now.total, now.limit_bytes, now.ends.after(LADDER), now.gpu)
    if not found.measured:
        raise RunError(
            f"per_device_train_batch_size: a step of {now.sizes[0]} does not fit into the memory of this machine; plan a "
            "smaller model or shorter blocks"
        )
    yield from turns(found, now.total, now.workers, now.ends.after(TURNS))
    now.tell()
    if now.others:
        yield from shapes(found, now.others, now.ends.after(STAGES))
        now.tell()
    if now.compiles:
        yield from compilation(found)
    yield from steady(found, now.ends.after(1.0), now.compiles, now.tell)


def ladder(
    found: Found, sizes: Sequence[int], total: int | None, limit_bytes: float, until: float, gpu: bool
) -> Schedule:
    """Two steps of each size, rising (the first warms up), until one does not fit, time runs out or nothing is gained.

    On a GPU what does not fit is refused by the device, and the border is bisected; on a CPU a size is not tried whose
    memory, by the growth so far, would be above `limit_bytes`.
    """
    slower = 0
    for size in sizes:
        if found.measured and not gpu and predicted_memory(found.peaks, size) > limit_bytes:
            found.refused = size
            break
        if found.measured and time.monotonic() + 2.5 * _expected(found, size) > until:
            found.cut_short = size
            break
        if not (yield from _try(found, size)):
            found.refused = size
            break
        rates = {tried: blocks_per_second(steps[-1], tried, total) for tried, steps in found.measured.items()}
        slower = slower + 1 if rates[size] < 0.9 * max(rates.values()) else 0
        if slower == 2:
            break
    while gpu and found.refused is not None and found.measured and time.monotonic() < until:
        between = range(max(found.measured) + 1, found.refused) if total is None else sizes
        middle = bisect_fits(max(found.measured), found.refused, between)
        if middle is None or (total is None and found.refused - max(found.measured) <= max(found.measured) // 8):
            break
        if not (yield from _try(found, middle)):
            found.refused = middle


def _expected(found: Found, size: int) -> float:
    """Seconds of a step of `size`, from the largest one measured."""
    largest = max(found.measured)
    step = found.measured[largest][-1]
    return (step.fetch + step.work) * size / largest + step.rest


def _try(found: Found, size: int) -> Generator[Order, Taken, bool]:
    for number in range(2):
        taken: Taken = yield Order(size)
        if not taken.fits:
            _drop(found, size)
            return False
        found.peaks[size] = max(found.peaks.get(size, 0.0), taken.peak_bytes)
        if number:
            found.measured[size] = [taken.step]
    return True


def _drop(found: Found, size: int) -> None:
    """Forget a size that did not fit after all: what is in `peaks` did."""
    found.measured.pop(size, None)
    found.peaks.pop(size, None)


def _fitting(taken: Taken, size: int, what: str) -> Taken:
    if not taken.fits:
        raise RunError(
            f"per_device_train_batch_size: {size} fits into the memory of this machine, {what} does not; plan a smaller "
            "per_device_train_batch_size, or a smaller model"
        )
    return taken


def turns(found: Found, total: int | None, workers: int, until: float) -> Schedule:
    """The contenders in turns, so that the machine's noise hits all of them; settles `micro_batch`."""
    sizes = contenders(found.measured, total, workers)
    for steps in found.measured.values():
        steps.clear()  # the look of the ladder was one step
    rounds = 0
    while rounds < MOST_ROUNDS:
        begin = time.monotonic()
        for size in sizes if rounds % 2 else sizes[::-1]:
            taken = yield Order(size)
            if taken.fits:
                found.measured[size].append(taken.step)
            else:  # it was a close thing
                _drop(found, size)
                found.refused = min(size, found.refused or size)
        sizes = [size for size in sizes if size in found.measured]
        if not found.measured:
            raise RunError(NO_ROOM)
        if not sizes:  # what was slower is left
            sizes, rounds = sorted(found.measured), 0
            continue
        rounds += 1
        if rounds >= LEAST_ROUNDS and 2 * time.monotonic() - begin > until:
            break
    found.measured = {size: found.measured[size] for size in sizes}
    found.micro_batch = choose(found.measured, total, workers)


def shapes(found: Found, collators: Mapping[str, Callable], until: float, repeats: int = 3) -> Schedule:
    """The work of the stages' other shapes beside the first one's, in turns; what the time does not allow is `unmeasured`."""
    assert found.micro_batch is not None
    for name, collator in collators.items():
        if time.monotonic() > until:
            found.unmeasured.append(name)
            continue
        own, other = [], []
        for number in range(repeats + 1):
            first = _fitting((yield Order(found.micro_batch)), found.micro_batch, "a second time it")
            second = yield Order(found.micro_batch, collator=collator)
            _fitting(second, found.micro_batch, f"a later stage of it ({name}: masking rate@parts of a block)")
            if number:
                own.append(first.step)
                other.append(second.step)
                if time.monotonic() > until:
                    break
        found.relative[name] = typical(other).work / typical(own).work


def compilation(found: Found) -> Schedule:
    """The first compiled step of the chosen size, which compiles."""
    assert found.micro_batch is not None
    taken = _fitting((yield Order(found.micro_batch, eager=False)), found.micro_batch, "compiled it")
    found.compiling, found.saved = taken.step.seconds(1), saved_by_cache()


def steady(found: Found, until: float, compiles: bool, say: Callable[[], None]) -> Schedule:
    """The chosen size as the run takes it, for all the time there is: a machine has slower and faster minutes, a run's
    tokens come of their mean. `say` is called when something is known."""
    assert found.micro_batch is not None
    said = -math.inf
    while True:
        taken = _fitting((yield Order(found.micro_batch, eager=not compiles)), found.micro_batch, "once more it")
        found.steady.append(taken.step)
        now = time.monotonic()
        if now - said >= TELL_EVERY_SECONDS:
            said = now
            say()
        if now + taken.step.seconds(1) > until:
            break


def compile_seconds(found: Found) -> list[float]:
    """As measured, and with what is in the cache now; empty where it is not known."""
    if found.compiling is None or not found.steady:
        return []
    cold = max(0.0, found.compiling - typical(found.steady).seconds(1))
    return [cold, max(0.0, cold - found.saved)]


def saved_by_cache() -> float:
    """Seconds of the compilations so far that the next process will not need: graphs that were not in the cache and are now.

    0.0 where nothing was missing there, or torch does not tell (the names are not of its public interface).
    """
    from torch._dynamo import utils

    if not utils.counters["inductor"].get("fxgraph_cache_miss", 0):
        return 0.0
    times = getattr(utils, "compilation_time_metrics", {})
    return float(sum(sum(times.get(name, ())) for name in CACHED))


def steady_state(steps: Sequence[MicroStep]) -> dict[str, Any]:
    """`step`: the means; `typical`: the medians; `seconds`: of all of them; `slowest` and `fastest`: shares of the mean
    speed, in windows of WINDOW_SECONDS; both None for less than two windows."""
    whole = sum(step.seconds(1) for step in steps)
    speeds, seconds, count = [], 0.0, 0
    for step in steps:
        seconds, count = seconds + step.seconds(1), count + 1
        if seconds >= WINDOW_SECONDS:
            speeds.append(count / seconds * whole / len(steps))
            seconds, count = 0.0, 0
    known = len(speeds) > 1
    return {
        "step": vars(mean_step(steps)),
        "typical": vars(typical(steps)),
        "seconds": whole,
        "slowest": min(speeds) if known else None,
        "fastest": max(speeds) if known else None,
    }


def as_dict(found: Found) -> dict[str, Any]:
    """For JSON: the medians of each size, and the rest as it is."""
    return {
        "measured": {size: vars(typical(steps)) for size, steps in found.measured.items() if steps},
        "rounds": min((len(steps) for steps in found.measured.values()), default=0),
        "peaks": found.peaks,
        "refused": found.refused,
        "cut_short": found.cut_short,
        "micro_batch": found.micro_batch,
        "relative": found.relative,
        "unmeasured": found.unmeasured,
        "steady": steady_state(found.steady) if found.steady else None,
        "compile_seconds": compile_seconds(found),
    }
