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

_NOISE_FLOOR, _NOISE_CEILING = 0.015, 0.05  # shares of the best throughput within which the smaller size is taken
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 40
# Shares of the time that is left when they begin; the steady steps have the rest.
_LADDER_SHARE, _TURNS_SHARE, _STAGES_SHARE = 0.25, 0.3, 0.5
_STAGE_REPEATS = 3
_CLOSING_SECONDS = 2.0  # the parent needs the last ones
_REPORT_EVERY_SECONDS, _WINDOW_SECONDS = 1.0, 4.0
NO_ROOM = "per_device_train_batch_size: none fits into this machine's memory; plan a smaller model or shorter blocks"


class MicroStep(NamedTuple):
    """A step of one micro-batch, in seconds: `fetch` reads and masks it, `work` is forward and backward, `rest` the
    optimizer and what else comes once per step, whatever the accumulation."""

    fetch: float = 0.0
    work: float = 0.0
    rest: float = 0.0

    def seconds(self, accumulation: int = 1, workers: int = 0) -> float:
        """Of a step of `accumulation` micro-batches; loader workers fetch while the device works."""
        fetch = self.fetch if workers == 0 else max(0.0, self.fetch / workers - self.work)
        return accumulation * (fetch + self.work) + self.rest


def _medians(steps: Sequence[MicroStep]) -> MicroStep:
    return MicroStep(*map(median, zip(*steps, strict=True)))


