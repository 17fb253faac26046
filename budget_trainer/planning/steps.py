"""Which steps the probe takes, in which order, and what follows from their times.

A ladder of micro-batches, the best of them in turns, the stages' other shapes, a compiled step, then steps as the run takes
them. `ProbeSteps` yields requests and is sent results: it needs neither model nor device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, NamedTuple

from budget_trainer.core.errors import RunError

MOST_MICRO_BATCH = 4096  # blocks; tried where the recipe leaves the batch open
NOISE_FLOOR, NOISE_CEILING = 0.015, 0.05  # shares of the best throughput within which the smaller micro-batch is taken
LEAST_ROUNDS, MOST_ROUNDS = 3, 40
LADDER, TURNS, STAGES = (
    0.25,
    0.3,
    0.5,
)  # shares of the time that is left when they begin; the steady steps have the rest
STAGE_REPEATS = 3
CLOSING_SECONDS = 2.0  # the parent needs the last ones
REPORT_EVERY_SECONDS, WINDOW_SECONDS = 1.0, 4.0
NO_ROOM = (
    "per_device_train_batch_size: what the probe does does not fit into the memory of this machine, however small the "
    "micro-batch; plan a smaller model or shorter blocks"
)


class MicroStep(NamedTuple):
    """A step of one micro-batch, in seconds: `fetch` reads and masks it, `work` is forward and backward, `rest` the
    optimizer and what else comes once per step, whatever the accumulation."""

    fetch: float
    work: float
    rest: float

    def seconds(self, accumulation: int, workers: int = 0) -> float:
        """Of a step of `accumulation` micro-batches; loader workers fetch while the device works."""
        fetch = self.fetch if workers == 0 else max(0.0, self.fetch / workers - self.work)
        return accumulation * (fetch + self.work) + self.rest


def _typical(steps: Sequence[MicroStep]) -> MicroStep:
    """The medians, part by part."""
    return MicroStep(*map(median, zip(*steps, strict=True)))


def blocks_per_second(steps: Sequence[MicroStep], micro_batch: int, total: int | None, workers: int = 0) -> float:
    """Blocks per second of whole steps of `total` blocks, by the medians; of one micro-batch where the total is open."""
    accumulation = 1 if total is None else total // micro_batch
    return micro_batch * accumulation / _typical(steps).seconds(accumulation, workers)


def micro_batches(total: int | None, allowed: Callable[[int], bool] = lambda accumulation: True) -> list[int]:
    """Rising micro-batches that make up `total` blocks per process and step with a whole accumulation that is `allowed`.

    None leaves the batch open: powers of two up to MOST_MICRO_BATCH, each a step of its own.
    """
    if total is None:
        return [2**power for power in range(int(math.log2(MOST_MICRO_BATCH)) + 1)]
    small = [number for number in range(1, math.isqrt(total) + 1) if total % number == 0]
    divisors = sorted({*small, *(total // number for number in small)})
    return [number for number in divisors if allowed(total // number)]


def ladder_sizes(allowed: Sequence[int], tried: int, marked: int = 0) -> list[int]:
    """The sizes to try, each at least 1.3 times the one before; the largest allowed one stays.

    The first is at most the `tried` blocks that have run, because no growth of memory speaks for it yet, and at least a
    quarter of them, or `marked` blocks: where the high-water mark of memory cannot be reset, no growth shows below those
    that made it. The smallest allowed where all are larger.
    """
    below = [size for size in allowed if size <= tried]
    first = next((size for size in below if size >= max(marked, tried // 4)), below[-1] if below else allowed[0])
    rising = [size for size in allowed if size >= first]
    kept = rising[:1]
    for size in rising:
        if size >= 1.3 * kept[-1]:
            kept.append(size)
    kept[-1] = rising[-1]
    return kept


def _spread(steps: Sequence[MicroStep]) -> float:
    """How sure the median of the steps is: half the distance of the quartiles over the median and the root of the count."""
    seconds = sorted(step.seconds(1) for step in steps)
    if len(seconds) < 4:
        return NOISE_CEILING
    quarter = len(seconds) // 4
    return (seconds[-1 - quarter] - seconds[quarter]) / 2 / median(seconds) / math.sqrt(len(seconds))


@dataclass(frozen=True)
class StepRequest:
    """A step to take: blocks, eager even where the model is compiled, and a collator other than the run's first one."""

    micro_batch: int
    eager: bool = True
    collator: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class StepResult:
    """The parts of a step in seconds, the memory's high-water mark during it in bytes, or that it did not fit."""

    step: MicroStep
    peak_bytes: float
    fits: bool = True


