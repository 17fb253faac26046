"""Which micro-batches come into question, which of those that were measured is taken, and how many fit. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

MOST_MICRO_BATCH = 4096  # blocks; tried where the recipe leaves the batch open
NOISE_FLOOR, NOISE_CEILING = 0.015, 0.05  # shares of the best throughput within which the smaller micro-batch is taken


def thinned(sizes: Sequence[int]) -> list[int]:
    """Of rising `sizes` those that are at least 1.3 times the one before; the last one stays."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= 1.3 * kept[-1]:
            kept.append(size)
    if kept[-1] != sizes[-1]:
        kept[-1] = sizes[-1]
    return kept


@dataclass(frozen=True)
class MicroStep:
    """A step of one micro-batch, in seconds: `fetch` reads and masks it, `work` is forward and backward, `rest` the
    optimizer and what else comes once per step, whatever the accumulation."""

    fetch: float
    work: float
    rest: float

    def seconds(self, accumulation: int, workers: int = 0) -> float:
        """Of a step of `accumulation` micro-batches; loader workers fetch while the device works."""
        fetch = self.fetch if workers == 0 else max(0.0, self.fetch / workers - self.work)
        return accumulation * (fetch + self.work) + self.rest


def micro_batches(total: int | None, allowed: Callable[[int], bool] = lambda accumulation: True) -> list[int]:
    """Rising micro-batches that make up `total` blocks per process and step with a whole accumulation that is `allowed`.

    None leaves the batch open: powers of two up to MOST_MICRO_BATCH, each a step of its own.
    """
    if total is None:
        return [2**power for power in range(int(math.log2(MOST_MICRO_BATCH)) + 1)]
    small = [number for number in range(1, math.isqrt(total) + 1) if total % number == 0]
    divisors = sorted({*small, *(total // number for number in small)})
    return [number for number in divisors if allowed(total // number)]


def first_size(allowed: Sequence[int], settled: int, marked: int = 0) -> int:
    """Where the ladder begins: at most at the `settled` blocks that have run, because no growth of memory speaks for it yet.

    From a quarter of them on, or from those of the high-water mark where it cannot be reset (`marked`: below it no growth
    shows). The smallest allowed where all are larger.
    """
    below = [size for size in allowed if size <= settled]
    return next((size for size in below if size >= max(marked, settled // 4)), below[-1] if below else allowed[0])


def typical(steps: Sequence[MicroStep]) -> MicroStep:
    """The medians, part by part."""
    return MicroStep(*(median(getattr(step, name) for step in steps) for name in ("fetch", "work", "rest")))


def mean_step(steps: Sequence[MicroStep]) -> MicroStep:
    """The means, part by part: what many steps take together, stalls included."""
    return MicroStep(*(fmean(getattr(step, name) for step in steps) for name in ("fetch", "work", "rest")))


def spread(steps: Sequence[MicroStep]) -> float:
    """How sure the median of the steps is: half the distance of the quartiles over the median and the root of the count."""
    seconds = sorted(step.seconds(1) for step in steps)
    if len(seconds) < 4:
        return NOISE_CEILING
    quarter = len(seconds) // 4
    return (seconds[-1 - quarter] - seconds[quarter]) / 2 / median(seconds) / math.sqrt(len(seconds))


def blocks_per_second(step: MicroStep, micro_batch: int, total: int | None, workers: int = 0) -> float:
    """Blocks per second of steps of `total` blocks; of one micro-batch where that is open."""
    accumulation = 1 if total is None else total // micro_batch
    return micro_batch * accumulation / step.seconds(accumulation, workers)


def choose(measured: Mapping[int, Sequence[MicroStep]], total: int | None, workers: int = 0) -> int:
    """The fastest micro-batch; of those within the noise of the measurement the smallest.

    The noise is the spread of both medians, at least NOISE_FLOOR and at most NOISE_CEILING of the throughput.
    """
    rates = {size: blocks_per_second(typical(steps), size, total, workers) for size, steps in measured.items()}
    best = max(rates, key=lambda size: rates[size])
    for size in sorted(rates):
        noise = min(max(spread(measured[size]) + spread(measured[best]), NOISE_FLOOR), NOISE_CEILING)
        if rates[size] >= rates[best] * (1 - noise):
            return size
    return best


def contenders(measured: Mapping[int, Sequence[MicroStep]], total: int | None, workers: int = 0) -> list[int]:
    """Those of a first look that are worth a longer one: at most 4, within 30 % of the best."""
    rates = {size: blocks_per_second(typical(steps), size, total, workers) for size, steps in measured.items()}
    best = max(rates.values())
    fast = sorted(rates, key=lambda size: -rates[size])[:4]
    return sorted(size for size in fast if rates[size] >= 0.7 * best)


def predicted_memory(peaks: Mapping[int, float], micro_batch: int) -> float:
    """Memory at `micro_batch` by the line through the two largest sizes that were measured (same unit as `peaks`)."""
    sizes = sorted(peaks)[-2:]
    if len(sizes) < 2:
        return peaks[sizes[0]] * max(1.0, micro_batch / sizes[0])  # one size: as if all of it grew
    low, high = sizes
    slope = (peaks[high] - peaks[low]) / (high - low)
    if slope <= 0:  # hidden below a high-water mark: as if all of it grew
        return max(peaks.values()) * max(1.0, micro_batch / high)
    return peaks[high] + slope * (micro_batch - high)


def largest_that_fits(peaks: Mapping[int, float], limit: float) -> int | None:
    """The largest micro-batch below `limit` by the same line; None where memory did not grow between the two."""
    sizes = sorted(peaks)[-2:]
    if len(sizes) < 2 or peaks[sizes[1]] <= peaks[sizes[0]]:
        return None
    slope = (peaks[sizes[1]] - peaks[sizes[0]]) / (sizes[1] - sizes[0])
    return max(sizes[1], int(sizes[1] + (limit - peaks[sizes[1]]) / slope))


def bisect_fits(fits: int, fails: int, values: Sequence[int]) -> int | None:
    """The middle one of `values` between one that fits and one that does not; None where there is none."""
    between = [value for value in values if fits < value < fails]
    return between[len(between) // 2] if between else None
