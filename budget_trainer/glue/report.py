"""`glue_report.json`, `.md` and `.png`: a suite's scores beside published ones, dev beside dev, test beside test.

Our scores are of dev splits, the median over seeds of the best configuration, and are compared with dev rows only: only the
leaderboard can put a number of ours beside the test rows. The JSON is the same bytes whenever it is made again; scores in it
are shares of 1, in the Markdown points of 100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.io import write_atomic, write_json_atomic
from budget_trainer.core.output import Markup, inline, png_figure, table
from budget_trainer.glue.results import METRIC_NAMES, Suite, TaskResult, card_scores, points
from budget_trainer.glue.tasks import ALL_COLUMNS, TASKS
from budget_trainer.reporting.card import rates_text
from budget_trainer.reporting.energy import energy_words

_OURS = "#1f6f8b"
_MARKERS = list(zip("#d1495b #edae49 #7b5ea7 #66a182 #b08968".split(), "sD^vP", strict=True))  # of DEV's rows


# ---- what others have published: never dev beside test, since both scales differ by up to a few points ----


def _published(text: str) -> list[dict[str, Any]]:
    """Rows as the report holds them, of three lines each: name, scores and note; setting; source.

    Scores are points of 100 in GLUE's order, `-` where there is none; `*` marks those whose metric the source does not name:
    shown, but neither compared nor averaged. MNLI, where a source gives one number, stands at MNLI-m.
    """
    lines, rows = [line.strip() for line in text.strip().splitlines()], []
    for head, setting, source in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name, scores, note = (part.strip() for part in head.split("|"))
        words = {column: word for column, word in zip(ALL_COLUMNS, scores.split(), strict=True) if word != "-"}
        row = {"name": name, "scores": {name: round(float(word.rstrip("*")) / 100, 6) for name, word in words.items()}}
        row["metric_not_stated"] = [name for name, word in words.items() if word.endswith("*")]
        rows.append({**row, "setting": setting, "source": source, "note": note})
    return rows


DEV = _published("""
24hBERT recipe, 15 % masked | - 93.2 - - 87.8* 83.7 - 90.4 - - | MNLI is one number
    24 layers, pre-LN, 23,000 steps of 4,096 x 128 tokens; 80/10/10
    Wettig et al., EACL 2023 (arXiv 2202.08005), README of princeton-nlp/DinkyTrain
24hBERT recipe, 40 % masked | - 92.8 - - 88.1* 84.5 - 91.6 - - | MNLI is one number
    24 layers, pre-LN, 23,000 steps of 4,096 x 128 tokens; [MASK] only
    Wettig et al., EACL 2023 (arXiv 2202.08005), README of princeton-nlp/DinkyTrain
24hBERT, re-run by a user | 43.0 - - - - - - - - - | the best of a sweep, not a median
    masked-LM loss 1.72, hardware not stated
    IntelLabs/academic-budget-bert, issue 18
Crammed BERT | 53.3 92.0 88.9* 87.4* 87.5* 84.1 84.6 90.2 58.5 - | best of 5
    16 layers, 24 h on one A6000
    Geiping and Goldstein, ICML 2023 (arXiv 2212.14034), its model card
MosaicBERT base | 55.11 92.46 90.03* 89.27* 90.29* 84.95 - 90.74 81.36 - | 5 seeds; MNLI is one number
    12 layers, 286.72 M samples of C4, 8 A100
    Portes et al., NeurIPS 2023 (arXiv 2312.17482)
""")
TEST = _published("""
24hBERT | 57.1 93.0 87.5 82.0 70.7 84.4 83.8 90.6 57.7 - | QQP and MRPC are taken for F1
    24 layers, 24 h on 8 GPUs of 12 GB
    Izsak et al., EMNLP 2021 (arXiv 2104.07705), as listed by Papers with Code
BERT base | 52.1 93.5 88.9 85.8 71.2 84.6 83.4 90.5 66.4 - |
    12 layers
    Devlin et al., NAACL 2019 (arXiv 1810.04805), table 1, from copies of it
BERT large | 60.5 94.9 89.3 86.5 72.1 86.7 85.9 92.7 70.1 - |
    24 layers
    Devlin et al., NAACL 2019 (arXiv 1810.04805), table 1, from a copy of it
