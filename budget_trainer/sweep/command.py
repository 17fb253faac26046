"""The command line of sweep.py, both forms of its file, and what is checked before anything is written."""

from __future__ import annotations

import itertools
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.budget.clock import format_duration
from budget_trainer.config.arguments import KEYS as TRAINING_KEYS
from budget_trainer.config.arguments import PARSER as TRAINING
from budget_trainer.config.arguments import RunArguments
from budget_trainer.config.parser import NULLS, read_recipe, recipe_words, unknown_keys
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.command import Parser
from budget_trainer.core.errors import InputError
from budget_trainer.core.jobs import check_unseen
from budget_trainer.core.package_data import check_profile, profile_path, recipe_path, script_words
from budget_trainer.migrate.flags import FLAGS as ORIGINAL
from budget_trainer.migrate.flags import Given
from budget_trainer.migrate.reading import SweepFile
from budget_trainer.migrate.recipe import convert
from budget_trainer.sweep.spec import FIRST_OVERHEAD, FLAGS, HALVING, KEYS, SweepSpec, why_not_searched
from budget_trainer.training import run_folder

_SCRIPT = "train_mlm.py"
_START_SECONDS = 10.0  # of the sweep itself: imports, checks, the end


@dataclass(frozen=True)
class _SweepRequest:
    """What the command line asks for; `flags` are those that win over the file at `path`, by its keys."""

    path: Path
    text: str
    flags: Mapping[str, Any]
    data_dir: str | None  # of the original's file: where its converted data are
    dry_run: bool
    init_cmd: str | None  # what printed commands begin with

    @cached_property
    def _original(self) -> SweepFile | None:
        """The file where it is one of the original's, which holds a grid."""
        if not SweepFile.describes(self.text):
            return None
        if (search := self.flags.get("search", "grid")) != "grid":
            fix = "write a file with search, parameters and fixed"
            raise InputError(f"search: {search!r} is not one of the original's, whose files hold a grid; {fix}")
        return SweepFile.read(self.text)

    def spec(self) -> SweepSpec:
        """The sweep, checked but for what train_mlm.py and this machine say. Raises InputError."""
        content = self._own_content() if self._original is None else self._original_content(self._original)
        return SweepSpec.read(content, self.path.stem)

    def _own_content(self) -> dict[str, Any]:
        if self.data_dir is not None:
            raise InputError("data_dir: belongs to a file of the original here; put it under fixed")
        content = {**read_recipe(self.path), **self.flags}
        if (script := content.pop("script", _SCRIPT)) != _SCRIPT:
            raise InputError(f"script: {script!r} cannot be searched; leave it out: trials run {_SCRIPT}")
        if unknown := [(key, f"sweep file {self.path}") for key in content if key not in KEYS]:
            raise unknown_keys(unknown, KEYS, f"flags of {_SCRIPT} stand under fixed or parameters")
        return {key: value for key, value in content.items() if value not in NULLS or key == "parameters"}

    def _original_content(self, sweep: SweepFile) -> dict[str, Any]:
        """The keys of a sweep that the original's file has become: a grid over the flags that its flags are here."""
        names = {*sweep.grid, *sweep.fixed}
        if names <= TRAINING_KEYS and not names <= ORIGINAL.keys():  # its form, with our flags
            data = {} if self.data_dir is None else {"data_dir": self.data_dir}
            return {**self.flags, "parameters": sweep.grid, "fixed": sweep.fixed | data}
        points = [self._converted(sweep, number) for number in range(1, sweep.combinations + 1)]
        common = {key: text for key, text in points[0].items() if all(point.get(key) == text for point in points)}
        varied = _lists([{key: text for key, text in point.items() if key not in common} for point in points])
        content = {"job_name": common.get("run_name", self.path.stem), "parameters": varied}
        for key, theirs in (("time_per_trial", "total_training_time"), ("output_dir", "output_dir")):
            if theirs in common:  # else it is searched, which `SweepSpec.read` refuses
                content[key] = common[theirs]
        steps = (1,) if self.flags.get("prune_at") else ()
        content["fixed"] = {key: text for key, text in common.items() if why_not_searched(key, steps) is None}
        return {**content, **self.flags}

    def _converted(self, sweep: SweepFile, number: int) -> dict[str, str]:
        """A combination as the keys of our recipe. The original's train_batch_size is that of all processes of a trial."""
        config = self.flags.get("accelerate_config")
        processes = 1 if config is None else read_profile(Path(config))[1]
        values = {**sweep.given(number).values, "current_run_id": ""}
        values |= {name: self.flags[name] for name in ("job_name", "output_dir") if name in self.flags}
        entries = convert(Given(values, processes=processes), self.data_dir).entries
        return {key: str(v).lower() if isinstance(v, bool) else str(v) for key, (v, _) in entries.items()}

    def print_commands(self) -> None:
        """`--dry_run`: the commands of the trials, one per line. A remark on them goes to stderr.

        Placeholders of the original's file, and flags of another script that `--init_cmd` names, are printed as the original
        printed them: a sweep of them would be refused.
        """
        if self._original is not None and (unknown := _unknown_names(self._original)):
            _remark(f"{unknown[0]}: unknown to {_SCRIPT} and to the original; a sweep of it would be refused")
            head = self._head(self.flags.get("accelerate_config"))
            name = [f"--run_name={self.flags['job_name']}"] if "job_name" in self.flags else []
            for words in self._original.commands():
                print(" ".join([*head, *words, *name]))
            return
        spec = self.spec()
        _check_trials(spec)
        from budget_trainer.sweep.study import first_proposals

        count = spec.limit or max(1, math.floor(spec.total_time / (spec.time_per_trial + FIRST_OVERHEAD)))
        if spec.exhaustive:
            found, known = list(itertools.islice(spec.combinations(), count)), count
        else:
            found, known = first_proposals(spec, count)
        head = self._head(spec.accelerate_config) + ([] if spec.recipe is None else [str(spec.recipe)])
        for number, parameters in enumerate(found):
            print(shlex.join([*head, *spec.words(parameters, number)]))
        if known < count:
            _remark(
                f"tpe draws the first {known} as shown; the others follow from results, and are shown as random ones"
            )
        if spec.search in HALVING:
            _remark(f"{spec.search} ends most of these early, and may take them in another order")

    def _head(self, config: object) -> list[str]:
        """What stands before the flags: the launcher and our script."""
        if self.init_cmd is None:
            profile = [] if config is None else ["--config_file", str(config)]
            return ["accelerate", "launch", *profile, *script_words("train_mlm")]
        try:
            words = shlex.split(self.init_cmd)
        except ValueError as error:
            raise InputError(f"init_cmd: {self.init_cmd!r} cannot be read ({error}); correct its quotes") from None
        if any(word.endswith("run_pretraining.py") for word in words):
            raise InputError(f"init_cmd: {self.init_cmd!r} starts the original's script; write {_SCRIPT}")
        return words


