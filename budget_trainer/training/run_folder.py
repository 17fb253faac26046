"""The output folder of a run: its checkpoints, its state, its clock, and the room on its disk.

Every folder in it is complete or absent: written aside, made durable, renamed. What a disk refuses ends the run in one line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from budget_trainer.budget.callback import STATE_KEY
from budget_trainer.budget.clock import BudgetClock, read_clock
from budget_trainer.core.errors import InputError, NoLocks, RunError
from budget_trainer.core.io import (
    WRITE_ERRNOS,
    check_writable,
    existing_part,
    hold_folder,
    made_parents,
    publish_folder,
    sha256,
    write_json_atomic,
)
from budget_trainer.core.machine import allocate

if TYPE_CHECKING:
    from budget_trainer.budget.channel import ControlChannel

log = logging.getLogger(__name__)
FINAL, CLOCK, RUN, PROGRESS, RESUMABLE = "final", "clock.json", "run.json", "progress.jsonl", "RESUMABLE"
REPORT = "run_report.json"
COMPUTE_MODE_KEY = "speed"  # in TrainerState.stateful_callbacks
# States of a run in run.json; growing: finished, and about to go on with more time (growth.py).
_TRAINING, EVALUATING, FINISHED, GROWING = "training", "evaluating", "finished", "growing"
_MANIFEST = "manifest.json"
_ROOM = ".room-for-final"
_PARTIAL = ".partial-"
_UNFINISHED = re.compile(
    r"\.partial-((\.partial-)?rehearsal|final|model|finetune-[\w.+-]+|(retired-)?checkpoint-\d+)(\.old|\.trainer)?"
)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors writes in Rust
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container")


# ---- one folder, complete or absent ----


def staging_folder(target: Path) -> Path:
    """The hidden neighbour in which `target` is written before it is complete; the same name on every rank."""
    target = Path(os.path.realpath(target))  # of a link the neighbour of what it points to: the same disk
    return target.with_name(f"{_PARTIAL}{target.name}")


def discard(target: Path) -> None:
    """Delete what was written aside for `target`."""
    staging = staging_folder(target)
    for folder in (staging, staging.with_name(f"{staging.name}.trainer")):  # Trainer's own, of a checkpoint
        shutil.rmtree(folder, ignore_errors=True)


def publish(staging: Path, target: Path, manifest: dict[str, Any] | None = None) -> None:
    """Make `staging` durable and rename it to `target`, replacing an older one only at the last moment.

    With a `manifest` (a checkpoint), it is written beside the files with their sizes and SHA-256.
    """
    if manifest is not None:
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        listed = {
            str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        }
        text = json.dumps({**manifest, "files": listed}, indent=1) + "\n"
        (staging / _MANIFEST).write_text(text, encoding="utf-8")
    publish_folder(staging, target)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete checkpoint (every listed file there, with its size), else None."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
        complete = all((folder / name).stat().st_size == entry["bytes"] for name, entry in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def complete_manifest(folder: Path, *, checksums: bool = False) -> dict[str, Any]:
    """The manifest of a checkpoint; InputError where it is not complete, or with `checksums` where a file has changed."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            f"resume_from_checkpoint: {folder} is not a complete checkpoint; give another one, or 'auto' for the newest"
        )
    for name, entry in manifest["files"].items() if checksums else ():
        if sha256(folder / name) != entry["sha256"]:
            raise InputError(
                f"resume_from_checkpoint: {folder / name} does not match its checksum; delete {folder} and use an older one"
            )
    return manifest


@contextmanager
def explain_full_disk(target: Path, *, alone: bool) -> Iterator[None]:
    """RunError in the place of an error that means: the disk did not take `target`.

    `alone`: no other rank may still write there, so that what was written aside can be deleted; else the next job does.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _disk_failure(error)
        if reason is None:
            raise
        if alone:
            discard(target)
        raise _write_error(target, reason) from error


def _disk_failure(error: BaseException) -> str | None:
    """Why a disk did not take what was written, in the words of the system; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := _OS_ERROR.search(str(error))):
        code = int(found.group(1))
    if code in WRITE_ERRNOS:
        return os.strerror(code)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER):
        return "the disk took a part of it"
    return None


def _write_error(target: Path, reason: str) -> RunError:
    """The end of a run whose folder takes no more: what, why, what is left and how to go on."""
    free = shutil.disk_usage(existing_part(os.path.realpath(target.parent))).free
    return RunError(
        f"output_dir: {target} could not be written ({reason}, {free / 1e6:.1f} MB free); make room there, then go on from "
        f"{RunFolder(target.parent).newest_checkpoint() or 'the beginning'} with --resume_from_checkpoint auto"
    )