24hBERT, re-run by a user | 56.5 - - - - - - - - - |
    23,000 steps of 4,096 instead of a time budget
    IntelLabs/academic-budget-bert, issue 18
""")
_NOT_BY_TASK = (
    "None of the sources has dev scores of 24hBERT itself. A re-run with about 6,000 steps of 4,096 (marcelbra's fork) "
    "reports dev means from 69.9 to 75.3 over seven ways to mask, without saying of which tasks."
)


# ---- the report ----


def write_report(suite: Suite, output_dir: Path, submission: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the three files into `output_dir` with what `write_submission` has returned; returns what the JSON holds."""
    report = _summarize(suite, submission)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output_dir / "glue_report.json", report)
    write_atomic(output_dir / "glue_report.md", _markdown(report))
    write_atomic(output_dir / "glue_report.png", _draw(report))
    return report


def _summarize(suite: Suite, submission: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that the report says, in plain types.

    `scores` is a flat list for a model card (`card_scores`), `columns` are the headline scores as tables show them, `mean` is
    that of all official dev rows. `published.dev` has for each row the `difference` (ours less theirs) and the means over the
    columns that both have with the same metric; `published.test` has no numbers of ours.
    """
    ours, scored = suite.columns(), suite.scored
    return {
        "format": 1,
        "model": suite.model_name,
        "split": "dev",
        "scores": [score for result in scored.values() for score in _scores(result)],
        "columns": {name: column.reported() for name, column in ours.items()},
        "mean": suite.mean([name for name, column in ours.items() if column.official], least=2),
        "tasks": {name: _task(result) for name, result in scored.items()},
        "absent": suite.unscored,
        "seconds": sum(result.seconds for result in scored.values()),
        "energy": suite.energy,
        "published": {"dev": [_beside(row, suite) for row in DEV], "test": TEST, "notes": [_NOT_BY_TASK]},
        "submission": submission,
    }


def _scores(result: TaskResult) -> list[dict[str, Any]]:
    runs, tried = result.best_runs, result.best_of_rates
    (best,) = (rate for rate, one in tried.items() if one is result.best)
    medians = {rate: one.medians(result.task) for rate, one in tried.items()}
    how = {"seeds": len(runs), "flags": tried[best].flags, "starts_from": result.base}
    return card_scores(result.task, medians, best, runs[0].rows, **how)


def _task(result: TaskResult) -> dict[str, Any]:
    return {
        "headline": result.task.headline,
        "metrics": {
            split.name: {metric: result.spread(split, metric).reported() for metric in result.task.metrics}
            for split in result.dev
        },
        "best_configuration": result.best.flags if result.best else {},
        "learning_rates": [
            {"learning_rate": rate, "value": round(one.headline.median, 6)}
            for rate, one in result.best_of_rates.items()
            if one.headline is not None
        ],
        "configurations": sum(bool(one.finished) for one in result.configurations),
        "runs": len(result.finished),
        "seeds": [run.seed for run in result.best_runs],
        "median_seed": result.median_run.seed if result.dev else None,
        "base": result.base,
        "seconds": result.seconds,
        "notes": result.notes,
    }


def _beside(row: dict[str, Any], suite: Suite) -> dict[str, Any]:
    """A dev row with what can be compared: the same metric, and official rows on our side."""
    theirs = {name: value for name, value in row["scores"].items() if name not in row["metric_not_stated"]}
    shared = {name: column for name, column in suite.columns().items() if name in theirs and column.official}
    difference = {name: round(column.score.median - theirs[name], 6) for name, column in shared.items()}
    if found := suite.mean(list(shared)):
        found["theirs"] = round(fmean(theirs[name] for name in found["columns"]), 6)
    return {**row, "difference": difference, "mean": found}


def _markdown(report: Mapping[str, Any]) -> str:
    published, tasks = report["published"], report["tasks"].items()
    partial = [name for name, column in report["columns"].items() if not column["comparable"]]
    means = [
        (row["name"], ", ".join(found["columns"]), points(found["median"]), points(found["theirs"]))
        for row in published["dev"]
        if (found := row["mean"]) is not None
    ]
    sections = [
        "# GLUE",
        f"Model: {inline(report['model'])}. All scores of ours are on the **dev** sets, in points of 100: the "
        "median over the seeds of the best configuration, with the lowest and the highest seed.",
        table(("task", "metric", "median", "min to max", "seeds", "other metrics"), _own_rows(report)),
    ]
    if (found := report["mean"]) is not None:
        sections.append(
            f"Mean of {', '.join(found['columns'])}: **{points(found['median'])}** (of the lowest seeds "
            f"{points(found['min'])}, of the highest {points(found['max'])}). "
            f"{', '.join(found['left_out'])} never counts in a mean."
        )
    if partial:
        sections.append(
            f"{', '.join(partial)}: scored on a part of the official dev rows, comparable with no published number."
        )
    sections += [
        "![Our dev scores beside published ones](glue_report.png)",
        "## How it was made",
        "Of each learning rate the median of its best configuration, in the task's metric of the first table:",
        table(
            ("task", "best configuration", "learning rates tried", "configurations", "runs", "time"), _making(report)
        ),
        f"All runs together took {format_duration(report['seconds'])}."
        + (f" Energy: {inline('; '.join(energy_words(report['energy'])))}." if report["energy"]["kwh"] else ""),
        *(f"{inline(name)}: {inline(note.rstrip('.'))}." for name, task in tasks for note in task["notes"]),
        bullets("## Absent", report["absent"]),
        "## Beside published dev scores",
        _published_table("dev", published["dev"], report["columns"]),
        "\\*: the source does not name the metric; neither compared nor averaged.",
        table(("mean over what both have", "columns", "ours", "theirs"), means) if means else "",
        *(inline(note) for note in published["notes"]),
        "## Published test scores",
        "On the test sets nothing of ours is known: their labels are with the leaderboard (gluebenchmark.com). These rows "
        "compare with what it answers to `glue_submission.zip`, not with the table above.",
        _published_table("test", published["test"]),
        "## Sources",
        table(
            ("row", "setting", "note", "source"),
            [
                (f"{row['name']} ({kind})", row["setting"], row["note"], row["source"])
                for kind in ("dev", "test")
                for row in published[kind]
            ],
        ),
        _submission(report["submission"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _own_rows(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, task in report["tasks"].items():
        for split in (split for split in TASKS[name].dev if split.name in task["metrics"]):
            column, metrics = report["columns"][split.column], task["metrics"][split.name]
            part = "" if column["comparable"] else f" ({column['rows']:,} of {column['official_rows']:,} rows)"
            spread = f"{points(column['min'])} to {points(column['max'])}"
            others = [f"{METRIC_NAMES[m]} {points(metrics[m]['median'])}" for m in metrics if m != column["metric"]]
            score = METRIC_NAMES[column["metric"]], points(column["median"]), spread, column["seeds"]
            yield split.column + part, *score, ", ".join(others)


def _making(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, task in report["tasks"].items():
        flags = ", ".join(f"{key} {value}" for key, value in task["best_configuration"].items()) or "the defaults"
        base = f"; from {task['base']}'s model" if task["base"] else ""
        made = task["configurations"], task["runs"], format_duration(task["seconds"])
        yield (
            name,
            flags + base,
            rates_text({one["learning_rate"]: one["value"] for one in task["learning_rates"]}),
            *made,
        )


def _published_table(kind: str, rows: Sequence[Mapping[str, Any]], ours: Mapping[str, Any] | None = None) -> str:
    """The published rows of `kind` by column, below `ours` where these are given."""
    names = _columns(rows, ours or {})
    body: list[tuple[str, ...]] = []
    if ours is not None:
        cells = [points(c["median"]) if (c := ours.get(name)) and c["comparable"] else "" for name in names]
        body.append((Markup("**ours**"), *cells))
    for row in rows:
        marks = {name: "*" if name in row["metric_not_stated"] else "" for name in row["scores"]}
        cells = [points(row["scores"][name]) + marks[name] if name in marks else "" for name in names]
        body.append((row["name"], *cells))
    return table((kind, *names), body)


def _columns(rows: Sequence[Mapping[str, Any]], ours: Mapping[str, Any]) -> list[str]:
    return sorted({*ours, *(name for row in rows for name in row["scores"])}, key=ALL_COLUMNS.index)


def _submission(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    head = "## For the leaderboard\n\n"
    if found["complete"]:
        return head + "`glue_submission.zip` is complete. It holds the predictions of each task's median seed."
    head += f"{len(found['files'])} files are in `submission/`, those of each task's median seed. "
    return bullets(f"{head}The leaderboard takes all of them together, so there is no zip. Missing:", found["missing"])


def bullets(head: str, reasons: Mapping[str, str]) -> str:
    """A list of what is missing and why, below `head`; empty where nothing is."""
    lines = [f"- {inline(name)}: {inline(reason)}" for name, reason in reasons.items()]
    return head + "\n\n" + "\n".join(lines) if lines else ""


def _draw(report: Mapping[str, Any]) -> bytes:
    """Our median with the bar from lowest to highest seed, task by task, beside the published dev points."""
    ours, rows = report["columns"], report["published"]["dev"]
    names = _columns(rows, ours)
    with png_figure(11, 2.6 + 0.52 * len(names)) as (figure, png):
        axes = figure.subplots()
        labels = [_draw_ours(axes, place, name, ours.get(name)) for place, name in enumerate(names)]
        if ours:
            axes.plot([], [], "o", color=_OURS, markersize=8, label="ours: median, lowest to highest seed")
        for number, row in enumerate(rows):
            _draw_published(axes, names, row, number, len(rows))
        axes.set_yticks(range(len(names)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        lows = [100 * ours[name]["min"] for name in names if name in ours]
        lows += [100 * value for row in rows for value in row["scores"].values()]
        axes.set_xlim(min([*lows, 40.0]) - 4, 101)
        axes.grid(False, axis="y")
        for border in range(1, len(names)):
            axes.axhline(border - 0.5, color="#e8ebef", linewidth=0.8)
        axes.set_xlabel("points of 100 on the dev set")
        figure.suptitle(_title(report), fontsize=12, x=0.01, ha="left")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return png.getvalue()


def _draw_ours(axes: Any, place: int, name: str, column: Mapping[str, Any] | None) -> str:
    """Our score above what others have published; returns what stands at its row."""
    level, text = place - 0.18, {"x": 1.01, "transform": axes.get_yaxis_transform(), "va": "center"}
    if column is None:
        axes.text(y=level, s="not run", color="#6b7480", **text)
        return name
    median, low, high = (100 * column[part] for part in ("median", "min", "max"))
    axes.plot([low, high], [level, level], color=_OURS, linewidth=4, alpha=0.35, solid_capstyle="round")
    face = _OURS if column["comparable"] else "white"
    axes.plot(median, level, "o", color=_OURS, markerfacecolor=face, markersize=8)
    spread = f"{low:.1f} to {high:.1f}, {column['seeds']} seeds" if column["seeds"] > 1 else "1 seed"
    axes.text(y=level, s=f"{median:.1f}  ({spread})", color=_OURS, **text)
    partial = "" if column["comparable"] else f", {column['rows']:,} rows only"
    return f"{name}\n{METRIC_NAMES[column['metric']]}{partial}"


def _draw_published(axes: Any, names: Sequence[str], row: Mapping[str, Any], number: int, rows: int) -> None:
    """Hollow marks below ours, each row at its own height, so that equal scores can be told apart."""
    colour, marker = _MARKERS[number]
    style = {"color": "none", "markeredgecolor": colour, "markeredgewidth": 1.4, "markersize": 6.5}
    for stated in (True, False):
        shown = [name for name in row["scores"] if stated == (name not in row["metric_not_stated"])]
        levels = [names.index(name) + 0.4 * (number + 0.5) / rows for name in shown]
        values = [100 * row["scores"][name] for name in shown]
        alpha, label = (1.0, row["name"]) if stated else (0.35, None)
        axes.plot(values, levels, marker, alpha=alpha, label=label, **style)


def _title(report: Mapping[str, Any]) -> str:
    lines = [f"GLUE dev scores of {report['model']}"]
    if (found := report["mean"]) is not None:
        lines.append(f"mean of {', '.join(found['columns'])}: {100 * found['median']:.1f}")
    if any(not column["comparable"] for column in report["columns"].values()):
        lines.append("hollow circles: not all of the official dev rows, comparable with nothing else")
    lines.append("pale marks: the source does not say which metric; compare with care")
    return "\n".join(lines)
