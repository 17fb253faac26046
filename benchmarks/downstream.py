#!/usr/bin/env python3
"""What is a checkpoint worth downstream? One score with its spread, beside that of its architecture with random weights.

    python benchmarks/downstream.py out/a/final out/b/final --glue_dir data/glue,data/mnli_22k --output_dir out/downstream
    python benchmarks/downstream.py ours=out/s1/final,out/s2/final,out/s3/final out/stock/final --glue_dir data/glue

Each task is fine-tuned at every rate of the protocol with the first seed, then with the other seeds at the rate that was best
with the first. A task's score is the median over the seeds at that rate, the score of a checkpoint is the mean over
--judged, its spread the range of that mean seed by seed. NAME=DIR,DIR,... is one recipe pre-trained with several seeds:
their median and range come beside. One run for each core (taskset gives it fewer), or for each GPU, at a time. It goes on where
it was ended, and does nothing twice. A higher --seeds shows the noise of fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from budget_trainer.budget.clock import format_duration  # noqa: E402
from budget_trainer.core.command import StopRequest  # noqa: E402
from budget_trainer.core.errors import InputError, RunError, StopAsked  # noqa: E402
from budget_trainer.core.io import fresh_folder, hold_folder, sha256, write_atomic, write_json_atomic  # noqa: E402
from budget_trainer.core.jobs import Job, JobEnd, devices, run_jobs  # noqa: E402
from budget_trainer.core.machine import usable_cores  # noqa: E402

if TYPE_CHECKING:
    from budget_trainer.glue.plan import Plan, PlannedRun

FIRST = ("5e-5", "1e-4", "3e-4")
ORDINARY = 1e-4  # the highest rate that users of run_glue try
CLAIM = "downstream_of.json"
_OF_A_FILE = (
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
)  # of a config, no part of the architecture


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    parser.add_argument(
        "checkpoints", nargs="+", metavar="[NAME=]DIR[,DIR...]", help="folders with model and tokenizer"
    )
    parser.add_argument(
        "--glue_dir", required=True, help="folders in the official layout, with commas, searched in this order"
    )
    protocol = ROOT / "recipes" / "glue" / "downstream.yaml"
    parser.add_argument("--protocol", default=str(protocol), help="flags, rates, seeds (recipes/glue/downstream.yaml)")
    parser.add_argument("--rates", help=f"learning rates instead of the protocol's, as {','.join(FIRST)}")
    parser.add_argument("--seeds", type=int, help="how many seeds instead of the protocol's, at least 2")
    parser.add_argument("--judged", default="STS-B,SST-2,MNLI", help="tasks that make the score (STS-B,SST-2,MNLI)")
    parser.add_argument("--tasks", help="further tasks, which are printed only, as CoLA,MRPC,RTE")
    parser.add_argument("--no_floor", action="store_true", help="leave the random weights out")
    parser.add_argument("--floor_seed", type=int, default=0, help="of the random weights (0)")
    parser.add_argument("--output_dir", default="out/downstream", help="folder for what is run (out/downstream)")
    return parser.parse_args(argv)


# ---- what is measured ----


@dataclass(frozen=True)
class Model:
    """A checkpoint: its name in tables, the recipe it is one of several seeds of, its folder, its digest."""

    name: str
    group: str | None
    folder: Path
    digest: str


def read_models(words: Sequence[str]) -> list[Model]:
    """The checkpoints of DIR and NAME=DIR,DIR. InputError where one is none, or is there twice."""
    from budget_trainer.glue.model import load_checkpoint

    models: list[Model] = []
    groups: set[str] = set()
    for word in words:
        group, equals, paths = word.partition("=")
        given = bool(equals) and not Path(word).is_dir()
        if given and (not group or group in groups):
            raise InputError(f"checkpoints: {word}: {group!r} is no name of its own; write NAME=DIR,DIR")
        groups |= {group} if given else set()
        for path in paths.split(",") if given else [word]:
            if not Path(path).is_dir():
                raise InputError(f"checkpoints: {path!r} is not a folder; give one with a model and its tokenizer")
            folder, _, digest = load_checkpoint(path)
            if twin := next((model.name for model in models if model.digest == digest), None):
                raise InputError(f"checkpoints: {path} holds the same model as {twin}; take one out")
            models.append(Model(path.rstrip("/"), group if given else None, folder.resolve(), digest))
    return models


def make_protocol(a: argparse.Namespace, model: Model) -> Plan:
    """All runs of one model: each task at each rate with each seed. InputError for what could not be judged afterwards.

    What was asked for becomes lists: glue_dir, judged, tasks (the further ones), rates and seeds.
    """
    from budget_trainer.glue.arguments import parse_request
    from budget_trainer.glue.plan import make_plan, read_grid
    from budget_trainer.glue.tasks import find_tasks

    if not Path(a.protocol).is_file():
        raise InputError(f"protocol: {a.protocol} is not a file; give one as recipes/glue/downstream.yaml")
    a.judged = [task.name for task in find_tasks([a.judged])]
    tasks = [task.name for task in find_tasks([*a.judged, a.tasks or ""])]
    a.tasks = [name for name in tasks if name not in a.judged]
    seeds = read_grid(a.protocol, None, 1).seeds
    count = len(seeds) if a.seeds is None else a.seeds
    if count < 2:
        raise InputError(f"seeds: {count} has no spread; give --seeds 3")
    a.seeds = [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + count)][:count]
    a.glue_dir = [str(Path(folder.strip()).resolve()) for folder in a.glue_dir.split(",")]
    words = ["--task_name", ",".join(tasks), "--model_name_or_path", str(model.folder), "--glue_dir", *a.glue_dir]
    words += ["--grid", a.protocol, "--seeds", ",".join(map(str, a.seeds)), "--output_dir", str(a.output_dir)]
    plan = make_plan(parse_request(words))
    for name, reason in plan.absent.items():
        raise InputError(
            f"glue_dir: {name} cannot be run ({reason}); add its folder, or leave it out of judged and tasks"
        )
    if a.rates is not None:
        rates = a.rates = read_rates(a.rates)
        first = [run for run in plan.runs if run.configuration == 0]
        plan.runs = [
            replace(run, configuration=place, flags={**run.flags, "learning_rate": rate})
            for run in first
            for place, rate in enumerate(rates)
        ]
    for name in tasks:
        flags = [run.flags for run in plan.of(name) if run.seed == a.seeds[0]]
        if len(flags) < 2:
            only = flags[0].get("learning_rate", "the default")
            raise InputError(
                f"protocol: {name} has one rate, {only}, which may suit no model; give --rates {','.join(FIRST)}"
            )
        if len({rate_free(one) for one in flags}) > 1 or len({float(one["learning_rate"]) for one in flags}) < len(
            flags
        ):
            raise InputError(f"protocol: the grid of {name} has more than learning_rate; put the rest under flags")
    return plan


def read_rates(text: str) -> list[str]:
    rates = [rate.strip() for rate in text.split(",")]
    try:
        values = [float(rate) for rate in rates]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values) or len(set(values)) < len(values):
        raise InputError(f"rates: {text!r} are not different numbers above 0; write {','.join(FIRST)}")
    return rates


def rate_free(flags: dict[str, str]) -> str:
    return json.dumps({name: value for name, value in flags.items() if name != "learning_rate"}, sort_keys=True)


def claim(a: argparse.Namespace, plan: Plan, models: Sequence[Model], device: str) -> None:
    """Note in output_dir what is measured there; refuse another protocol, and another model under the same path.

    More tasks, more seeds and more checkpoints go on.
    """
    from budget_trainer.glue.results import read_object

    tasks: dict[str, Any] = {name: {"data_sha256": digest, "flags": []} for name, digest in plan.data_digests.items()}
    for run in plan.runs:
        if run.seed == a.seeds[0]:
            tasks[run.task.name]["flags"].append(run.flags)
    checkpoints = {str(model.folder): model.digest for model in models}
    ours: dict[str, Any] = {"judged": a.judged, "first_seed": a.seeds[0], "device": device, "floor_seed": a.floor_seed}
    path = a.output_dir / CLAIM
    if path.exists():
        theirs = read_object(path, f"delete {a.output_dir}, or give another output_dir")
        for name, value in ours.items():
            if theirs.get(name) != value:
                differs = f"{name} {theirs.get(name)}, here {value}"
                raise InputError(f"output_dir: {a.output_dir} has another protocol ({differs}); give another folder")
        for name in (name for name in tasks if name in theirs["tasks"]):
            if tasks[name] != theirs["tasks"][name]:
                differs = next(key for key in tasks[name] if tasks[name][key] != theirs["tasks"][name].get(key))
                raise InputError(
                    f"output_dir: {a.output_dir} has another protocol ({name}: {differs}); give another folder"
                )
        for name in (name for name in checkpoints if name in theirs["checkpoints"]):
            if checkpoints[name] != theirs["checkpoints"][name]:
                raise InputError(
                    f"output_dir: {name} held another model when it was measured there; give another folder"
                )
        tasks, checkpoints = {**theirs["tasks"], **tasks}, {**theirs["checkpoints"], **checkpoints}
    write_json_atomic(path, {**ours, "tasks": tasks, "checkpoints": checkpoints})


def draw_floor(model: Model, output_dir: Path, seed: int) -> Model:
    """The architecture and tokenizer of `model` with the library's own random weights; one for all models of that config."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from budget_trainer.glue.model import load_checkpoint
    from budget_trainer.model.checkpoint import of_tokenizer, read_config, readable

    config = read_config(model.folder)
    content = {name: value for name, value in config.to_dict().items() if name not in _OF_A_FILE}
    files = {path.name: sha256(path) for path in sorted(model.folder.iterdir()) if of_tokenizer(path.name)}
    folder = output_dir / "random_weights" / sha256(json.dumps([content, files], sort_keys=True, default=str))[:16]
    if not (folder / "model.safetensors").is_file():
        whole, folder = folder, fresh_folder(folder.with_suffix(".part"))
        AutoTokenizer.from_pretrained(model.folder).save_pretrained(folder)
        with readable(f"checkpoints: {model.folder} is no masked language model", "add --no_floor"):
            torch.manual_seed(seed)
            AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        folder = folder.rename(whole)
    return Model(f"random weights of {model.name}", None, folder, load_checkpoint(str(folder))[2])


