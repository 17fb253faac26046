"""`--dry_run`: the commands of the trials, one per line."""

from __future__ import annotations

import math
import shlex

from budget_trainer.clock import format_duration
from budget_trainer.errors import InputError
from budget_trainer.sweep.spec import FIRST_OVERHEAD, SweepSpec, pruning_words
from budget_trainer.sweep.trial_run import folder_name

SCRIPT = "train_mlm.py"


def init_words(init_cmd: str | None, config: object = None) -> list[str]:
    """What stands before the flags: the launcher and our script."""
    if init_cmd is None:
        profile = [] if config is None else ["--config_file", str(config)]
        return ["accelerate", "launch", *profile, SCRIPT]
    try:
        words = shlex.split(init_cmd)
    except ValueError as error:
        raise InputError(f"init_cmd: {init_cmd!r} cannot be read ({error}); correct its quotes") from None
    if any(word.endswith("run_pretraining.py") for word in words):
        raise InputError(f"init_cmd: {init_cmd!r} starts the original's script, which is {SCRIPT} here; write that")
    return words


def commands(spec: SweepSpec, init_cmd: str | None) -> tuple[list[str], str | None]:
    """The trials as lines for a shell, and a remark where later trials depend on the results of earlier ones."""
    count = spec.limit
    if count is None:
        count = max(1, math.floor(spec.total_seconds / (spec.trial_seconds + FIRST_OVERHEAD)))
    if spec.search == "grid":
        from budget_trainer.sweep.space import combinations

        found = [parameters for parameters, _ in zip(combinations(spec.space), range(count), strict=False)]
    else:
        from budget_trainer.sweep.study import proposals

        found = proposals(spec, count)
    head = init_words(init_cmd, spec.accelerate_config)
    base = [] if spec.recipe is None else [str(spec.recipe)]
    lines = []
    for number, parameters in enumerate(found):
        own = [f"--total_training_time={format_duration(spec.trial_seconds)}"]
        own.append(f"--output_dir={spec.output_dir / folder_name(number)}")
        own += pruning_words(spec.steps)
        lines.append(shlex.join([*head, *base, *spec.words(parameters), *own]))
    return lines, _remark(spec, len(found))


def _remark(spec: SweepSpec, count: int) -> str | None:
    if spec.search == "tpe":
        from budget_trainer.sweep.study import startup_trials

        known = startup_trials(spec)
        if known < count:
            return (
                f"note: tpe draws the first {known} as shown; the others follow from results, and are shown as random search "
                "would draw them"
            )
    if spec.search in ("successive_halving", "hyperband"):
        return f"note: {spec.search} ends most of these early, and may take them in another order"
    return None