def micro_batches(total: int | None, allowed: Callable[[int], bool] = lambda accumulation: True) -> list[int]:
    """Rising micro-batches that make up `total` blocks per process and step with a whole accumulation that is `allowed`.

    None leaves the batch open: powers of two up to 4096, each a step of its own.
    """
    if total is None:
        return [2**power for power in range(13)]
    return [size for size in range(1, total + 1) if total % size == 0 and allowed(total // size)]


def _spread(steps: Sequence[MicroStep]) -> float:
    """How sure the median of the steps is: half the distance of the quartiles over the median and the root of the count."""
    seconds = sorted(step.seconds() for step in steps)
    if len(seconds) < 4:
        return _NOISE_CEILING
    quarter = len(seconds) // 4
    return (seconds[-1 - quarter] - seconds[quarter]) / 2 / median(seconds) / math.sqrt(len(seconds))


class StepRequest(NamedTuple):
    """A step to take: blocks, eager even where the model is compiled, and a collator other than the run's first one."""

    micro_batch: int
    eager: bool = True
    collator: Callable[[Any], Any] | None = None


class StepResult(NamedTuple):
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
    # By masking rate and parts of a block: the work relative to the first stage's, and those there was no time for.
    relative: dict[tuple[float, int], float] = field(default_factory=dict)
    unmeasured: list[tuple[float, int]] = field(default_factory=list)
    steady: list[MicroStep] = field(default_factory=list)  # of `micro_batch` as the run takes them
    first_compiled: float | None = None  # seconds of the first compiled step
    cached: float = 0.0  # of those, what the next process finds in torch's cache

    def typical(self, micro_batch: int) -> MicroStep:
        """The medians of the eager steps of this size, part by part."""
        return _medians(self.measured[micro_batch])

    def blocks_per_second(self, micro_batch: int, total: int | None, workers: int = 0) -> float:
        """Of whole steps of `total` blocks, by the medians; of one micro-batch where the total is open."""
        accumulation = 1 if total is None else total // micro_batch
        return micro_batch * accumulation / self.typical(micro_batch).seconds(accumulation, workers)

    def predicted_memory(self, micro_batch: int) -> float:
        """Memory at `micro_batch` by the line through the peaks of the two largest sizes that were measured.

        As if all of it grew with the batch where one size was measured, or the growth is hidden below a high-water mark.
        """
        largest, slope = max(self.peaks), self._memory_per_block()
        if slope is None:
            return max(self.peaks.values()) * max(1.0, micro_batch / largest)
        return self.peaks[largest] + slope * (micro_batch - largest)

    def largest_that_fits(self, limit_bytes: float) -> int | None:
        """The largest micro-batch below the limit by the same line; None where no growth was seen."""
        largest, slope = max(self.peaks), self._memory_per_block()
        return None if slope is None else max(largest, int(largest + (limit_bytes - self.peaks[largest]) / slope))

    def _memory_per_block(self) -> float | None:
        sizes = sorted(self.peaks)[-2:]
        grown = self.peaks[sizes[-1]] - self.peaks[sizes[0]]
        return grown / (sizes[-1] - sizes[0]) if grown > 0 else None

    def compile_seconds(self) -> float | None:
        """What the run's first compiled step, which finds the probe's cache, will take longer than later ones (or None)."""
        if self.first_compiled is None or not self.steady:
            return None
        return max(0.0, self.first_compiled - self.cached - _medians(self.steady).seconds())

    def steady_state(self) -> dict[str, Any] | None:
        """`step`: the means, what many steps take together, stalls included; `typical`: the medians; `seconds` of all.

        `slowest` and `fastest` are shares of the mean speed in windows of _WINDOW_SECONDS, None for less than two windows.
        None before there was a steady step.
        """
        if not self.steady:
            return None
        whole = sum(step.seconds() for step in self.steady)
        speeds, seconds, count = [], 0.0, 0
        for step in self.steady:
            seconds, count = seconds + step.seconds(), count + 1
            if seconds >= _WINDOW_SECONDS:
                speeds.append(count / seconds * whole / len(self.steady))
                seconds, count = 0.0, 0
        return {
            "step": MicroStep(*map(fmean, zip(*self.steady, strict=True)))._asdict(),
            "typical": _medians(self.steady)._asdict(),
            "seconds": whole,
            "slowest": min(speeds) if len(speeds) > 1 else None,
            "fastest": max(speeds) if len(speeds) > 1 else None,
        }


@dataclass
class ProbeSteps:
    """The probe's steps under its conditions; `results` has what they have shown so far, `report` sends it to the parent.

    The `allowed` sizes rise; `tried` blocks have run before. Where the high-water mark of memory cannot be reset, no growth
    shows below the `marked` blocks that made it. `total` blocks make up a step of a process (None: open); `deadline` is of
    time.monotonic(); on a CPU `limit_bytes` must not be passed, a GPU refuses by itself. The `collators` are those of stages
    with other shapes than the first one's.
    """

    results: Measurements
    allowed: Sequence[int]
    total: int | None
    tried: int = 1
    marked: int = 0
    workers: int = 0
    limit_bytes: float = math.inf
    deadline: float = math.inf
    gpu: bool = False
    compiles: bool = False
    collators: Mapping[tuple[float, int], Callable[[Any], Any]] = field(default_factory=dict)
    report: Callable[[], None] = lambda: None

    def all(self) -> Steps:
        """RunError where not even one size could be measured."""
        yield from self.ladder(self._after(_LADDER_SHARE))
        yield from self.turns(self._after(_TURNS_SHARE))
        self.report()  # a plan can be made from here on, whatever happens to the later steps
        yield from self.stages(self._after(_STAGES_SHARE))
        if self.compiles:
            self.report()
            yield from self.compilation()
        yield from self.steady(self._after(1.0))

    def _after(self, share: float) -> float:
        """When this share of what is left now will have passed."""
        now = time.monotonic()
        return now + share * max(0.0, self.deadline - _CLOSING_SECONDS - now)

    def sizes(self) -> list[int]:
        """The ladder's: each at least 1.3 times the one before; the largest allowed one stays.

        The first is at most what was tried, because no growth of memory speaks for it yet, and at least a quarter of that,
        or what is marked. The smallest allowed where all are larger.
        """
        below = [size for size in self.allowed if size <= self.tried] or self.allowed[:1]
        least = max(self.marked, self.tried // 4)
        first = next((size for size in below if size >= least), below[-1])
        kept = [first]
        for size in self.allowed:
            if size >= 1.3 * kept[-1]:
                kept.append(size)
        kept[-1] = self.allowed[-1]
        return kept

    def ladder(self, until: float) -> Steps:
        """Two steps of each size, rising (the first warms up), until one does not fit, time runs out or nothing is gained.

        On a GPU what does not fit is refused by the device, and the border is bisected; on a CPU a size is not tried whose
        memory, by the growth so far, would be above the limit.
        """
        found, rungs, slower = self.results, self.sizes(), 0
        while slower < 2:
            largest = max(found.measured, default=0)
            sizes = [size for size in rungs if largest < size < (found.refused or math.inf)]
            if found.refused and self.total is None:  # any size will do; as near to the border as an eighth
                sizes = [*range(largest + 1, found.refused)] if found.refused - largest > largest // 8 else []
            if not sizes or (found.refused and not self.gpu):
                break
            size = sizes[len(sizes) // 2 if found.refused else 0]
            if found.measured and not self.gpu and found.predicted_memory(size) > self.limit_bytes:
                found.refused = size
                break
            if found.measured:
                step = found.measured[largest][-1]
                expected = (step.fetch + step.work) * size / largest + step.rest
                if time.monotonic() + 2.5 * expected > until:
                    found.cut_short = None if found.refused else size
                    break
            for _ in range(2):
                result = yield StepRequest(size)
                if not result.fits:
                    self._refuse(size)
                    break
                found.peaks[size] = max(found.peaks.get(size, 0.0), result.peak_bytes)
            else:
                found.measured[size] = [result.step]
                rates = self._rates()
                slower = slower + 1 if rates[size] < 0.9 * max(rates.values()) else 0

    def _refuse(self, size: int) -> None:
        """Forget what was measured of a size that did not fit after all: what is in `peaks` did."""
        found = self.results
        found.measured.pop(size, None)
        found.peaks.pop(size, None)
        found.refused = min(size, found.refused or size)

    def turns(self, until: float) -> Steps:
        """The contenders in turns, so that the machine's noise hits all of them; chooses `micro_batch`.

        Contenders are at most 4 sizes, within 30 % of the best of the ladder. RunError where no size fits.
        """
        found, rates = self.results, self._rates()
        fast = sorted(rates, key=lambda size: -rates[size])[:4]
        sizes = sorted(size for size in fast if rates[size] >= 0.7 * max(rates.values()))
        for steps in found.measured.values():
            steps.clear()  # the ladder took one step of each, too few to choose by
        rounds, done = 0, False
        while not done:
            begin = time.monotonic()
            sizes = [size for size in sizes if size in found.measured] or sorted(found.measured)  # or what was slower
            if not sizes:
                raise RunError(NO_ROOM)
            for size in sizes if rounds % 2 else sizes[::-1]:
                result = yield StepRequest(size)
                if result.fits:
                    found.measured[size].append(result.step)
                else:  # it was a close thing
                    self._refuse(size)
            rounds += 1
            enough = all(len(found.measured.get(size, ())) >= _LEAST_ROUNDS for size in sizes)
            done = enough and (rounds >= _MOST_ROUNDS or 2 * time.monotonic() - begin > until)
        found.measured = {size: found.measured[size] for size in sizes}
        found.micro_batch = self.choose()

    def choose(self) -> int:
        """The fastest micro-batch; of those within the noise of the measurement the smallest.

        The noise is the spread of both medians, at least _NOISE_FLOOR and at most _NOISE_CEILING of the throughput.
        """
        rates, spread = self._rates(), {size: _spread(steps) for size, steps in self.results.measured.items()}
        best = max(rates, key=lambda size: rates[size])
        noise = {size: min(max(spread[size] + spread[best], _NOISE_FLOOR), _NOISE_CEILING) for size in rates}
        return min(size for size in rates if rates[size] >= rates[best] * (1 - noise[size]))

    def _rates(self) -> dict[int, float]:
        found = self.results
        return {size: found.blocks_per_second(size, self.total, self.workers) for size in found.measured}

    def stages(self, until: float) -> Steps:
        """The work of the stages' other shapes beside the first one's, in turns; what the time does not allow is noted."""
        for shape, collator in self.collators.items():
            if time.monotonic() > until:
                self.results.unmeasured.append(shape)
                continue
            pairs = []
            for number in range(_STAGE_REPEATS + 1):
                first = yield from self._chosen()
                other = yield from self._chosen(collator=collator)
                if number:  # the first ones warm up
                    pairs.append((first.work, other.work))
                    if time.monotonic() > until:
                        break
            own, others = map(median, zip(*pairs, strict=True))
            self.results.relative[shape] = others / own

    def compilation(self) -> Steps:
        """The first compiled step of the chosen size, which compiles."""
        from torch._dynamo.utils import compilation_time_metrics, counters

        self.results.first_compiled = (yield from self._chosen(eager=False)).seconds()
        if counters["inductor"]["fxgraph_cache_miss"]:  # 64.6 s were 4.6 s in the next process; this takes 57.5 off
            self.results.cached = float(sum(compilation_time_metrics.get("fx_codegen_and_compile", ())))

    def steady(self, until: float) -> Steps:
        """The chosen size as the run takes it, for all the time there is: a machine has slower and faster minutes, and a
        run's tokens follow from their mean."""
        now, reported = -math.inf, -math.inf
        while now <= until:
            step = yield from self._chosen(eager=not self.compiles)
            self.results.steady.append(step)
            now = time.monotonic()
            if now - reported >= _REPORT_EVERY_SECONDS:
                reported = now
                self.report()
            now += step.seconds()

    def _chosen(self, **request: Any) -> Generator[StepRequest, StepResult, MicroStep]:
        """A step of the chosen size. RunError where it does not fit although it did before."""
        assert self.results.micro_batch is not None
        asked = StepRequest(self.results.micro_batch, **request)
        result: StepResult = yield asked
        if not result.fits:
            what = "of a later stage" if asked.collator else "once more" if asked.eager else "compiled"
            raise RunError(
                f"per_device_train_batch_size: a step of {asked.micro_batch} fits into the memory of this machine, {what} it "
                "does not; plan a smaller per_device_train_batch_size, or a smaller model"
            )
        return result.step