# ---- running ----


def slots_here() -> Sequence[str | int | None]:
    """The GPUs, else the cores that this process may use; where the system cannot say these, one run at a time."""
    found = devices(use_cpu=False)
    return found if found != [None] else usable_cores() or found


class Runs:
    """The runs of all models in `output_dir/runs`; a folder's name says what its run was made from."""

    def __init__(self, a: argparse.Namespace, plan: Plan, slots: Sequence[str | int | None], device: str) -> None:
        self.a, self.plan, self.slots, self.device = a, plan, slots, device
        self.errors: dict[tuple[str, PlannedRun], str] = {}
        self.done = 0

    def folder(self, model: Model, run: PlannedRun) -> Path:
        data = self.plan.data_digests[run.task.name]
        key = run.key(model=model.digest, data=data, device=self.device)
        return self.a.output_dir / "runs" / run.task.name / key

    def result(self, model: Model, run: PlannedRun) -> dict[str, Any] | None:
        from budget_trainer.glue.results import read_result

        return read_result(self.folder(model, run))

    def work(self, runs: Sequence[tuple[Model, PlannedRun]], stop: StopRequest) -> None:
        """Run what is not finished, the longest first; what fails is noted in `errors`."""
        waiting = [one for one in runs if self.result(*one) is None]
        waiting.sort(key=lambda one: -one[1].weight)
        self.done, count = 0, len(waiting)

        def next_job() -> Job | None:
            return self._job(*waiting.pop(0), count) if waiting else None

        run_jobs(self.slots, next_job, stop)

    def _job(self, model: Model, run: PlannedRun, count: int) -> Job:
        folder = fresh_folder(self.folder(model, run))
        words = run.words(str(model.folder), str(folder)) + ["--seed", str(run.seed), "--save_model=False"]
        words += ["--do_train=True", "--do_eval=True", "--glue_dir", *self.a.glue_dir]
        command = [sys.executable, str(ROOT / "finetune_glue.py"), *words]
        return Job(command=command, log=folder / "log.txt", on_end=partial(self._ended, model, run, count))

    def _ended(self, model: Model, run: PlannedRun, count: int, end: JobEnd) -> None:
        result, self.done = self.result(model, run), self.done + 1
        what = f"{model.name}: {run.task.name} at {run.flags['learning_rate']}, seed {run.seed}"
        said = "failed" if result is None else f"{100 * result['headline']['value']:.1f}"
        if result is None:
            log = self.folder(model, run) / "log.txt"
            said = self.errors[model.digest, run] = f"failed: {end.error}; all of it in {log}"
        print(f"[{self.done}/{count}] {what}: {said} ({format_duration(end.seconds)})", flush=True)

    def points(self, model: Model, task: str) -> dict[str, dict[int, float | None]]:
        """Points of 100 by rate and seed, None where there is no result."""
        found: dict[str, dict[int, float | None]] = {}
        for run in self.plan.of(task):
            result = self.result(model, run)
            value = None if result is None else 100 * result["headline"]["value"]
            found.setdefault(run.flags["learning_rate"], {})[run.seed] = value
        return found

    def seconds(self, models: Sequence[Model]) -> float:
        results = (self.result(model, run) for model in models for run in self.plan.runs)
        return sum(result["seconds"]["total"] for result in results if result is not None)