# ---- the folder of a run ----


class RunFolder:
    """`output_dir` of a run. What writes is called by the main process only, and not before every rank has passed
    `find_checkpoint` and `check_identity`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rebuilt: dict[str, Any] | None = None  # run.json, where it is damaged

    def check_writable(self) -> None:
        """Refuse a folder that this process may not write in, before any work is done for it. Writes nothing."""
        check_writable(self.path)

    @contextmanager
    def owned(self, channel: ControlChannel) -> Iterator[None]:
        """Hold the folder for this run, on behalf of all ranks, during the block; every rank calls it.

        Raises InputError on all of them where it cannot be written, or another process holds it. Where the file system
        knows no locks a warning says so. A folder that is made for it goes again where nothing comes of it.
        """
        refused: Exception | None = None
        with ExitStack() as at_exit:
            if channel.rank == 0:
                try:
                    self.check_writable()
                    at_exit.enter_context(made_parents(Path(os.path.realpath(self.path)) / "file"))
                    at_exit.enter_context(hold_folder(self.path))
                except NoLocks as error:
                    log.warning("%s: a second run in this folder would not be noticed", str(error).partition(";")[0])
                except (InputError, OSError) as error:
                    refused = error
            for refusal in filter(None, channel.gather(refused)):
                raise refusal
            yield

    # ---- checkpoints ----

    def checkpoints(self) -> list[Path]:
        """The complete training checkpoints, oldest step first."""
        named = [folder for folder in self.path.glob("checkpoint-*") if folder.name[11:].isdecimal()]
        return sorted((folder for folder in named if read_manifest(folder) is not None), key=step_of)

    def newest_checkpoint(self) -> Path | None:
        return max(self.checkpoints(), key=step_of, default=None)

    @staticmethod
    def _delete(folder: Path) -> None:
        retired = folder.with_name(f"{_PARTIAL}retired-{folder.name}")
        shutil.rmtree(retired, ignore_errors=True)
        folder.rename(retired)  # first out of sight: a kill in the middle leaves no half checkpoint
        shutil.rmtree(retired, ignore_errors=True)

    def rotate(self, limit: int | None, *, before_save: bool = False) -> None:
        """Keep the newest `limit` complete checkpoints (all where None); the last complete one always stays.

        `before_save` makes room for one more, but only where the disk has none for another like the newest.
        """
        complete = self.checkpoints()
        if limit is None or not complete:
            return
        if before_save:
            needed = sum(entry["bytes"] for entry in complete_manifest(complete[-1])["files"].values())
            if shutil.disk_usage(self.path).free >= 1.1 * needed:
                return
            limit -= 1
        for folder in complete[: -max(limit, 1)]:
            self._delete(folder)

    def find_checkpoint(self, resume_from_checkpoint: str | None) -> Path | None:
        """Where to go on: None for a fresh start. Reads only.

        `auto` takes the newest complete checkpoint, or starts fresh where there is none; a finished run can only go on from
        that one (`find_growth` of growth.py says whether there is time to go on). Raises InputError for a folder that is
        read-only, or finished without a checkpoint, that holds a run nobody asked to resume, and for a checkpoint that is
        not complete.
        """
        self.check_writable()
        for name in ("sweep.json", "suite.json"):
            if (self.path / name).exists():
                raise InputError(
                    f"output_dir: {self.path} is the folder of a {name[:5]} ({name}); give another folder"
                )
        if (newest := self.grows_from(resume_from_checkpoint)) is not None:
            return newest
        if (self.path / FINAL).exists():
            further = f"move {FINAL}/ away"
            if resume_from_checkpoint is not None:
                further = f"go on from its weights there with --model_name_or_path {self.path / FINAL}"
                further += " (more time is for runs that keep a training checkpoint: those of checkpoint_at_end)"
            raise InputError(f"output_dir: {self.path} already has {FINAL}/; give another folder, or {further}")
        if resume_from_checkpoint is None:
            leftovers = [name for name in (CLOCK, RUN, PROGRESS) if (self.path / name).exists()]
            leftovers += [folder.name for folder in self.path.glob("checkpoint-*")]
            if leftovers:
                raise InputError(
                    f"output_dir: {self.path} holds another run ({leftovers[0]}); add --resume_from_checkpoint auto to go "
                    "on with it, or give another folder"
                )
            return None
        if resume_from_checkpoint == "auto":
            return self.newest_checkpoint()
        checkpoint = Path(resume_from_checkpoint)
        if not checkpoint.is_dir():
            raise InputError(
                f"resume_from_checkpoint: {checkpoint} is not a folder; give one, or 'auto' for the newest"
            )
        complete_manifest(checkpoint)
        return checkpoint

    def grows_from(self, resume_from_checkpoint: str | None) -> Path | None:
        """The newest checkpoint, where a finished run is asked to go on from it, or one was killed as it began to.

        InputError where another one is asked for in the latter case, or none is left.
        """
        state, newest = self._read_run().get("state"), self.newest_checkpoint()
        finished = state == FINISHED and (self.path / FINAL).exists()  # one that was moved away is made again
        if resume_from_checkpoint is None or not (finished or state == GROWING):
            return None
        asked = resume_from_checkpoint == "auto"
        asked = asked or (newest is not None and Path(resume_from_checkpoint).resolve() == newest.resolve())
        if asked and newest is not None:
            return newest
        if state == GROWING:
            where = "no checkpoint is complete; use the models that are there"
            if newest is not None:
                where = f"{newest} is where it goes on; give auto"
            raise InputError(
                f"resume_from_checkpoint: {resume_from_checkpoint}: the run was given more time, and {where}"
            )
        return None

    # ---- run.json and RESUMABLE: what the run is, and what is left to do ----

    def check_identity(self, identity: dict[str, Any], checkpoint: Path | None) -> None:
        """Refuse to go on with another model, data or seed than the run began with. Verifies the checkpoint's checksums."""
        begun = {self.path: self._read_run().get("identity") or identity}
        if checkpoint is not None:
            begun = {checkpoint: complete_manifest(checkpoint, checksums=True)["identity"], **begun}
        for source, theirs in begun.items():
            for field in sorted(identity.keys() | theirs.keys()):
                if identity.get(field) != theirs.get(field):
                    raise InputError(
                        f"resume_from_checkpoint: {source} was begun with {field}={theirs.get(field)!r}, this run has "
                        f"{identity.get(field)!r}; use the recipe it was begun with, or another output_dir"
                    )

    def check_data(self, fingerprint: str) -> None:
        """Refuse to evaluate a finished run on the blocks of another data folder."""
        run = self._read_run()
        theirs = run.get("identity", {}).get("data")
        if theirs != fingerprint and (theirs or not run.get("damaged")):
            raise InputError(
                f"data_dir: not the data that {self.path} was trained with, and its evaluation is still to be done; give "
                "that folder again"
            )

    def restore_clock(self, clock: BudgetClock, checkpoint: Path | None) -> int:
        """Charge what earlier jobs used (the larger of clock.json and the checkpoint); returns this job's number from 1.

        In the place of a damaged clock.json counts the last line of progress.jsonl. InputError where there is neither that
        nor a checkpoint.
        """
        clock.restore(self.used_before(checkpoint))
        return int(self._read_run().get("job", 0)) + 1

    def used_before(self, checkpoint: Path | None) -> dict[str, float]:
        """The seconds by phase that `restore_clock` charges."""
        stored = {} if checkpoint is None else stored_in(checkpoint, STATE_KEY)["shares"]
        try:
            kept = read_clock(self.path / CLOCK)
        except InputError:
            kept = self._rebuilt_clock(stored)
        return max(stored, kept, key=lambda seconds: sum(seconds.values()))

    def _rebuilt_clock(self, stored: dict[str, float]) -> dict[str, float]:
        """`stored` (seconds by phase of a checkpoint) and what was trained behind it."""
        told = float(self._last_progress().get("elapsed_seconds", 0.0))
        if not stored and not told:
            raise InputError(
                f"{CLOCK}: {self.path / CLOCK} is damaged, and no checkpoint or line of {PROGRESS} says how much time was "
                "used; delete it to begin anew, or give another output_dir"
            )
        source = "the checkpoint" if told <= sum(stored.values()) else PROGRESS
        log.warning("%s is damaged; the time used is taken from %s", self.path / CLOCK, source)
        return {**stored, "train": stored.get("train", 0.0) + max(0.0, told - sum(stored.values()))}

    def _last_progress(self) -> dict[str, Any]:
        """The last whole line of `progress.jsonl`; empty where there is none."""
        with suppress(OSError):
            for line in reversed((self.path / PROGRESS).read_bytes().splitlines()):
                with suppress(ValueError, KeyError, TypeError):
                    content = json.loads(line)
                    if isinstance(content, dict) and math.isfinite(content["elapsed_seconds"] + content["job"]):
                        return content
        return {}

    def begin(
        self, identity: dict[str, Any], job: int, growth: dict[str, Any] | None = None, state: str = _TRAINING
    ) -> None:
        """Claim the folder for this run: `run.json` says what it is, folders that killed jobs left unfinished go.

        `growth` is what `Growth.as_dict` says of shorter budgets.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / RESUMABLE).unlink(missing_ok=True)
        for folder in self.path.iterdir():
            if _UNFINISHED.fullmatch(folder.name):  # not what else may be called .partial-
                shutil.rmtree(folder, ignore_errors=True)
        run = {"job": job, "state": state, "identity": identity, **({"growth": growth} if growth else {})}
        write_json_atomic(self.path / RUN, run)

    def set_state(self, state: str) -> None:
        """EVALUATING: a job that is killed from here on is to be resumed; FINISHED: nothing is left to do."""
        if state == FINISHED:
            (self.path / RESUMABLE).unlink(missing_ok=True)
        write_json_atomic(self.path / RUN, {**self._read_run(), "state": state})
        if state == EVALUATING:
            (self.path / RESUMABLE).write_text("evaluation\n", encoding="utf-8")

    @property
    def is_growing(self) -> bool:
        """Whether a finished run was given more time, and what it has made is still to be set aside."""
        return self._read_run().get("state") == GROWING

    def growth(self) -> dict[str, Any]:
        """What `begin` was told of shorter budgets; empty where there were none."""
        return dict(self._read_run().get("growth") or {})

    def awaits_evaluation(self) -> bool:
        """Whether `final/` is complete, and the job that wrote it was killed before the evaluation behind it had ended."""
        return (self.path / FINAL).is_dir() and self._read_run().get("state") == EVALUATING

    def mark_resumable(self, reason: str) -> None:
        """Leave the file `RESUMABLE` with the reason: launchers turn exit code 85 into 1, so a job script tests for it."""
        self.path.mkdir(parents=True, exist_ok=True)
        newest = self.newest_checkpoint()
        where = "from its beginning" if newest is None else f"from {newest}"
        (self.path / RESUMABLE).write_text(f"{reason}\n", encoding="utf-8")
        log.info("%s: the run goes on %s with --resume_from_checkpoint auto", reason, where)

    def _read_run(self) -> dict[str, Any]:
        """`run.json`, empty where there is none; rebuilt where it is damaged."""
        try:
            content = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            run = {"job": int(content["job"]), "state": content["state"], "identity": dict(content["identity"])}
            return run | ({"growth": dict(content["growth"])} if content.get("growth") else {})
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            if self._rebuilt is None:
                self._rebuilt = self._rebuild_run()
            return self._rebuilt

    def _rebuild_run(self) -> dict[str, Any]:
        """What `run.json` said, from the newest checkpoint and the other files of the folder."""
        checkpoint, state = self.newest_checkpoint(), _TRAINING
        if (self.path / FINAL).is_dir():
            evaluated = not (self.path / RESUMABLE).exists() and (self.read_report() or {}).get("evaluation")
            state = FINISHED if evaluated else EVALUATING
        log.warning("%s is damaged; taken from %s", self.path / RUN, checkpoint or "the other files beside it")
        identity = {} if checkpoint is None else complete_manifest(checkpoint)["identity"]
        job = self._last_progress().get("job", 1)
        return {"job": int(job), "state": state, "identity": dict(identity), "damaged": True}

    def read_report(self) -> dict[str, Any] | None:
        """`run_report.json`; None where it is missing or damaged."""
        try:
            return dict(json.loads((self.path / REPORT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def copy_final(self, names: Sequence[str]) -> None:
        """Make the folders `names` copies of `final/`, those that are not there yet."""
        for target in [self.path / name for name in names]:
            if not target.exists():
                staging = staging_folder(target)
                shutil.copytree(self.path / FINAL, staging, dirs_exist_ok=True)
                publish_folder(staging, target)

    # ---- the disk ----

    def reserve_disk_space(self, size: int) -> None:
        """Keep `size` bytes of the disk for what is written last, in a file. RunError where there is no such room."""
        try:
            with open(self.path / _ROOM, "wb") as room:
                if size > 0:
                    allocate(room, size)
        except OSError as error:
            self.release_disk_space()
            raise _write_error(self.path / FINAL, os.strerror(error.errno or 0)) from error

    def release_disk_space(self) -> None:
        """Give back what `reserve_disk_space` kept."""
        (self.path / _ROOM).unlink(missing_ok=True)


def step_of(folder: Path) -> int:
    """The step in the name of a training checkpoint."""
    return int(folder.name.removeprefix("checkpoint-"))


def stored_in(checkpoint: Path, key: str) -> dict[str, Any]:
    """What `store_state` has put under `key` into a checkpoint; empty where nothing was. InputError on a damaged one."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return dict(state["stateful_callbacks"].get(key) or {})
    except (ValueError, KeyError, TypeError):
        complete_manifest(checkpoint, checksums=True)  # names the file
        raise