def _remark(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _unknown_names(sweep: SweepFile) -> list[str]:
    """Flags in the file that neither the original nor train_mlm.py knows: none where it is all one of the two."""
    names = [*sweep.grid, *sweep.fixed]
    return [] if TRAINING_KEYS >= set(names) else [name for name in names if name not in ORIGINAL]


def _lists(points: list[dict[str, str]]) -> dict[str, list[str]]:
    """The lists whose product the points are. InputError where they are no product."""
    fix = "make recipes of the combinations with python -m budget_trainer.migrate FILE --combination N"
    names = list(dict.fromkeys(name for point in points for name in point))
    # The order of the file: what changes fastest comes last.
    names.sort(key=lambda name: -next((i for i, p in enumerate(points) if p.get(name) != points[0].get(name)), 0))
    for name in names:
        if any(point.get(name, "") in NULLS for point in points):
            raise InputError(f"{name}: set in some combinations of hyperparameters only; {fix}")
    lists = {name: list(dict.fromkeys(point[name] for point in points)) for name in names}
    found = {tuple(point[name] for name in names) for point in points}
    if found != set(itertools.product(*lists.values())) or len(found) != len(points):
        raise InputError(f"hyperparameters: {', '.join(names)} depend on each other here; {fix}")
    return lists


def parse_request(argv: Sequence[str] | None = None) -> _SweepRequest:
    """Read the command line and the text of the file. Raises InputError."""
    parser = Parser("sweep.py", "Search for the best recipe: many trainings under a total time.")
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="the sweep file, as --param_file, or the name of one of the package")
    add("--param_file", type=Path, help="the sweep file: of this project, or of academic-budget-bert unchanged")
    for name, known in FLAGS.items():
        kind = "path" if known.unit in ("DIR", "FILE") else str
        alias = ["--search_type"] if name == "search" else []
        add(f"--{name}", *alias, type=kind, help=known.help, metavar=known.unit)
    add(
        "--data_dir",
        type="path",
        help="with a file of the original: the converted data (default: <dataset_path>-blocks)",
    )
    add("--init_cmd", help=f"with --dry_run: what the commands begin with; default: accelerate launch {_SCRIPT}")
    add("--dry_run", action="store_true", help="print the commands of the trials, one per line, and start nothing")
    given = vars(parser.parse_args(argv))
    file, param_file = given.pop("file"), given.pop("param_file")
    if (file is None) == (param_file is None):
        what = "missing" if file is None else f"given twice, {file} and {param_file}"
        raise InputError(f"param_file: {what}; give one sweep file")
    own = {name: given.pop(name) for name in ("data_dir", "dry_run", "init_cmd")}
    if own["init_cmd"] is not None and not own["dry_run"]:
        fix = "add --dry_run to print commands"
        raise InputError(f"init_cmd: trials are started by accelerate launch (accelerate_config); {fix}")
    path = Path(recipe_path(str(file or param_file), "param_file", "sweeps"))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"param_file: {path} cannot be read ({error}); give a YAML file") from None
    flags = {name: value for name, value in given.items() if value is not None}
    if "accelerate_config" in flags:
        flags["accelerate_config"] = str(profile_path(flags["accelerate_config"], "accelerate_config"))
    for name in {"objective", "prune_at"} & flags.keys():  # `glue: CoLA` is a mapping, as in the file
        with suppress(yaml.YAMLError):  # refused as the text that it is
            flags[name] = yaml.load(flags[name], Loader=yaml.BaseLoader)
    return _SweepRequest(path, text, flags, **own)