def fine_tune(runs: Runs, models: Sequence[Model], stop: StopRequest) -> None:
    """Every rate with the first seed, then the other seeds at the best rate of each task. RunError where a score is missing."""
    plan, (first, *others) = runs.plan, runs.a.seeds
    runs.work([(model, run) for model in models for run in plan.runs if run.seed == first], stop)
    chosen = []
    for model in models:
        for task in plan.data_digests:
            rate = best_rate({rate: seeds[first] for rate, seeds in runs.points(model, task).items()})
            if rate is None:
                why = next(
                    error
                    for (digest, run), error in runs.errors.items()
                    if (digest, run.task.name) == (model.digest, task)
                )
                raise RunError(f"{model.name}: {task} failed at every rate: {why}")
            at_best = (run for run in plan.of(task) if run.flags["learning_rate"] == rate)
            chosen += [(model, run) for run in at_best if run.seed in others]
    runs.work(chosen, stop)
    for model, run in chosen:
        if why := runs.errors.get((model.digest, run)):
            raise RunError(f"{model.name}: {run.task.name}, seed {run.seed}, {why}")


# ---- what comes of it ----


def best_rate(scores: dict[str, float | None]) -> str | None:
    """Of equal ones the first; None where every rate failed."""
    finished = {rate: score for rate, score in scores.items() if score is not None}
    return max(finished, key=lambda rate: finished[rate], default=None)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def width(of: dict[str, Any]) -> float:
    return of["max"] - of["min"]


