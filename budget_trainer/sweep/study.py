"""The Optuna study of a sweep: its storage, whose it is, what is tried next and what is given up."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from budget_trainer.config.parser import read_recipe
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import try_lock, user_path
from budget_trainer.sweep.spec import FILE_STORAGES, STORAGES, WHOLE, SweepSpec, grid_points, numbers_of

IDENTITY = "budget_trainer_sweep"  # user attribute of a study: what it searches
_BUSY_SECONDS = 60  # how long SQLite waits for another process
_TURN_SECONDS = 0.05  # between two tries for the lock of those who ask
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


def storage_file(url: str) -> Path | None:
    """The file of a storage, whose name is all that follows the scheme; None for a server's and for what is unknown."""
    for scheme in FILE_STORAGES:
        if url.startswith(scheme):
            return Path(url.removeprefix(scheme))
    return None


def check_storage(url: str, output_dir: Path) -> None:
    """Refuse (InputError) a storage that cannot be reached, as far as can be known without writing a file."""
    file = storage_file(url)
    if file is None and not url.lower().startswith("sqlite"):
        open_storage(url)
        return
    if (
        file is None or not file.name or file.is_dir()
    ):  # as sqlite://, each process's own, and sqlite+driver:///PATH, a URL
        raise InputError(f"storage: {url!r} names no file; write sqlite:///PATH or journal:PATH")
    folder = file.absolute().parent
    if not folder.is_dir() and folder != output_dir.absolute():
        raise InputError(f"storage: the folder {folder} is not there; make it, or give another file")
    for path in (file, folder):
        if path.exists() and not os.access(path, os.W_OK):
            raise InputError(f"storage: {path} is read-only for this user; give a file that can be written")


def shown(url: str) -> str:
    """A URL without its password; a file has none."""
    head, at, tail = url.rpartition("@")
    secret = at and ":" in head.partition("//")[2] and storage_file(url) is None
    return f"{head.rpartition(':')[0]}:***@{tail}" if secret else url


def open_storage(url: str) -> BaseStorage:
    """Connect. InputError in one line where the storage does not answer, or is something else."""
    file = storage_file(url)
    try:
        if file is not None and url.startswith("journal:"):
            file = file.absolute()  # the lock is a link to it: a relative one would point elsewhere
            _drop_half_line(file)
            return JournalStorage(JournalFileBackend(str(file)))
        if file is None:
            return RDBStorage(url)
        # SQLAlchemy would decode %20 in a URL and cut it at a ?, Optuna fill in what is in braces: the path stays out of it.
        connect = partial(sqlite3.connect, file.absolute(), timeout=_BUSY_SECONDS, check_same_thread=False)
        return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool})
    except Exception as error:  # of SQLAlchemy, its drivers, alembic and JSON: a storage that cannot be used
        reason, held = _reason(error)
        if held:
            raise RunError(f"storage: {shown(url)} {held}") from error
        raise InputError(f"storage: {shown(url)} cannot be used ({reason}); give {STORAGES}") from None


def _reason(error: BaseException) -> tuple[str, str]:
    """What a storage's error goes back to, in a line; and what is to be said where that is another process."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(str(error).split())[:200]
    wait = f"is held by another process for more than {_BUSY_SECONDS:g} s; end that one, then repeat the command"
    return reason, wait if "is locked" in reason else ""


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """RunError in one line where a storage that was there fails: a full disk, a lock that stays, a server that is gone."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, json.JSONDecodeError) as error:
        reason, held = _reason(error)
        held = held or f"failed ({reason}); repeat the command to go on"
        raise RunError(f"storage: {shown(url)} {held}") from error


def _drop_half_line(journal: Path) -> None:
    """Take away a record that was left half written: the next one would be glued to it, and nothing behind be readable."""
    if not journal.is_file():
        return
    lock = JournalFileSymlinkLock(str(journal))  # as those who write
    lock.acquire()
    try:
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


@contextmanager
def exclusive(spec: SweepSpec) -> Iterator[None]:
    """The lock under which one process of the sweep at a time asks; a killed one's is free at once.

    It lies beside the storage, so that all who use that take turns; for a server's in the sweep's folder.
    """
    file, field = storage_file(spec.storage), "storage"
    if file is None:
        file, field = spec.output_dir / ".lock", "output_dir"
    else:
        file = file.with_name(f".{file.name}.sweep-lock")
    while (lock := try_lock(file, field)) is None:
        time.sleep(_TURN_SECONDS)
    with lock:
        yield


