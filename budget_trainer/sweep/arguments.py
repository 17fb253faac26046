"""`--dry_run`: the commands of the trials, one per line.

The command line of sweep.py, and which of the two forms its file has.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.command import Parser
from budget_trainer.core.errors import InputError
from budget_trainer.sweep.spec import FIRST_OVERHEAD, SEARCHES, SweepSpec, pruning_words, read_spec, yaml_of
from budget_trainer.sweep.trials import folder_name

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
        from budget_trainer.sweep.spec import combinations

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


# Flags that win over keys of the file, by key.
HELP = {
    "output_dir": "folder of the sweep: a folder per trial, their logs, the study, the report",
    "total_time": "wall clock of the whole sweep, everything included, as 8h",
    "time_per_trial": "the budget of each trial (its --total_training_time), as 30m",
    "trials": "how many trials, over all processes that work on the study; the failed ones count",
    "recipe": "recipe that all trials begin from; parameters and fixed win over it",
    "objective": "bits_per_byte or loss of the pinned evaluation, or 'glue: CoLA'",
    "parallel_trials": "trials at the same time: auto (one per GPU, one on a CPU) or a number",
    "accelerate_config": "launch configuration of the trials, as in accelerate_configs/",
    "prune_at": "shares of a trial's time at which trials are compared, as 0.25,0.5; [] for never",
    "storage": "sqlite:///PATH, journal:PATH (on a shared disk: many machines, one study) or a database's URL",
    "seed": "of what is proposed",
    "keep_models": "best (the default) or all: which finished trials keep their models",
    "job_name": "name of the study; default: the file's name",
}


@dataclass
class SweepRequest:
    """What the command line asks for; `flags` are those that win over the file, by its keys."""

    path: Path
    text: str
    dry_run: bool
    init_cmd: str | None
    flags: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> SweepSpec:
        """The sweep, checked. Raises InputError."""
        from budget_trainer.migrate.reading import SweepFile, find_flag

        if not SweepFile.describes(self.text):
            if "data_dir" in self.flags:
                raise InputError("data_dir: belongs to a file of the original here; put it under fixed")
            return read_spec(self.path, self.flags, self.dry_run)
        from budget_trainer.sweep.original import read_original, unknown_names

        sweep = SweepFile.read(self.text)
        unknown = unknown_names(sweep)
        if unknown and not self.dry_run:
            find_flag(unknown[0], "sweep file")
        return read_original(sweep, self.path, self.flags, self._processes(), self.dry_run)

    def _processes(self) -> int:
        if "accelerate_config" not in self.flags:
            return 1
        from budget_trainer.sweep.checks import read_profile

        return read_profile(Path(self.flags["accelerate_config"]))[1]

    def lines(self) -> list[str]:
        """What `--dry_run` prints. A remark on them goes to stderr."""
        from budget_trainer.migrate.reading import SweepFile

        if SweepFile.describes(self.text):
            from budget_trainer.sweep.original import check_search, unknown_names

            check_search(self.flags)
            sweep = SweepFile.read(self.text)
            unknown = unknown_names(sweep)
            if unknown:  # placeholders, or flags of another script that --init_cmd names: as the original printed them
                _say(
                    f"note: {unknown[0]}: unknown to train_mlm.py and to the original; a sweep of it would be refused"
                )
                head = " ".join(init_words(self.init_cmd, self.flags.get("accelerate_config")))
                name = [f"--run_name={self.flags['job_name']}"] if "job_name" in self.flags else []
                return [" ".join([head, *words, *name]) for words in sweep.commands()]
        spec = self.spec()
        from budget_trainer.sweep.checks import check_words

        check_words(spec)
        found, remark = commands(spec, self.init_cmd)
        if remark is not None:
            _say(remark)
        return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse_arguments(argv: Sequence[str] | None) -> SweepRequest:
    """Read the command line and the file's text. Raises InputError."""
    parser = Parser("sweep.py", "Search for the best recipe: many trainings under a total time.")
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="the sweep file, as --param_file")
    add("--param_file", type=Path, help="the sweep file: of this project, or of academic-budget-bert unchanged")
    for name, text in HELP.items():
        add(f"--{name}", help=text)
    add("--search", "--search_type", dest="search", help=", ".join(SEARCHES))
    add("--data_dir", help="with a file of the original: the converted data (default: <dataset_path>-blocks)")
    add(
        "--init_cmd",
        help="with --dry_run: what the printed commands begin with; default: accelerate launch train_mlm.py",
    )
    add("--dry_run", action="store_true", help="print the commands of the trials, one per line, and start nothing")
    given = vars(parser.parse_args(argv))
    file, param_file = given.pop("file"), given.pop("param_file")
    if (file is None) == (param_file is None):
        what = "missing" if file is None else f"given twice, {file} and {param_file}"
        raise InputError(f"param_file: {what}; give one sweep file")
    path = file or param_file
    dry_run, init_cmd = given.pop("dry_run"), given.pop("init_cmd")
    if init_cmd is not None and not dry_run:
        raise InputError(
            "init_cmd: trials are started by accelerate launch (accelerate_config); add --dry_run to print commands"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"param_file: {path} cannot be read ({error}); give a YAML file") from None
    flags = {name: value for name, value in given.items() if value is not None}
    for name in ("objective", "prune_at"):
        if name in flags:
            flags[name] = yaml_of(flags[name])
    return SweepRequest(path, text, dry_run, init_cmd, flags)
