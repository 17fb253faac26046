"""What changes along the budget in a few stages (masking rate, batch size, sequence length), and when to validate.

A curve is written `value@share,value@share`: `0.3@0,0.15@0.6` masks 30 % from the start and 15 % from 60 % of the schedule
on. At most 4 values each: every one has its own static shapes, and torch.compile compiles each once.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from budget_trainer.core.errors import InputError

_MOST_STAGES = 4
Steps = tuple[tuple[float, float], ...]  # (share of the schedule, value) in rising order


@dataclass(frozen=True)
class Stage:
    """What holds until the next stage begins."""

    mlm_probability: float
    accumulation: int  # micro-batches per optimizer step and process
    sequence_parts: int  # parts that each block is cut into

    def has_shapes_of(self, other: Stage) -> bool:
        """Whether a micro-batch has the same tensors' shapes in both: the accumulation only repeats it."""
        return (self.mlm_probability, self.sequence_parts) == (other.mlm_probability, other.sequence_parts)


@dataclass(frozen=True)
class Stages:
    """The three curves of a run; `at` is a pure function of the progress."""

    mlm_probability: Steps
    accumulation: Steps
    sequence_parts: Steps

    def at(self, progress: float) -> Stage:
        """The stage that the schedule asks for at `progress` in [0, 1]."""
        return Stage(
            _value(self.mlm_probability, progress),
            int(_value(self.accumulation, progress)),
            int(_value(self.sequence_parts, progress)),
        )

    @property
    def constant(self) -> bool:
        """Whether nothing ever changes and the first stage is the plain run."""
        single = all(len(steps) == 1 for steps in (self.mlm_probability, self.accumulation, self.sequence_parts))
        return single and self.sequence_parts[0][1] == 1


def make_stages(
    *,
    mlm_probability: float,
    gradient_accumulation_steps: int,
    block_size: int,
    mlm_probability_curve: str | None = None,
    batch_size_curve: str | None = None,
    sequence_length_curve: str | None = None,
) -> Stages:
    """The stages of a run. InputError: a curve that cannot be read, or asks for a part of a micro-batch or of a token.

    The batch curve's values are shares of the accumulation steps, the length curve's of `block_size` (tokens of a block).
    """
    accumulation = gradient_accumulation_steps
    rates = _parse_curve(mlm_probability_curve, "mlm_probability_curve") or ((0.0, mlm_probability),)
    shares = _parse_curve(batch_size_curve, "batch_size_curve") or ((0.0, 1.0),)
    batches = tuple((at, _micro_batches(share, accumulation)) for at, share in shares)
    shares = _parse_curve(sequence_length_curve, "sequence_length_curve") or ((0.0, 1.0),)
    return Stages(rates, batches, tuple((at, _parts(share, block_size)) for at, share in shares))


def _parse_curve(text: str | None, name: str) -> Steps:
    """`0.3@0,0.15@0.6` as ((0.0, 0.3), (0.6, 0.15)); () of None."""
    if text is None:
        return ()
    example = "write value@share,value@share as 0.3@0,0.15@0.6"
    steps = []
    for part in str(text).split(","):
        value, _, share = part.partition("@")
        try:
            steps.append((float(share), float(value)))
        except ValueError:
            raise InputError(f"{name}: {text!r} cannot be read; {example}") from None
    if len(steps) > _MOST_STAGES:
        raise InputError(f"{name}: {text!r} has {len(steps)} stages; give at most {_MOST_STAGES}")
    if steps[0][0] != 0:
        raise InputError(f"{name}: {text!r} says nothing of the start; let its first share be 0: {example}")
    shares = [share for share, _ in steps]
    if any(not 0 <= share < 1 for share in shares) or sorted(set(shares)) != shares:
        raise InputError(f"{name}: the shares of {text!r} are not rising in [0, 1); {example}")
    if any(not 0 < value <= 1 for _, value in steps):
        raise InputError(f"{name}: {text!r} leaves (0, 1]; keep its values above 0 and at most 1: {example}")
    return tuple(steps)


def _value(steps: Steps, progress: float) -> float:
    return [value for share, value in steps if share <= max(progress, 0.0)][-1]


def _micro_batches(share: float, full: int) -> int:
    count = share * full
    if abs(count - round(count)) > 1e-6 or round(count) < 1:
        raise InputError(
            f"batch_size_curve: {share:g} of gradient_accumulation_steps {full} is {count:g} micro-batches; use shares "
            "that give whole ones, or accumulate more"
        )
    return round(count)


def _parts(share: float, block_size: int) -> int:
    parts = 1 / Fraction(share).limit_denominator(1024)
    whole = parts.denominator == 1 and block_size % parts.numerator == 0
    if parts != 1 and not (whole and block_size // parts.numerator >= 8):
        raise InputError(
            f"sequence_length_curve: {share:g} of a block of {block_size} tokens is no equal part of 8 tokens or more; "
            "use 1, 0.5, 0.25, ..."
        )
    return parts.numerator


@dataclass(frozen=True)
class EveryShare:
    """Validate each time another `every` of the budget is used (`--validate_every 2%`)."""

    every: float

    def mark(self, last: int, share: float, samples: int) -> int:
        """The number of the newest validation due at this share of the budget and these samples: above `last` it is due."""
        return int(share / self.every)

    def seconds_between(self, total_seconds: float) -> float:
        """The shortest time between two validations in a budget of `total_seconds`."""
        return total_seconds * self.every


@dataclass(frozen=True)
class EveryEpochs:
    """Validate every so many "epochs", one training shard per process each, more often at both ends of the budget.

    The original's `validation_epochs`, `_begin` and `_end` (run_pretraining.py:95): in the first `begin_proportion` of the
    budget every `begin` epochs, in the last `end_proportion` every `end`, else every `middle`. A mark is an epoch.
    """

    middle: int
    begin: int
    end: int
    begin_proportion: float
    end_proportion: float
    samples_per_epoch: int

    def mark(self, last: int, share: float, samples: int) -> int:
        """As `EveryShare.mark`."""
        period = self.middle
        if share < self.begin_proportion:
            period = self.begin
        elif share > 1 - self.end_proportion:
            period = self.end
        epoch = samples // self.samples_per_epoch
        return epoch if epoch - last >= period else last

    def seconds_between(self, total_seconds: float) -> float:
        """Unknown before the first epoch was timed: 2 % of the budget, as often as anybody needs to look."""
        return 0.02 * total_seconds


ValidationPlan = EveryShare | EveryEpochs
