"""The Optuna study of a sweep: its storage, whose it is, what is tried next and what is given up."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial

from budget_trainer.core.errors import InputError
from budget_trainer.sweep.spec import WHOLE, SweepSpec, grid_points

log = logging.getLogger(__name__)
IDENTITY = "budget_trainer_sweep"  # user attribute of a study: what it searches
_BUSY_SECONDS = 60  # how long SQLite waits for another process
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


def storage_file(url: str) -> Path | None:
    """The file of a storage; None for a server's and for what is unknown."""
    for scheme in ("journal:", "sqlite:///"):
        if url.startswith(scheme):
            return Path(url.removeprefix(scheme).partition("?")[0])
    return None


def check_storage(url: str, output_dir: Path) -> None:
    """Refuse (InputError) a storage that cannot be reached, as far as can be known without writing."""
    file = storage_file(url)
    if file is None:
        _check_server(url)
        return
    if not file.name:
        raise InputError(f"storage: {url!r} names no file; write sqlite:///PATH or journal:PATH")
    if file.is_dir():
        raise InputError(f"storage: {file} is a folder; name a file in it, such as {file / 'study.db'}")
    folder = file.absolute().parent
    if file.exists():
        if not os.access(file, os.W_OK):
            raise InputError(f"storage: {file} is read-only for this user; give a file that can be written")
    elif not folder.is_dir() and folder != output_dir.absolute():
        raise InputError(f"storage: the folder {folder} is not there; make it, or give another file")
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"storage: {folder} is read-only for this user; give a file that can be written")


