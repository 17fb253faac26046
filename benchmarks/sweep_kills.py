"""A sweep that is killed again and again, and what its study and its trials' folders say of that."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.sweep_runs import Run, Wanted, log_of, start, wait
from budget_trainer.core.jobs import TRAINING

PROMISES = {
    "lost": "every finished trial is still there, with its value",
    "twice": "no finished trial ran again",
    "together": "no two trainings in one folder at once",
    "orphans": "what a killed sweep had started ends before long",
    "missing": "as many trials ended as were wanted",
}
ORPHAN_SECONDS = 20.0  # launchers and trainings of a killed sweep may need so long to see that it is gone
LOOK_SECONDS = 0.25
TRIALS = 3  # of time, between which a moment is drawn: some trials have finished at most of them
FIRST_SECONDS = 2.0  # no kill before the sweep has begun to read its file


def disturbed(wanted: Wanted, kills: int, seed: int, trial_seconds: float, group: bool) -> dict[str, Any]:
    """Kill -9 at random moments, start again at once, and a last run to its end: what was seen at each, what was broken.

    The moments are drawn from `seed`, up to three trials' time after each start. A run that ends before its kill is noted as
    done; the rest of the kills is then left out.
    """
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    broken: dict[str, list[str]] = {name: [] for name in PROMISES}
    finished: dict[int, dict[str, Any]] = {}
    seen = 0
    while len(rows) < kills:
        process, moment = start(wanted), chance.uniform(FIRST_SECONDS, TRIALS * trial_seconds)
        begin = time.monotonic()
        while process.poll() is None and time.monotonic() - begin < moment:
            seen += _look(wanted.folder, broken["together"])
            time.sleep(LOOK_SECONDS)
        if process.poll() is not None:
            break
        _kill(process, group)
        states = trials(wanted)
        finished = _compare(wanted, finished, states, broken)
        count = Counter(trial["state"] for trial in states.values())
        row = {"after": moment, **{name: count[state] for name, state in STATES.items()}}
        rows.append(row)
        print(" ".join(f"{key}={value}" for key, value in {"kill": len(rows), **row}.items()), flush=True)
        broken["orphans"] += _orphans(wanted.folder, process.pid) if len(rows) == kills else []
    begin = time.monotonic()
    process = start(wanted)
    while process.poll() is None:
        seen += _look(wanted.folder, broken["together"])
        time.sleep(LOOK_SECONDS)
    wait(wanted, process)
    run = Run(wanted.folder, time.monotonic() - begin)
    _compare(wanted, finished, trials(wanted), broken)
    if not seen:
        broken["together"].append("no training was seen at all: this check is blind here")
    ended = len(run.rows) - run.count("running")
    limit = wanted.content.get("trials")
    if limit is not None and "total_time" not in wanted.content and ended != limit:
        broken["missing"].append(f"{ended} of {limit}")
    return {"kills": rows, "states": run.states(), "broken": broken, **run.account()}


STATES = {"finished": "COMPLETE", "pruned": "PRUNED", "running": "RUNNING", "failed": "FAIL"}


def trials(wanted: Wanted) -> dict[int, dict[str, Any]]:
    """What the study holds: number -> state and value; nothing before there is one."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.load_study(study_name=wanted.name, storage=_storage(wanted.storage))
    except Exception:  # KeyError, or whatever the driver says of a file that is not there yet
        return {}
    return {
        trial.number: {
            "state": trial.state.name,
            "value": trial.value,
            "params": trial.params,
            "attrs": trial.user_attrs,
        }
        for trial in study.get_trials(deepcopy=False)
    }


def _storage(url: str) -> Any:
    if not url.startswith("journal:"):
        return url
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))


def _kill(process: subprocess.Popen[bytes], group: bool) -> None:
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _compare(
    wanted: Wanted, before: dict[int, dict[str, Any]], now: dict[int, dict[str, Any]], broken: dict[str, list[str]]
) -> dict[int, dict[str, Any]]:
    """Note what has become of the trials that had finished before; returns those that have finished now."""
    for number, old in before.items():
        new = now.get(number)
        if new is None or any(new[key] != old[key] for key in ("state", "value", "params")):
            broken["lost"].append(f"trial {number} was {old['state']} {old['value']}, is {new and new['state']}")
        elif _made(wanted.folder, number) != old["made"]:
            broken["twice"].append(f"trial {number}: its run_report.json or progress.jsonl has changed")
    return {
        number: {**trial, "made": _made(wanted.folder, number)}
        for number, trial in now.items()
        if trial["state"] == "COMPLETE"
    }


def _made(folder: Path, number: int) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that another training of this trial would write anew."""
    names = ("run_report.json", "progress.jsonl", "run.json")
    found = [path for name in names if (path := folder / f"trial-{number:04d}" / name).is_file()]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def trainings(folder: Path) -> dict[str, list[int]]:
    """Folder of a trial -> processes of train_mlm.py that work in it, launchers left out."""
    found: dict[str, list[int]] = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        out = next((word.partition("=")[2] for word in words if word.startswith("--output_dir=")), "")
        if out.startswith(str(folder)) and TRAINING in words and not _launcher(words):
            found.setdefault(out, []).append(process.pid)
    return found


def _launcher(words: list[str]) -> bool:
    return any("accelerate" in word or "torch.distributed" in word for word in words[:4])


def _look(folder: Path, broken: list[str]) -> int:
    """Note where two trainings run in one folder; returns how many folders have one.

    Data workers are children of a training with the same command line.
    """
    found = trainings(folder)
    for out, pids in found.items():
        own = [pid for pid in pids if not _parent_in(pid, pids)]
        text = f"{Path(out).name}: {len(own)} at once"
        if len(own) > 1 and text not in broken:
            broken.append(text)
    return len(found)


def _parent_in(pid: int, others: list[int]) -> bool:
    try:
        return psutil.Process(pid).ppid() in others
    except psutil.Error:
        return True  # it has just ended


def _orphans(folder: Path, killed: int) -> list[str]:
    """Trainings that outlive their sweep, after the time they may need to see it."""
    begin = time.monotonic()
    while (left := trainings(folder)) and time.monotonic() - begin < ORPHAN_SECONDS:
        time.sleep(LOOK_SECONDS)
    return [f"{Path(out).name} still trains {ORPHAN_SECONDS:g} s after its sweep {killed} was killed" for out in left]


def by_process(wanted: Wanted, labels: list[str]) -> list[list[int]]:
    """The trials that each process of a sweep says to have ended, by the labels of their logs."""
    ended = re.compile(r"trial (\d+): (?:finished|pruned|failed|time) after")
    return [[int(number) for number in ended.findall(log_of(wanted, label).read_text())] for label in labels]