Steps = Generator[StepRequest, StepResult, None]


@dataclass
class Measurements:
    """What the steps have shown so far. Seconds and bytes; the probe sends it to its parent as it grows."""

    measured: dict[int, list[MicroStep]] = field(default_factory=dict)  # by micro-batch, eager
    peaks: dict[int, float] = field(default_factory=dict)  # by micro-batch; on a CPU 0 is what was used before
    refused: int | None = None  # the smallest that did not fit, or would not by the measured growth
    cut_short: int | None = None  # the first size that the time did not allow to try
    micro_batch: int | None = None  # the choice
    relative: dict[tuple[float, int], float] = field(
        default_factory=dict
    )  # work at (masking rate, parts) to the first
    unmeasured: list[tuple[float, int]] = field(default_factory=list)  # stages' shapes for which there was no time
    steady: list[MicroStep] = field(default_factory=list)  # of `micro_batch` as the run takes them
    compiling: float | None = None  # the first compiled step
    cached: float = 0.0  # of it, what the next process finds in the compiler's cache

    def typical(self, micro_batch: int) -> MicroStep:
        """The medians of the eager steps of this size, part by part."""
        return _typical(self.measured[micro_batch])

    def predicted_memory(self, micro_batch: int) -> float:
        """Memory at `micro_batch` by the line through the peaks of the two largest sizes that were measured.

        As if all of it grew with the batch where one size was measured, or the growth is hidden below a high-water mark.
        """
        largest = max(self.peaks)
        slope = self._memory_per_block()
        if slope is None:
            return max(self.peaks.values()) * max(1.0, micro_batch / largest)
        return self.peaks[largest] + slope * (micro_batch - largest)

    def largest_that_fits(self, limit_bytes: float) -> int | None:
        """The largest micro-batch below the limit by the same line; None where no growth was seen."""
        largest, slope = max(self.peaks), self._memory_per_block()
        return None if slope is None else max(largest, int(largest + (limit_bytes - self.peaks[largest]) / slope))

    def _memory_per_block(self) -> float | None:
        sizes = sorted(self.peaks)[-2:]
        if len(sizes) < 2 or self.peaks[sizes[1]] <= self.peaks[sizes[0]]:
            return None
        return (self.peaks[sizes[1]] - self.peaks[sizes[0]]) / (sizes[1] - sizes[0])

    def compile_seconds(self) -> tuple[float, float] | None:
        """Of compiling as measured, and with what is in the cache now; None where it is not known."""
        if self.compiling is None or not self.steady:
            return None
        cold = max(0.0, self.compiling - _typical(self.steady).seconds(1))
        return cold, max(0.0, cold - self.cached)

    def steady_state(self) -> dict[str, Any] | None:
        """`step`: the means, what many steps take together, stalls included; `typical`: the medians; `seconds` of all.

        `slowest` and `fastest` are shares of the mean speed in windows of WINDOW_SECONDS, None for less than two windows.
        None before there was a steady step.
        """
        if not self.steady:
            return None
        whole = sum(step.seconds(1) for step in self.steady)
        speeds, seconds, count = [], 0.0, 0
        for step in self.steady:
            seconds, count = seconds + step.seconds(1), count + 1
            if seconds >= WINDOW_SECONDS:
                speeds.append(count / seconds * whole / len(self.steady))
                seconds, count = 0.0, 0
        known = len(speeds) > 1
        return {
            "step": MicroStep(*map(fmean, zip(*self.steady, strict=True)))._asdict(),
            "typical": _typical(self.steady)._asdict(),
            "seconds": whole,
            "slowest": min(speeds) if known else None,
            "fastest": max(speeds) if known else None,
        }