def check_start(spec: SweepSpec, on_cpu: bool) -> Path:
    """Refuse what could not run here, before anything is written; returns the data folder of all trials.

    Raises:
        InputError: no time for one trial, a folder that is not the sweep's to write, flags that train_mlm.py or
            finetune_glue.py refuse, data of GLUE that are not there.
    """
    check_unseen()
    if spec.accelerate_config is not None:
        check_profile(spec.accelerate_config, "accelerate_config")
    beside = FIRST_OVERHEAD + _START_SECONDS
    if spec.total_time < (needed := spec.time_per_trial + beside):
        total, one = format_duration(spec.total_time), format_duration(spec.time_per_trial)
        what = f"one trial (time_per_trial {one}, and about {beside:.0f}s to start and evaluate it)"
        raise InputError(f"total_time: {total} is smaller than {what}; give {format_duration(needed)} or more")
    run_folder.RunFolder(spec.output_dir).check_writable()
    for name in (run_folder.RUN, "suite.json", run_folder.FINAL):
        if (spec.output_dir / name).exists():
            raise InputError(f"output_dir: {spec.output_dir} holds something else ({name}); give another folder")
    data_dir = _check_trials(spec, on_cpu)
    if spec.objective.task is not None:  # before hours of pre-training
        _check_glue(spec)
    return data_dir


def _check_trials(spec: SweepSpec, on_cpu: bool = False) -> Path:
    """Refuse (InputError) any trial whose flags train_mlm.py would refuse; returns the data folder of all trials.

    A GPU is not touched for it: without `on_cpu` precision and device do not count here.
    """
    recipe = spec.base_recipe()
    _check_names([*spec.parameters, *spec.fixed], "sweep file")
    _check_names([*recipe], f"recipe {spec.recipe}")
    machine = ["--use_cpu=true", "--push_to_hub=false", *([] if on_cpu else ["--fp16=false", "--tf32=false"])]
    base = recipe_words(recipe)
    recipes = [parse_recipe([*base, *spec.words(given, 0), *machine]) for given in spec.probes()]
    RunArguments.of(recipes[0].training)  # checks its values; of one trial, since it looks for devices each time
    if len({recipe.data_dir for recipe in recipes}) > 1:
        raise InputError("data_dir: losses on different data do not compare; put one data_dir under fixed")
    return recipes[0].data_dir


def _check_names(names: list[str], where: str) -> None:
    """Refuse the flags that train_mlm.py does not know, each with the nearest name, or what has its place here."""
    unknown = [(name, where) for name in names if not TRAINING.knows(name)]
    for name, _ in unknown:
        if name in ORIGINAL:
            known = ORIGINAL[name]
            fix = f"write {known.key}" if known.key else f"take it out: {known.text}"
            raise InputError(f"{name}: a flag of the original ({where}); {fix}")
    if unknown:
        raise TRAINING.unknown(unknown)


def _check_glue(spec: SweepSpec) -> None:
    from budget_trainer.glue.arguments import parse_request
    from budget_trainer.glue.plan import make_plan

    request = parse_request([*spec.objective.words("final", str(spec.output_dir)), "--use_cpu=true"])
    plan = make_plan(request)
    for task in request.tasks:
        if task.name not in plan.data_digests:
            reason = plan.absent.get(task.name, f"it is answered by the model of {task.shared}")
            raise InputError(f"objective: {task.name} gives no score ({reason}); add its data, or take it out")


def read_profile(path: Path) -> tuple[bool, int]:
    """Whether a launch configuration is for a CPU, and how many processes it starts. Raises InputError."""
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
        use_cpu, processes = bool(profile.get("use_cpu", False)), int(profile.get("num_processes", 1))
        machines = int(profile.get("num_machines", 1))
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        reason, fix = " ".join(str(error).split())[:200], "give a profile as in accelerate_configs/"
        raise InputError(f"accelerate_config: {path} cannot be read ({reason}); {fix}") from None
    if machines > 1:
        fix = "give one for one machine and start sweep.py on each with the same storage"
        raise InputError(f"accelerate_config: {path} is for {machines} machines, and a trial runs on one; {fix}")
    return use_cpu, max(1, processes)
