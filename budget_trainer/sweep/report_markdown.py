"""`sweep_report.md`: what was searched, every trial in order, what the time went into, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget_trainer.card_markdown import public
from budget_trainer.clock import format_duration
from budget_trainer.markdown import Markup, fence, inline, table
from budget_trainer.sweep.importance import BEST, METHOD
from budget_trainer.sweep.ranking import (
    MEANING,
    Spread,
    finished,
    has_value,
    ranked,
    reached,
    seconds_by_state,
    sign,
    spread,
    value,
)
from budget_trainer.sweep.records import SweepRecord, TrialRecord
from budget_trainer.sweep.searched import searched, short

SHOWN = 100  # trials; the CSV has all
NEW_SEEDS = (101, 102)


def markdown(
    record: SweepRecord, shares: Mapping[str, float], why_not: str | None, output_dir: Path, best_file: str
) -> str:
    """The whole file. `shares` is each parameter's importance, `why_not` the reason where there is none."""
    found = spread(record)
    sections = [
        f"# Sweep {inline(record.name)}",
        _summary(record),
        _best(record, found),
        "![Loss over time of all trials, and what the objective depends on](sweep_report.png)",
        "\n\n".join(_edges(record, found)),
        "## Trials\n\n" + _trials(record),
        "## Where the time went\n\n" + _time(record),
        "## What mattered\n\n" + _importance(shares, why_not),
        "## What was searched\n\n" + _space(record),
        _failures(record),
        _next(record, found, output_dir, best_file),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(record: SweepRecord) -> str:
    total = "" if record.total_seconds is None else f" of {format_duration(record.total_seconds)}"
    per_trial = format_duration(record.time_per_trial_seconds)
    return (
        f"Search: {inline(record.search)}, {record.direction} **{inline(record.objective)}**; {len(record.trials)} "
        f"{'trial' if len(record.trials) == 1 else 'trials'} of {per_trial} each, {_duration(record.used_seconds)}{total} used."
    )


def _best(record: SweepRecord, found: Spread | None) -> str:
    if found is None:
        return "No trial has finished with a value yet: there is no best one, and no recipe was written."
    count = len(finished(record))
    rows: list[tuple[Any, ...]] = [
        ("best", _figure(value(found.best)), "", found.best.number, _parameters(found.best)),
    ]
    if count > 1:
        rows.append(("median", _figure(found.median), _apart(found, found.median), "", f"of {count} finished trials"))
        worst = value(found.worst)
        rows.append(("worst", _figure(worst), _apart(found, worst), found.worst.number, _parameters(found.worst)))
    return table(("", inline(record.objective), "from the best", "trial", "parameters"), rows)


def _apart(found: Spread, other: float) -> str:
    return f"{other - value(found.best):+.4g}"


def _figure(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}" if 0.1 <= abs(number) < 1e4 else f"{number:.5g}"


def _duration(seconds: float) -> str:
    return format_duration(seconds) or "0s"


def _parameters(trial: TrialRecord) -> str:
    return ", ".join(f"{name} {short(given)}" for name, given in trial.parameters.items())


def _edges(record: SweepRecord, found: Spread | None) -> list[str]:
    """A hint for each parameter whose best value lies at an end of what was searched."""
    if found is None:
        return []
    hints = []
    for parameter in searched(record.space):
        given = found.best.parameters.get(parameter.name)
        end = parameter.end(given)
        if end is not None:
            hints.append(
                f"**Widen the range:** the best {inline(parameter.name)}, {inline(short(given))}, lies at the {end} end of "
                f"what was searched ({inline(parameter.words)}). A better one may lie beyond it."
            )
    return hints


def _names(record: SweepRecord) -> list[str]:
    """The parameters, those of the space first; a trial may have others (of an older state of the file)."""
    return list(dict.fromkeys([*record.space, *(name for trial in record.trials for name in trial.parameters)]))


def _trials(record: SweepRecord) -> str:
    if not record.trials:
        return "None was started."
    names, rows = _names(record), []
    for place, trial in enumerate(ranked(record)[:SHOWN], start=1):
        number = Markup(f"**{trial.number}**") if place == 1 and has_value(trial) else trial.number
        share = reached(trial)
        last = trial.curve[-1][1] if trial.curve else None
        ended = trial.state if share is None or trial.state == "finished" else f"{trial.state} at {100 * share:.0f} %"
        given = [short(trial.parameters[name]) if name in trial.parameters else "" for name in names]
        final = _figure(trial.objective) if trial.state == "finished" else ""
        rows.append((number, *given, final, _figure(last), ended, _duration(trial.seconds)))
    text = table(("trial", *map(inline, [*names, record.objective]), "last value on the way", "state", "time"), rows)
    if len(record.trials) > SHOWN:
        text += f"\n\nThe first {SHOWN} of {len(record.trials)}; `sweep_report.csv` has all."
    return text


def _time(record: SweepRecord) -> str:
    states = seconds_by_state(record.trials)
    if not states:
        return "No trial was started."
    whole = sum(seconds for _, seconds in states.values()) or 1.0
    rows = [
        (state, count, _duration(seconds), f"{100 * seconds / whole:.0f} %", MEANING[state])
        for state, (count, seconds) in states.items()
    ]
    return table(("state", "trials", "time", "share", ""), rows) + (
        "\n\nTimes are of whole trials, launch and evaluation included; where trials run beside each other they add up to more "
        "than the sweep took."
    )


def _importance(shares: Mapping[str, float], why_not: str | None) -> str:
    if not shares:
        return f"Importance of the parameters: {inline(why_not)}."
    rows = [(name, f"{100 * share:.0f} %") for name, share in shares.items()]
    return (
        table(("parameter", "importance"), rows)
        + f"\n\nBy {METHOD} (Optuna): how differently the best trials (at most {100 * BEST:.0f} %) are spread over a parameter "
        "than all trials are. Pruned trials count as worse than every finished one. With few trials this is a hint."
    )


def _space(record: SweepRecord) -> str:
    text = table(("parameter", "searched"), [(p.name, p.words) for p in searched(record.space)])
    text += (
        "\n\nBase recipe: "
        + (inline(record.recipe) if record.recipe else "none, the defaults of train\\_mlm.py")
        + "."
    )
    fixed = public(record.fixed)
    if fixed:
        text += (
            " Fixed beside it: "
            + ", ".join(f"{inline(key)} {inline(short(given))}" for key, given in fixed.items())
            + "."
        )
    return text


def _failures(record: SweepRecord) -> str:
    failed = [trial for trial in ranked(record) if trial.state == "failed"]
    nameless = [trial for trial in record.trials if trial.state == "finished" and not has_value(trial)]
    lines = [
        f"- trial {t.number} ({inline(_parameters(t))}): {inline(t.error or 'no message')}; its log is {inline(t.folder)}.log"
        for t in failed
    ]
    lines += [
        f"- trial {t.number} ({inline(_parameters(t))}): finished, but its {inline(record.objective)} is no number"
        for t in nameless
    ]
    return "## Failed\n\n" + "\n".join(lines) if lines else ""


def _next(record: SweepRecord, found: Spread | None, output_dir: Path, best_file: str) -> str:
    if found is None:
        return ""
    recipe = str(output_dir / best_file)
    data = str(record.fixed.get("data_dir") or "DATA_DIR")
    budget = format_duration(record.time_per_trial_seconds)
    head = ["accelerate", "launch", "train_mlm.py", recipe, "--data_dir", data]
    again = [
        [
            *head,
            "--output_dir",
            str(output_dir / f"again-{seed}"),
            "--total_training_time",
            budget,
            "--seed",
            str(seed),
        ]
        for seed in NEW_SEEDS
    ]
    commands = "\n".join(shlex.join(command) for command in again)
    return (
        "## Next\n\n"
        f"`{best_file}` is the best trial as a recipe; it was found at {budget} per trial.\n\n"
        f"**The differences may be noise.** Each trial ran once, with one seed{_close(record)}. To see how far seeds alone "
        f"move the {inline(record.objective)}, train the best again with others (and the launch configuration of the sweep, "
        "`--config_file`), and compare their `run_report.json` with the table above:\n\n" + fence(commands, "bash")
    )


def _close(record: SweepRecord) -> str:
    """How far the second is behind, which is what seeds would have to be smaller than."""
    ends = finished(record)
    if len(ends) < 2:
        return ""
    behind = sign(record) * (value(ends[1]) - value(ends[0]))
    return f", and the second best is {behind:.4g} behind"