@dataclass
class ProbeSteps:
    """The probe's steps under its conditions; `results` has what they have shown so far, `report` tells the parent.

    `total` blocks make up a step of a process (None: open); `deadline` is of time.monotonic(); on a CPU `limit_bytes` must
    not be passed, a GPU refuses by itself. The `collators` are those of stages with other shapes than the first one's.
    """

    results: Measurements
    sizes: Sequence[int]
    total: int | None
    workers: int = 0
    limit_bytes: float = math.inf
    deadline: float = math.inf
    gpu: bool = False
    compiles: bool = False
    collators: Mapping[tuple[float, int], Callable[[Any], Any]] = field(default_factory=dict)
    report: Callable[[], None] = lambda: None

    def all(self) -> Steps:
        """RunError where not even one size could be measured."""
        yield from self.ladder(self._after(LADDER))
        if not self.results.measured:
            raise RunError(
                f"per_device_train_batch_size: a step of {self.sizes[0]} does not fit into the memory of this machine; "
                "plan a smaller model or shorter blocks"
            )
        yield from self.turns(self._after(TURNS))
        self.report()
        if self.collators:
            yield from self.stages(self._after(STAGES))
            self.report()
        if self.compiles:
            yield from self.compilation()
        yield from self.steady(self._after(1.0))

    def _after(self, share: float) -> float:
        """When this share of what is left now will have passed."""
        now = time.monotonic()
        return now + share * max(0.0, self.deadline - CLOSING_SECONDS - now)

    def ladder(self, until: float) -> Steps:
        """Two steps of each size, rising (the first warms up), until one does not fit, time runs out or nothing is gained.

        On a GPU what does not fit is refused by the device, and the border is bisected; on a CPU a size is not tried whose
        memory, by the growth so far, would be above the limit.
        """
        found, slower = self.results, 0
        for size in self.sizes:
            if found.measured and not self.gpu and found.predicted_memory(size) > self.limit_bytes:
                found.refused = size
                break
            if found.measured and time.monotonic() + 2.5 * self._expected_seconds(size) > until:
                found.cut_short = size
                break
            if not (yield from self._try(size)):
                found.refused = size
                break
            rates = self._rates()
            slower = slower + 1 if rates[size] < 0.9 * max(rates.values()) else 0
            if slower == 2:
                break
        while self.gpu and found.refused is not None and found.measured and time.monotonic() < until:
            largest = max(found.measured)
            candidates = range(largest + 1, found.refused) if self.total is None else self.sizes
            between = [size for size in candidates if largest < size < found.refused]
            if not between or (self.total is None and found.refused - largest <= largest // 8):
                break
            middle = between[len(between) // 2]
            if not (yield from self._try(middle)):
                found.refused = middle

    def _expected_seconds(self, size: int) -> float:
        """Of a step of `size`, from the largest one measured."""
        largest = max(self.results.measured)
        step = self.results.measured[largest][-1]
        return (step.fetch + step.work) * size / largest + step.rest

    def _try(self, size: int) -> Generator[StepRequest, StepResult, bool]:
        found = self.results
        for number in range(2):
            result: StepResult = yield StepRequest(size)
            if not result.fits:
                self._drop(size)
                return False
            found.peaks[size] = max(found.peaks.get(size, 0.0), result.peak_bytes)
            if number:
                found.measured[size] = [result.step]
        return True

    def _drop(self, size: int) -> None:
        """Forget a size that did not fit after all: what is in `peaks` did."""
        self.results.measured.pop(size, None)
        self.results.peaks.pop(size, None)

    def turns(self, until: float) -> Steps:
        """The contenders in turns, so that the machine's noise hits all of them; chooses `micro_batch`.

        Contenders are at most 4 sizes, within 30 % of the best of the ladder.
        """
        found = self.results
        rates = self._rates()
        fast = sorted(rates, key=lambda size: -rates[size])[:4]
        sizes = sorted(size for size in fast if rates[size] >= 0.7 * max(rates.values()))
        for steps in found.measured.values():
            steps.clear()  # the look of the ladder was one step
        rounds = 0
        while rounds < MOST_ROUNDS:
            begin = time.monotonic()
            for size in sizes if rounds % 2 else sizes[::-1]:
                result = yield StepRequest(size)
                if result.fits:
                    found.measured[size].append(result.step)
                else:  # it was a close thing
                    self._drop(size)
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
        found.micro_batch = self.choose()

    def choose(self) -> int:
        """The fastest micro-batch; of those within the noise of the measurement the smallest.

        The noise is the spread of both medians, at least NOISE_FLOOR and at most NOISE_CEILING of the throughput.
        """
        rates, measured = self._rates(), self.results.measured
        best = max(rates, key=lambda size: rates[size])
        for size in sorted(rates):
            noise = min(max(_spread(measured[size]) + _spread(measured[best]), NOISE_FLOOR), NOISE_CEILING)
            if rates[size] >= rates[best] * (1 - noise):
                return size
        return best

    def _rates(self) -> dict[int, float]:
        measured = self.results.measured.items()
        return {size: blocks_per_second(steps, size, self.total, self.workers) for size, steps in measured}

    def stages(self, until: float) -> Steps:
        """The work of the stages' other shapes beside the first one's, in turns; what the time does not allow is noted."""
        for shape, collator in self.collators.items():
            if time.monotonic() > until:
                self.results.unmeasured.append(shape)
                continue
            own, other = [], []
            for number in range(STAGE_REPEATS + 1):
                first = yield from self._chosen("a second time it")
                second = yield from self._chosen(
                    f"a later stage of it ({shape[0]}@{shape[1]}: masking rate@parts of a block)", collator=collator
                )
                if number:  # the first ones warm up
                    own.append(first)
                    other.append(second)
                    if time.monotonic() > until:
                        break
            self.results.relative[shape] = _typical(other).work / _typical(own).work

    def compilation(self) -> Steps:
        """The first compiled step of the chosen size, which compiles."""
        step = yield from self._chosen("compiled it", eager=False)
        self.results.compiling, self.results.cached = step.seconds(1), _seconds_cached()

    def steady(self, until: float) -> Steps:
        """The chosen size as the run takes it, for all the time there is: a machine has slower and faster minutes, and a
        run's tokens follow from their mean."""
        reported = -math.inf
        while True:
            step = yield from self._chosen("once more it", eager=not self.compiles)
            self.results.steady.append(step)
            now = time.monotonic()
            if now - reported >= REPORT_EVERY_SECONDS:
                reported = now
                self.report()
            if now + step.seconds(1) > until:
                break

    def _chosen(self, what: str, **request: Any) -> Generator[StepRequest, StepResult, MicroStep]:
        """A step of the chosen size. RunError where it does not fit although it did before."""
        size = self.results.micro_batch
        assert size is not None
        result: StepResult = yield StepRequest(size, **request)
        if not result.fits:
            raise RunError(
                f"per_device_train_batch_size: {size} fits into the memory of this machine, {what} does not; plan a "
                "smaller per_device_train_batch_size, or a smaller model"
            )
        return result.step


def _seconds_cached() -> float:
    """Seconds of the compilations so far that the next process will not need: their graphs were not in the cache and are now.

    0.0 where nothing was missing there, or torch does not tell (the names are not of its public interface).
    """
    from torch._dynamo import utils

    if not utils.counters["inductor"].get("fxgraph_cache_miss", 0):
        return 0.0
    return float(sum(getattr(utils, "compilation_time_metrics", {}).get("fx_codegen_and_compile", ())))