def _check_server(url: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    fix = "write sqlite:///PATH, journal:PATH, or a database's URL"
    try:
        dialect = make_url(url).get_dialect()
        dialect.import_dbapi()
    except ArgumentError as error:  # NoSuchModuleError is one
        what = "has an unknown scheme" if isinstance(error, NoSuchModuleError) else "is no URL"
        raise InputError(f"storage: {shown(url)} {what}; {fix}") from None
    except ModuleNotFoundError as error:
        raise InputError(f"storage: {shown(url)} needs the driver {error.name}; pip install it, or {fix}") from None


def shown(url: str) -> str:
    """A URL without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:***@{tail}" if at and ":" in head.partition("//")[2] else url


def open_storage(url: str) -> BaseStorage:
    """Connect. InputError in one line where the storage does not answer, or is something else."""
    file = storage_file(url)
    try:
        if file is not None and url.startswith("journal:"):
            file = file.absolute()  # the lock is a link to it: a relative one would point elsewhere
            _drop_half_line(file)
            return JournalStorage(JournalFileBackend(str(file)))
        arguments = {"connect_args": {"timeout": _BUSY_SECONDS}} if file is not None else None
        return RDBStorage(url, engine_kwargs=arguments)
    except Exception as error:  # of SQLAlchemy, its drivers, alembic and JSON: a storage that cannot be used
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"storage: {shown(url)} cannot be used ({reason}); give one that can") from None


def _drop_half_line(journal: Path) -> None:
    """Take away the record that a full disk or a power cut has left half written: the next one would be glued to it, and
    nothing behind that could be read."""
    if not journal.is_file():
        return
    lock = JournalFileSymlinkLock(str(journal))  # as those who write
    lock.acquire()
    try:
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)
    finally:
        lock.release()


def exclusive(spec: SweepSpec) -> FileLock:
    """The lock under which one process of the sweep at a time asks; a killed one's is free at once.

    It lies beside the storage, so that all who use that take turns; for a server's in the sweep's folder.
    """
    file = storage_file(spec.storage)
    return FileLock(spec.output_dir / ".lock" if file is None else file.with_name(f".{file.name}.sweep-lock"))


def identity(spec: SweepSpec, recipe: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """What makes it another sweep where it changes: total_time, trials and machines may."""
    return {
        "search": spec.search,
        "parameters": {name: json.loads(distribution_to_json(searched)) for name, searched in spec.parameters.items()},
        "fixed": {name: value for name, value in spec.fixed.items() if name != "data_dir"},
        "recipe": {name: value for name, value in recipe.items() if name != "data_dir"},
        "data_dir": fingerprint,
        "objective": {"metric": spec.objective.metric, "task": spec.objective.task, **spec.objective.glue_flags},
        "time_per_trial": spec.time_per_trial,
        "prune_at": list(spec.prune_at),
        "seed": spec.seed,
    }


def check_identity(mine: dict[str, Any], theirs: Any, where: str) -> None:
    """Refuse to mix two sweeps: one line that names what differs."""
    theirs = theirs if isinstance(theirs, dict) else {}
    for name, value in json.loads(json.dumps(mine)).items():
        other = theirs.get(name)
        if value == other:
            continue
        if isinstance(value, dict) and isinstance(other, dict):
            key = next(key for key in [*value, *other] if value.get(key) != other.get(key))
            name, value, other = f"{name}.{key}", value.get(key), other.get(key)
        raise InputError(
            f"{name.partition('.')[0]}: {where} holds another sweep, with {name}={_short(other)}, this one has "
            f"{_short(value)}; use the file it was begun with, or another output_dir and storage"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def open_study(spec: SweepSpec, storage: BaseStorage, mine: dict[str, Any]) -> optuna.Study:
    """This sweep's study, made where there is none. Call it under `exclusive`. InputError where it is another's."""
    direction: Any = spec.objective.direction
    study = optuna.create_study(
        storage=storage,
        study_name=spec.job_name,
        direction=direction,
        load_if_exists=True,
        sampler=RandomSampler(),
        pruner=_make_pruner(spec),
    )
    theirs = study.user_attrs.get(IDENTITY)
    if theirs is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, mine)
    else:
        check_identity(mine, theirs, f"study {spec.job_name} in {shown(spec.storage)}")
    return study


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
    """A shuffled grid that begins with its middle. The first trial of a halving search has nobody to be compared with and
    runs to its end, and the next ones only have to be better than it: an extreme value there costs a whole trial, and more.
    """

    def __init__(self, search_space: Mapping[str, Sequence[Any]], seed: int | None = None) -> None:
        super().__init__(search_space, seed=seed)
        grids, names = self._all_grids, self._param_names
        place = grids.index(tuple(_middle(search_space[name]) for name in names))
        grids[0], grids[place] = grids[place], grids[0]


def _middle(values: Sequence[Any]) -> Any:
    """Of numbers the one in their middle, by size; of anything else what is named first."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sorted(values)[len(values) // 2]
    return values[0]


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
        grid = GridSampler if spec.search == "grid" else _MiddleFirst
        return grid({name: grid_points(searched) for name, searched in spec.parameters.items()}, seed=spec.seed)
    seed = _seed_of(spec, number)
    if spec.search == "tpe":
        return TPESampler(n_startup_trials=_startup_trials(spec), constant_liar=True, seed=seed)
    return RandomSampler(seed=seed)


def ask(spec: SweepSpec, study: optuna.Study) -> optuna.Trial:
    """The next trial, all its parameters drawn. Call it under `exclusive`."""
    study.sampler = _make_sampler(spec, len(study.get_trials(deepcopy=False)))
    return study.ask({**spec.parameters})


def resume(spec: SweepSpec, study: optuna.Study, lost: FrozenTrial) -> optuna.Trial:
    """A trial that lost its process, with the parameters it had; those that it had not yet are drawn.

    Optuna has no public way to take up a trial that is running in its storage.
    """
    study.sampler = _make_sampler(spec, lost.number)
    trial = optuna.Trial(study, lost._trial_id)
    for name, searched in spec.parameters.items():
        trial._suggest(name, searched)
    return trial


def tell(study: optuna.Study, trial: optuna.Trial, value: float | None, state: Any) -> None:
    """Record how a trial ended. A GridSampler would try to stop `Study.optimize` here, which nobody runs."""
    study.sampler = RandomSampler()
    study.tell(trial, value, state=state)


def first_proposals(spec: SweepSpec, count: int) -> tuple[list[dict[str, Any]], int]:
    """The first trials of a search that is no grid, as they come without results, and how many of them do not depend on any."""
    study = optuna.create_study()
    found = []
    for number in range(count):
        study.sampler = RandomSampler(seed=_seed_of(spec, number))
        found.append(dict(study.ask({**spec.parameters}).params))
    return found, min(count, _startup_trials(spec)) if spec.search == "tpe" else count
