"""The report of a run: what it ran on, what it trained on, its picture, what of it may be published, and the plan beside it.

`run_report.png` is drawn from `run_report.json` and the lines of `progress.jsonl`. A plan (`--plan FILE` of train_mlm.py) is
the JSON that `budget_trainer.plan` writes. It belongs to a recipe and to data; where either differs it is refused. On another
machine it is a guess: that is said, and stands in the report.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic, write_json_atomic
from budget_trainer.core.machine import cpu_name, usable_cores
from budget_trainer.core.output import png_figure
from budget_trainer.reporting.energy import energy_text, energy_words

FORMAT = 1
_PHASES = ("setup", "compile", "evaluate", "save")
_QUANTITIES = ("tokens", "steps", "tokens_per_second", *(f"{phase}_seconds" for phase in _PHASES))


def machine(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """What of `report.environment()["hardware"]` tells one kind of machine from another."""
    gpus = sorted({gpu["name"] for gpu in hardware.get("gpus") or []})  # the plan is made on one of them
    return {"cpu": hardware.get("cpu"), "cores": hardware.get("cores"), "gpus": gpus}


@dataclass(frozen=True)
class Plan:
    """What was predicted for a run: `content` is the JSON that `budget_trainer.plan` wrote."""

    content: dict[str, Any]

    @classmethod
    def read(cls, path: str, recipe_path: str | None = None) -> Plan:
        """The plan in `path`: where that is relative, looked for beside the recipe, then in the current folder.

        Raises:
            InputError: there is no such file, or it is no plan.
        """
        places = ([Path(recipe_path).parent / path] if recipe_path is not None else []) + [Path(path)]
        file = next((place for place in places if place.is_file()), None)
        make = "make it with `python -m budget_trainer.plan RECIPE --json FILE`"
        if file is None:
            raise InputError(f"plan: {path} is not there; {make}, or leave it out")
        try:
            plan = dict(json.loads(file.read_text(encoding="utf-8")))
            if plan["format"] != FORMAT:
                raise ValueError(f"format {plan['format']!r}, this version reads {FORMAT}")
            settings = [plan[key] for key in ("recipe", "machine", "total_seconds", "num_processes", "data")]
            numbers = [plan["prediction"][name] for name in _QUANTITIES]
            if not all(map(math.isfinite, numbers)) or not isinstance(settings[0], dict):
                raise ValueError("a number is not finite")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"plan: {file} is not a plan ({error!r}); {make}") from None
        return cls(plan)

    def check(self, settings: Mapping[str, Any], *, total_seconds: float, processes: int, data: str) -> None:
        """Refuse (InputError) a plan that was made for something else.

        `settings` are the flags that a plan depends on (`config.recipe.speed_settings`), `data` is the folder's fingerprint.
        """
        plan = self.content
        planned = math.inf if plan["total_seconds"] is None else float(plan["total_seconds"])
        seconds = planned if abs(planned - total_seconds) <= 0.5 else total_seconds
        pairs = {name: (plan["recipe"].get(name), value) for name, value in settings.items()}
        pairs["total_training_time in seconds"] = (planned, seconds)
        pairs["num_processes"] = (plan["num_processes"], processes)
        pairs["the data of data_dir"] = (plan["data"]["fingerprint"], data)
        for name, (made, asked) in pairs.items():
            if made != asked:
                raise InputError(
                    f"plan: made for {name} {made!r}, this run has {asked!r}; plan again, or leave --plan out"
                )

    def compare(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """`planned` for the run's report: each quantity as planned and as it came, and whether the machine is the same."""
        shares = report.get("shares") or {}
        did = {**report, **{f"{phase}_seconds": shares.get(phase) for phase in _PHASES}}
        return {
            "same_machine": self.content["machine"] == machine(report.get("hardware") or {}),
            **{name: {"planned": self.content["prediction"][name], "did": did.get(name)} for name in _QUANTITIES},
        }

    @staticmethod
    def line(planned: Mapping[str, Any]) -> str:
        """Of `planned`, for the end of a run."""
        tokens = planned["tokens"]
        off = 100 * (tokens["did"] / tokens["planned"] - 1) if tokens["planned"] else 0.0
        where = "" if planned["same_machine"] else " (planned on another machine)"
        return f"planned {tokens['planned']:,.0f} tokens, did {tokens['did']:,.0f}: {off:+.1f} %{where}"