def identity(spec: SweepSpec, recipe: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """What makes it another sweep where it changes: total_time, trials and machines may."""
    return {
        "search": spec.search,
        "parameters": {name: json.loads(distribution_to_json(searched)) for name, searched in spec.parameters.items()},
        "fixed": {name: value for name, value in spec.fixed.items() if name != "data_dir"},
        "recipe": {name: value for name, value in recipe.items() if name != "data_dir"},
        "data_dir": fingerprint,
        "objective": {"metric": spec.objective.metric, "task": spec.objective.task, **_glue_flags(spec)},
        "time_per_trial": spec.time_per_trial,
        "prune_at": list(spec.prune_at),
        "seed": spec.seed,
    }


def _glue_flags(spec: SweepSpec) -> dict[str, Any]:
    flags = spec.objective.glue_flags
    return {**flags, "grid": read_recipe(Path(user_path(flags["grid"], "grid")))} if "grid" in flags else flags


def check_identity(mine: dict[str, Any], theirs: Any, where: str) -> None:
    """Refuse to mix two sweeps: one line that names what differs."""
    theirs = theirs if isinstance(theirs, dict) else {}
    for name, value in json.loads(json.dumps(mine)).items():
        other = theirs.get(name)
        if value == other:
            continue
        key = name
        if isinstance(value, dict) and isinstance(other, dict):
            inner = next(inner for inner in [*value, *other] if value.get(inner) != other.get(inner))
            key, value, other = f"{name}.{inner}", value.get(inner), other.get(inner)
        what = f"{where} holds another sweep, with {key}={_short(other)}, this one has {_short(value)}"
        raise InputError(f"{name}: {what}; use the file it was begun with, or another output_dir and storage")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _make_pruner(spec: SweepSpec) -> BasePruner:
    """By the pinned evaluation at the same share of time; resources are thousandths of a trial's budget."""
    if not spec.prune_at:
        return NopPruner()
    if spec.search == "successive_halving":
        return SuccessiveHalvingPruner(spec.prune_at[0], spec.reduction_factor)
    if spec.search == "hyperband":
        return HyperbandPruner(spec.prune_at[0], WHOLE, spec.reduction_factor)
    return MedianPruner(n_startup_trials=3, n_min_trials=3)


class _MiddleFirst(GridSampler):
    """A shuffled grid that begins with its middle: the first trial of a halving search runs to its end, and the next ones only
    have to be better than it, so an extreme value there costs a whole trial, and more."""

    def __init__(self, spec: SweepSpec) -> None:
        super().__init__(_grid_of(spec), seed=spec.seed)
        grids, middle = self._all_grids, []
        for searched in map(spec.parameters.__getitem__, self._param_names):
            points = grid_points(searched)
            # Of numbers the one in their middle, by size; of anything else what is named first.
            middle.append(sorted(points)[len(points) // 2] if numbers_of(searched) else points[0])
        place = grids.index(tuple(middle))
        grids[0], grids[place] = grids[place], grids[0]


def _grid_of(spec: SweepSpec) -> dict[str, list[Any]]:
    return {name: grid_points(searched) for name, searched in spec.parameters.items()}


def _startup_trials(spec: SweepSpec) -> int:
    """How many trials of tpe are drawn at random before it begins to learn: a third, 3 to 10."""
    return min(10, max(3, (spec.trials or 30) // 3))


def _seed_of(spec: SweepSpec, number: int) -> int:
    """The seed of what proposes trial `number`."""
    return int.from_bytes(hashlib.sha256(f"{spec.seed}:{number}".encode()).digest()[:4], "big")


def _make_sampler(spec: SweepSpec, number: int) -> BaseSampler:
    """What proposes trial `number`: a function of the seed, the number and the results so far.

    A new one for each trial: after a restart, and in a second process, one that was seeded once would repeat itself. A grid
    is gone through in an order that the seed shuffles: the first points are from all over it.
    """
    if spec.exhaustive:  # one seed: it is what a point's number means
        return GridSampler(_grid_of(spec), seed=spec.seed) if spec.search == "grid" else _MiddleFirst(spec)
    seed = _seed_of(spec, number)
    if spec.search == "tpe":
        return TPESampler(n_startup_trials=_startup_trials(spec), constant_liar=True, seed=seed)
    return RandomSampler(seed=seed)


class SweepStudy(optuna.Study):
    """This sweep's study, made where there is none. Make it, and ask, under `exclusive`. InputError where it is another's."""

    def __init__(self, spec: SweepSpec, storage: BaseStorage, mine: dict[str, Any]) -> None:
        direction: Any = spec.objective.direction
        optuna.create_study(storage=storage, study_name=spec.job_name, direction=direction, load_if_exists=True)
        super().__init__(spec.job_name, storage, RandomSampler(), _make_pruner(spec))
        self.spec = spec
        theirs = self.user_attrs.get(IDENTITY)
        if theirs is None and not self.get_trials(deepcopy=False):
            self.set_user_attr(IDENTITY, mine)
        else:
            check_identity(mine, theirs, f"study {spec.job_name} in {shown(spec.storage)}")

    def propose(self) -> optuna.Trial:
        """The next trial, all its parameters drawn."""
        self.sampler = _make_sampler(self.spec, len(self.get_trials(deepcopy=False)))
        return self.ask({**self.spec.parameters})

    def resume(self, lost: FrozenTrial) -> optuna.Trial:
        """A trial that lost its process, with the parameters it had; those that it had not yet are drawn.

        Optuna has no public way to take up a trial that is running in its storage.
        """
        self.sampler = _make_sampler(self.spec, lost.number)
        trial = optuna.Trial(self, lost._trial_id)
        for name, searched in self.spec.parameters.items():
            trial._suggest(name, searched)
        return trial

    def conclude(self, trial: optuna.Trial, value: float | None, state: TrialState) -> None:
        """Record how a trial ended. A GridSampler would try to stop `Study.optimize` here, which nobody runs."""
        self.sampler = RandomSampler()
        self.tell(trial, value, state=state)


def first_proposals(spec: SweepSpec, count: int) -> tuple[list[dict[str, Any]], int]:
    """The first trials of a search that is no grid, as they come without results, and how many do not depend on any."""
    study = optuna.create_study()
    found = []
    for number in range(count):
        study.sampler = RandomSampler(seed=_seed_of(spec, number))
        found.append(dict(study.ask({**spec.parameters}).params))
    return found, min(count, _startup_trials(spec)) if spec.search == "tpe" else count