def score_task(points: dict[str, dict[int, float | None]], seeds: Sequence[int]) -> dict[str, Any]:
    """A task of a model from its points by rate and seed: what was chosen, its seeds, and what ordinary rates reach of it."""
    rates = {rate: values[seeds[0]] for rate, values in points.items()}
    best = best_rate(rates)
    assert best is not None
    values = {seed: points[best][seed] for seed in seeds}
    ordinary = [score for rate, score in rates.items() if score is not None and float(rate) <= ORDINARY]
    share = max(ordinary) / rates[best] if ordinary and (rates[best] or 0) > 0 else None  # type: ignore[operator]
    found: dict[str, Any] = {"rates": rates, "best_rate": best, "seeds": values, "ordinary_share": share}
    return {**found, **spread([score for score in values.values() if score is not None])}


def score_model(tasks: dict[str, dict[str, Any]], judged: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """The score: the mean over the judged tasks, of their medians; its `min` and `max` are of the mean seed by seed."""
    means = {seed: fmean(tasks[name]["seeds"][seed] for name in judged) for seed in seeds}
    score = {"median": fmean(tasks[name]["median"] for name in judged), "seeds": means}
    return {"score": {**score, "min": min(means.values()), "max": max(means.values())}, "tasks": tasks}


def above(ours: dict[str, Any], floor: dict[str, Any] | None) -> dict[str, Any]:
    """How far the median is above the floor's, and whether by more than the seeds of either differ."""
    if floor is None:
        return {"floor": None, "gain": None, "above_seeds": None}
    gain = ours["median"] - floor["median"]
    return {"floor": floor["median"], "gain": gain, "above_seeds": gain > max(width(ours), width(floor))}


def compare(found: dict[str, Any], floor: dict[str, Any] | None) -> dict[str, Any]:
    """A scored model, or a recipe's, with its floor beside the score and beside every task."""
    beside = {name: above(task, floor and floor["tasks"][name]) for name, task in found["tasks"].items()}
    tasks = {name: {**task, **beside[name]} for name, task in found["tasks"].items()}
    return {**found, "score": {**found["score"], **above(found["score"], floor and floor["score"])}, "tasks": tasks}


def over_checkpoints(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and range over checkpoints of what each has as its median."""
    tasks = {name: spread([one["tasks"][name]["median"] for one in members]) for name in members[0]["tasks"]}
    return {"score": spread([one["score"]["median"] for one in members]), "tasks": tasks}


def table(rows: dict[str, dict[str, Any]], judged: Sequence[str]) -> str:
    """In Markdown: a line for each task of each model, and one for its score."""
    rates = sorted(
        {rate for row in rows.values() for task in row["tasks"].values() for rate in task.get("rates", ())}, key=float
    )
    head = ["", "task", *rates, "best rate", "score (range)", "floor", "gain", "above the seeds", "at ordinary rates"]
    lines = [head, ["---"] * len(head)]

    def number(value: float | None, form: str = ".1f") -> str:
        return "" if value is None else f"{value:{form}}"

    def line(name: str, what: str, of: dict[str, Any], mark: str) -> list[str]:
        given = of.get("rates", {})
        cells = ["failed" if rate in given and given[rate] is None else number(given.get(rate)) for rate in rates]
        score = f"{mark}{of['median']:.1f}{mark} ({of['min']:.1f} to {of['max']:.1f})"
        holds = {None: "", True: "yes", False: "no"}[of.get("above_seeds")]
        share = of.get("ordinary_share")
        cells += [of.get("best_rate", ""), score, number(of.get("floor")), number(of.get("gain"), "+.1f"), holds]
        return [name, what, *cells, "" if share is None else f"{100 * share:.0f} %"]

    for name, row in rows.items():
        lines += [line(name, task, of, "") for task, of in row["tasks"].items()]
        lines.append(line(name, f"mean of {', '.join(judged)}", row["score"], "**"))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def report(a: argparse.Namespace, runs: Runs, floors: dict[Model, Model | None]) -> None:
    """Print the table; write it to downstream.md, and all figures to downstream.json."""

    def scored(model: Model) -> dict[str, Any]:
        tasks = {name: score_task(runs.points(model, name), a.seeds) for name in [*a.judged, *a.tasks]}
        return score_model(tasks, a.judged, a.seeds)

    random = {floor: scored(floor) for floor in floors.values() if floor is not None}
    of_floor = {model: random[floor] if floor else None for model, floor in floors.items()}
    found = {model: compare(scored(model), of_floor[model]) for model in floors}
    groups: dict[str, Any] = {}
    for name in dict.fromkeys(model.group for model in floors if model.group):
        members = [model for model in floors if model.group == name]
        groups[name] = compare(over_checkpoints([found[model] for model in members]), of_floor[members[0]])
        groups[name]["checkpoints"] = [model.name for model in members]
    rows = {model.name: row for model, row in found.items()}
    rows |= {f"{name}, {len(row['checkpoints'])} checkpoints": row for name, row in groups.items()}
    rows |= {floor.name: row for floor, row in random.items()}
    models = [*floors, *random]
    text, seeds = table(rows, a.judged), ", ".join(map(str, a.seeds))
    notes = [
        f"Points of 100 on dev. Rates with seed {a.seeds[0]}; a score is the median of seeds {seeds} at the best of them, with "
        "their range, which for the mean is taken seed by seed.",
        f"Ordinary rates: the best score up to {ORDINARY:g} as a share of the best of all. All runs together took "
        f"{format_duration(runs.seconds(models))} of one {'core' if runs.device == 'cpu' else 'GPU'}.",
    ]
    names = {model.digest: model.name for model in models}
    failed = [
        f"{names[digest]}: {run.task.name} at {run.flags['learning_rate']}, seed {run.seed}, {error}"
        for (digest, run), error in runs.errors.items()
    ]
    text = "\n".join([text, "", *notes, *failed])
    write_atomic(a.output_dir / "downstream.md", text + "\n")
    of = {
        model: {"sha256": model.digest, "group": model.group, "random_weights": floor and floor.digest}
        for model, floor in floors.items()
    }
    figures = {
        "checkpoints": {model.name: {**of[model], **row} for model, row in found.items()},
        "groups": groups,
        "random_weights": {floor.digest: row for floor, row in random.items()},
        "failed": failed,
        "device": runs.device,
        "seconds": runs.seconds(models),
    }
    publish(a, "downstream", text, figures)


@one_line_errors
def main(argv: list[str] | None) -> None:
    a = parse(argv)
    models = read_models(a.checkpoints)
    plan = make_protocol(a, models[0])
    slots = slots_here()
    device = "cuda" if isinstance(slots[0], str) else "cpu"
    make_output_dir(a)
    stop = StopRequest()
    with hold_folder(a.output_dir):
        claim(a, plan, models, device)
        floors: dict[Model, Model | None] = dict.fromkeys(models)
        if not a.no_floor:
            drawn = [draw_floor(model, a.output_dir, a.floor_seed) for model in models]
            one_each = {floor.digest: floor for floor in reversed(drawn)}  # with the name of the first
            floors = {model: one_each[floor.digest] for model, floor in zip(models, drawn, strict=True)}
        runs = Runs(a, plan, slots, device)
        stop.listen()
        try:
            different = {model.digest: model for model in (*models, *floors.values()) if model}
            fine_tune(runs, [*different.values()], stop)
        except StopAsked as asked:
            raise RunError(str(asked)) from None
        finally:
            stop.restore()
        report(a, runs, floors)


if __name__ == "__main__":
    sys.exit(main())