REPORT, PICTURE = "run_report.json", "run_report.png"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "deepspeed")
_MAX_POINTS = 2000  # of a line in the picture
_PRIVATE = re.compile(r"token|password|secret|api_key|_dir$|_file$")  # names of arguments that stay here
COLOURS = {
    "setup": "#8d99ae",
    "compile": "#b08968",
    "train": "#1f6f8b",
    "data_wait": "#d1495b",
    "evaluate": "#edae49",
    "save": "#66a182",
    "unused": "#d9dde3",
}


def in_run(model: Path) -> Path:
    """The absolute path of a run's model: where its link points if the run's report lies beside that, else the path's own."""
    there = model.resolve()
    return there if (there.parent / REPORT).is_file() else Path(os.path.abspath(model))


def environment() -> dict[str, Any]:
    """`versions` (of the packages that are there), `hardware` (memory in GiB) and `git_commit` (or None)."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, "budget-trainer"):
        try:
            versions[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "hardware": _hardware(), "git_commit": _git_commit()}


def _hardware() -> dict[str, Any]:
    import torch  # here, because clock, curves and the Hub work without

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(index)
        gpus.append({"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)})
    memory, cores = round(psutil.virtual_memory().total / 2**30, 1), len(usable_cores()) or os.cpu_count()
    return {"cpu": cpu_name(), "cores": cores, "memory_gib": memory, "gpus": gpus}


def _git_commit() -> str | None:
    """The commit of the checkout this file lies in, with `-dirty` where tracked files were changed; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), *"describe --always --abbrev=40 --exclude=* --dirty".split()]  # no tag's name
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _read_progress(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of `progress.jsonl` that tell the run's story, in order.

    A job that resumed repeats the steps after its checkpoint: earlier lines from its first step on are dropped. Lines that
    are damaged, as by a crash, are left out.
    """
    kept: list[dict[str, Any]] = []
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            with suppress(ValueError, KeyError, TypeError, OverflowError):
                line = json.loads(text)
                job, step, _ = int(line["job"]), int(line["step"]), float(line["elapsed_seconds"])
                if kept and job > kept[-1]["job"]:
                    kept = [old for old in kept if old["step"] < step]
                kept.append(line)
    return kept


def _draw_report(report: dict[str, Any], progress: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw `run_report.png`: loss, learning rate and tokens/s over time, and where the budget went."""
    with png_figure(12, 8) as (figure, png):
        (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
        figure.suptitle(_title(report), fontsize=12, x=0.02, ha="left")
        last = max([line["elapsed_seconds"] for line in progress] + [report.get("used_seconds") or 0.0])
        unit, unit_name = (60.0, "minutes") if last < 6 * 3600 else (3600.0, "hours")
        if last < 120:
            unit, unit_name = 1.0, "seconds"
        _draw_loss(top_left, progress, report, unit)
        _draw_line(top_right, progress, "learning_rate", unit, COLOURS["evaluate"])
        _draw_line(bottom_left, progress, "tokens_per_second", unit, COLOURS["save"])
        top_right.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        bottom_left.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        bottom_left.set_ylim(0, 1.1 * bottom_left.get_ylim()[1])
        if report.get("mfu"):
            bottom_left.set_title(f"tokens per second ({100 * report['mfu']:.1f} % MFU)", loc="left", fontsize=11)
        for axes in (top_left, top_right, bottom_left):
            _finish(axes, last / unit, unit_name)
        _draw_shares(bottom_right, report)
    write_atomic(path, png.getvalue())


def write_report(report: dict[str, Any], output_dir: Path, plan: Plan | None) -> None:
    """Write `run_report.json`, with `planned` where there was a plan, and its picture."""
    if plan is not None:
        report["planned"] = plan.compare(report)
    write_json_atomic(output_dir / REPORT, report)
    _draw_report(report, _read_progress(output_dir / "progress.jsonl"), output_dir / PICTURE)


def print_summary(report: dict[str, Any], output_dir: Path) -> None:
    """Steps, tokens, seconds and scores of a written report, in a few lines."""
    evaluation, budget = report["evaluation"], _budget(report)
    shares = [(name, seconds) for name, seconds in report["shares"].items() if seconds >= 0.05]
    print(
        f"\n{report['steps']} steps, {report['tokens']:,} tokens at {report['tokens_per_second']:,.0f}/s; used "
        f"{report['used_seconds']:.1f}s{f' of {budget:.1f}s' if budget else ''} "
        f"({', '.join(f'{name} {format_duration(seconds)}' for name, seconds in shares)})"
    )
    if report.get("earlier_budgets"):
        print(f"given more time: it was finished at {', '.join(report['earlier_budgets'])} before")
    if report.get("mfu"):
        print(
            f"{report['model_tflops_per_second']:.3g} TFLOP/s of the model, {100 * report['mfu']:.1f} % of this device's "
            f"matmul peak; waiting for data {100 * report['data_wait_share']:.2f} %"
        )
    if report.get("planned"):
        print(Plan.line(report["planned"]))
    if report["overrun_seconds"] > 0:
        print(f"the budget was overrun by {report['overrun_seconds']:.1f}s")
    if report.get("energy"):
        print(f"energy {'; '.join(energy_words(report['energy']))}")
    print(
        f"held-out loss {evaluation['loss']:.4f}, accuracy {evaluation['accuracy']:.4f}, "
        f"bits per byte {evaluation['bits_per_byte']:.4f}\nreport in {output_dir}/{REPORT} and .png",
        flush=True,
    )


def _title(report: dict[str, Any]) -> str:
    budget, world = _budget(report), report.get("world_size") or 1
    size = report.get("parameters")
    parts = [
        f"{report.get('model_type') or 'model'}" + (f", {size / 1e6:,.1f} M parameters" if size else ""),
        f"{format_duration(budget)} budget" if budget else f"{report.get('steps', 0):,} steps",
        f"{report.get('engine') or 'plain'}, {world} process" + ("es" if world != 1 else ""),
    ]
    evaluation = report.get("evaluation") or {}
    named = (("loss", "final evaluation loss"), ("bits_per_byte", "bits per byte"))
    results = [f"{label} {evaluation[key]:.3f}" for key, label in named if evaluation.get(key) is not None]
    return "  ·  ".join(parts) + "\n" + ("  ·  ".join(results) or "not evaluated")


def _budget(report: dict[str, Any]) -> float | None:
    """Seconds, or None for a run that only steps end."""
    seconds = report.get("budget_seconds")
    return seconds if seconds and math.isfinite(seconds) else None


def _series(progress: Sequence[dict[str, Any]], key: str) -> tuple[Any, Any]:
    """Seconds and values of the lines that have a number at `key`; beyond _MAX_POINTS, means of equal runs of them."""
    import numpy as np

    pairs = [(line["elapsed_seconds"], line.get(key)) for line in progress]
    points = np.array(pairs, dtype=float).reshape(-1, 2)  # None becomes NaN
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) > _MAX_POINTS:
        points = np.stack([part.mean(axis=0) for part in np.array_split(points, _MAX_POINTS)])
    return points[:, 0], points[:, 1]


def _draw_line(axes: Any, progress: Sequence[dict[str, Any]], key: str, unit: float, colour: str) -> None:
    seconds, values = _series(progress, key)
    if len(values):
        marker = "o" if len(values) < 3 else None
        axes.plot(seconds / unit, values, color=colour, linewidth=1.6, marker=marker, label=f"training {key}")
    axes.set_title(key.replace("_", " "), loc="left", fontsize=11)


def _draw_loss(axes: Any, progress: Sequence[dict[str, Any]], report: dict[str, Any], unit: float) -> None:
    _draw_line(axes, progress, "loss", unit, COLOURS["train"])
    rows = [{**line, **line["evaluation"]} for line in progress if line.get("evaluation")]
    final = [{"elapsed_seconds": report.get("used_seconds"), **(report.get("evaluation") or {})}]
    for points, marker, label in ((rows, "o", "evaluation loss"), (final, "D", "final evaluation loss")):
        seconds, values = _series(points, "loss")
        if len(values):
            axes.plot(seconds / unit, values, marker, color=COLOURS["data_wait"], markersize=5, label=label)
    if axes.lines:
        axes.legend(frameon=False, loc="upper right")
    axes.set_title("loss (nats per predicted token)", loc="left", fontsize=11)


def _finish(axes: Any, last: float, unit_name: str) -> None:
    """The axis of time; where nothing was drawn, say so in place of axes without meaning."""
    if axes.lines:
        axes.set_xlim(0, 1.04 * last or 1.0)
        axes.set_xlabel(unit_name)
        return
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", color="#6b7480")


def _draw_shares(axes: Any, report: dict[str, Any]) -> None:
    shares = dict(report.get("shares") or {})
    whole = max(_budget(report) or 0.0, sum(shares.values()))
    shares["unused"] = max(0.0, whole - sum(shares.values()))
    names, seconds = list(shares), list(shares.values())
    energy = report.get("energy") or {}
    by_phase = energy.get("phases") or {}
    axes.barh(names, seconds, color=[COLOURS.get(name, "#6b7480") for name in names], height=0.65)
    for row, (name, value) in enumerate(zip(names, seconds, strict=True)):
        percent = 100 * value / whole if whole else 0.0
        text = f"{value:,.1f} s   {percent:.1f} %" + (
            f"   {energy_text(by_phase[name])}" if by_phase.get(name) else ""
        )
        axes.text(value + 0.015 * (whole or 1.0), row, text, va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlim(0, (1.5 if by_phase else 1.32) * whole or 1.0)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title("where the budget went", loc="left", fontsize=11)
    axes.set_xlabel(f"seconds; energy {energy_words(energy)[0]}" if by_phase else "seconds")


def describe_data(data_dir: Path) -> dict[str, Any]:
    """What `data_dir`/manifest.json says of the corpus, for the report: sources by name, without folders of this machine.

    Counts are documents, bytes of text, tokens and blocks. Raises OSError or ValueError where it cannot be read.
    """
    manifest = json.loads((data_dir / "manifest.json").read_text(encoding="utf-8"))
    train, validation = manifest["splits"]["train"], manifest["splits"].get("validation") or {}
    held_out = manifest.get("validation") or {}
    described = {name: train.get(name) for name in ("rows", "tokens", "documents", "text_bytes")}
    described |= {name: manifest.get(name) for name in ("block_size", "packing", "vocab_size", "created")}
    described |= {"validation_rows": validation.get("rows"), "validation_fraction": held_out.get("fraction")}
    if held_out.get("text"):
        described["validation_text"] = _source_name(str(held_out["text"]))
    kept = ("kind", "documents", "text_bytes", "dropped")
    described["sources"] = [
        {
            "name": _source_name(str(source.get("path", "?"))),
            **{name: source[name] for name in kept if source.get(name)},
        }
        for source in manifest.get("sources") or []
    ]
    return {key: value for key, value in described.items() if value is not None}


def _source_name(path: str) -> str:
    """`owner/name` of the Hub as it is, of a path its last part."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path) and not Path(path).exists():
        return path
    return Path(path).name or path


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run that everybody may see: no secrets, folders and empty values; of a path its last part."""
    shown = {key: value for key, value in recipe.items() if value is not None and not _PRIVATE.search(key)}
    return dict(_without_folders(shown))


def public_report(report: Mapping[str, Any]) -> bytes:
    """A run's or a suite's report as everybody may see it, as JSON: without secrets, and folders of this machine."""
    shown = {key: value for key, value in report.items() if key != "hub"}
    if "recipe" in report:
        shown["recipe"] = public_recipe(report["recipe"] or {})
    return (json.dumps(_without_folders(shown), indent=2) + "\n").encode()


def _without_folders(value: Any) -> Any:
    """`value` with the last part of every text in it that is an absolute path; paths within a sentence stay."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith(("/", "~/"))):
        return Path(value).name
    return value
