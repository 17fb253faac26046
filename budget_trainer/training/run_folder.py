"""The output folder of a run: refuse what would be lost, find where to go on, carry the clock over."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from budget_trainer.budget.callback import STATE_KEY
from budget_trainer.budget.clock import BudgetClock, ClockFile
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_json_atomic
from budget_trainer.training import checkpoints

log = logging.getLogger(__name__)
FINAL, CLOCK, RUN, PROGRESS, RESUMABLE = "final", "clock.json", "run.json", "progress.jsonl", "RESUMABLE"
REPORT = "run_report.json"
COMPUTE_MODE_KEY = "speed"  # in TrainerState.stateful_callbacks
_TRAINING, _EVALUATING, _FINISHED = "training", "evaluating", "finished"  # states of a run in run.json


def check_writable(output_dir: Path) -> None:
    """Refuse a folder that this process may not write in, before any work is done for it. Writes nothing."""
    there = output_dir.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InputError(f"output_dir: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"output_dir: {there} is read-only for this user; give a folder that can be written")


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """Where to go on: None for a fresh start. Reads only; nothing is written before every rank has passed here.

    `auto` takes the newest complete checkpoint, or starts fresh where there is none. Raises InputError for a folder
    that is read-only or finished, that holds a run nobody asked to resume, and for a checkpoint that is not complete.
    """
    check_writable(output_dir)
    if (output_dir / FINAL).exists():
        raise InputError(f"output_dir: {output_dir} already has {FINAL}/; give another folder, or move {FINAL}/ away")
    if resume_from_checkpoint is None:
        leftovers = [name for name in (CLOCK, RUN, PROGRESS) if (output_dir / name).exists()]
        leftovers += [folder.name for folder in output_dir.glob("checkpoint-*")]
        if leftovers:
            raise InputError(
                f"output_dir: {output_dir} holds another run ({leftovers[0]}); add --resume_from_checkpoint auto to go "
                "on with it, or give another folder"
            )
        return None
    if resume_from_checkpoint == "auto":
        return checkpoints.newest_checkpoint(output_dir)
    checkpoint = Path(resume_from_checkpoint)
    if not checkpoint.is_dir():
        raise InputError(f"resume_from_checkpoint: {checkpoint} is not a folder; give one, or 'auto' for the newest")
    checkpoints.complete_manifest(checkpoint)
    return checkpoint


def awaits_evaluation(output_dir: Path) -> bool:
    """Whether `final/` is complete, and the job that wrote it was killed before the evaluation behind it had ended."""
    return (output_dir / FINAL).is_dir() and _read_run(output_dir).get("state") == _EVALUATING


def check_identity(identity: dict[str, Any], output_dir: Path, checkpoint: Path | None) -> None:
    """Refuse to go on with another model, data or seed than the run began with. Verifies the checkpoint's checksums."""
    for source in (checkpoint, output_dir):
        if source is None:
            continue
        if source == checkpoint:
            theirs = checkpoints.complete_manifest(source, checksums=True)["identity"]
        else:
            theirs = _read_run(output_dir).get("identity")
            if theirs is None:
                continue
        for field in sorted(identity.keys() | theirs.keys()):
            if identity.get(field) != theirs.get(field):
                raise InputError(
                    f"resume_from_checkpoint: {source} was begun with {field}={theirs.get(field)!r}, this run has "
                    f"{identity.get(field)!r}; use the recipe it was begun with, or another output_dir"
                )


def restore_clock(clock: BudgetClock, output_dir: Path, checkpoint: Path | None) -> int:
    """Charge what earlier jobs used (the larger of clock.json and the checkpoint); returns this job's number from 1."""
    records = [ClockFile.read(output_dir / CLOCK)]
    if checkpoint is not None:
        records.append(_stored_in(checkpoint, STATE_KEY)["shares"])
    clock.restore(max(records, key=lambda seconds: sum(seconds.values())))
    return int(_read_run(output_dir).get("job", 0)) + 1


def stored_compute_mode(checkpoint: Path | None) -> dict[str, Any]:
    """What the job that wrote `checkpoint` had resolved about precision and compilation; empty where nothing was."""
    return {} if checkpoint is None else _stored_in(checkpoint, COMPUTE_MODE_KEY)


def _stored_in(checkpoint: Path, key: str) -> dict[str, Any]:
    """What `store_state` has put under `key` into a checkpoint; empty where nothing was."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return dict(state["stateful_callbacks"].get(key) or {})


def _read_run(output_dir: Path) -> dict[str, Any]:
    """`run.json`, empty where there is none."""
    try:
        content = json.loads((output_dir / RUN).read_text(encoding="utf-8"))
        return {"job": int(content["job"]), "state": content["state"], "identity": dict(content["identity"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{RUN}: {output_dir / RUN} is damaged; delete it to go on with this folder's run") from None


def begin(output_dir: Path, identity: dict[str, Any], job: int) -> None:
    """Claim the folder for this run (main process only): `run.json` says what it is, unfinished folders go."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / RESUMABLE).unlink(missing_ok=True)
    checkpoints.remove_partial(output_dir)
    write_json_atomic(output_dir / RUN, {"job": job, "state": _TRAINING, "identity": identity})


def begin_evaluation(output_dir: Path) -> None:
    """From here to `end_evaluation` a job that is killed behind `final/` is to be resumed (main process only)."""
    write_json_atomic(output_dir / RUN, {**_read_run(output_dir), "state": _EVALUATING})
    (output_dir / RESUMABLE).write_text("evaluation\n", encoding="utf-8")


def end_evaluation(output_dir: Path) -> None:
    """Report, picture and card are written: nothing is left to do (main process only)."""
    (output_dir / RESUMABLE).unlink(missing_ok=True)
    write_json_atomic(output_dir / RUN, {**_read_run(output_dir), "state": _FINISHED})


def check_data(output_dir: Path, fingerprint: str) -> None:
    """Refuse to evaluate a finished run on the blocks of another data folder."""
    if _read_run(output_dir).get("identity", {}).get("data") != fingerprint:
        raise InputError(
            f"data_dir: not the data that {output_dir} was trained with, and its evaluation is still to be done; give that "
            "folder again"
        )


def mark_resumable(output_dir: Path, reason: str) -> None:
    """Leave the file `RESUMABLE` with the reason (main process only).

    Launchers turn exit code 85 into 1, so a job script tests for the file. What it says is for people: the state of the
    run is in `run.json`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    newest = checkpoints.newest_checkpoint(output_dir)
    where = "from its beginning" if newest is None else f"from {newest}"
    (output_dir / RESUMABLE).write_text(f"{reason}\n", encoding="utf-8")
    log.info("%s: the run goes on %s with --resume_from_checkpoint auto", reason, where)
