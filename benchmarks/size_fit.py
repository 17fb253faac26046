#!/usr/bin/env python3
"""How large a model for which budget: runs of a recipe over sizes and budgets, and a fit of bits per byte to them.

    python benchmarks/size_fit.py --sizes 128x2 256x2 256x4 512x4 --budgets 2m 5m 10m 20m --held_out 320x4:7m 192x3:15m
    python benchmarks/size_fit.py --fit_only --write

A size is width x layers, with heads of 64 and feed-forward blocks in the recipe's proportion to the width. Every run is one
`accelerate launch train_mlm.py` with its whole schedule in its budget and an empty compile cache, one after the other;
without --data_dir and --text it trains on the docstrings of the installed packages. Each result is appended to results.jsonl
as it comes: --resume runs only what is missing, --fit_only nothing.

N are the parameters of the layers, D the tokens trained, bits per byte those of the run's own report. Three forms are fitted
to the logarithm of bits per byte by the Huber loss, from several starts, as in approach 3 of Hoffmann et al. 2022 (arXiv
2203.15556): E + A/N^alpha + B/D^beta, theirs (additive); that of Kaplan et al. 2020 (arXiv 2001.08361; joint); a quadratic
in log N and log D. Taken is the form that misses least where each run in turn is left out.

It predicts the --held_out runs, which have sizes and budgets of their own and take no part in anything fitted: once by the
tokens that they trained, once by size and budget alone, the tokens by the speeds of the other runs (`Speeds`). It exits with
1 where the second is more than 0.03 bits per byte off. All runs must be of one machine.

--write stores the fit for budget_trainer.plan, in the package (planning/size_fit.json), if no held-out run is off.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import ablations  # noqa: E402
from benchmarks.baselines.tune import hardware_line  # noqa: E402
from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, parse_size, publish, train_recipe  # noqa: E402
from benchmarks.texts import prepare_blocks, prepare_texts  # noqa: E402
from budget_trainer.budget.clock import format_duration, parse_duration  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402
from budget_trainer.core.io import fresh_folder, write_json_atomic  # noqa: E402
from budget_trainer.core.package_data import profile_path, recipe_path  # noqa: E402
from budget_trainer.planning import FORMS, MILLION, SIZE_FIT, SIZE_FIT_FORMAT  # noqa: E402
from budget_trainer.reporting.report import describe_data  # noqa: E402

FEWEST_RUNS, FEWEST_HELD_OUT = 12, 2
MOST_BITS = 0.03  # by which a held-out run may be off
HUBER = 1e-3  # of the logarithm, from where on a residual counts linearly; that of Hoffmann et al.
HEAD_SIZE = 64
RESULTS = "results.jsonl"
ALIKE = ("recipe", "text", "model_type", "hardware")  # of all runs
TEXTS = ("size", "execution", *ALIKE)
NUMBERS = ("budget_seconds", "body_parameters", "parameters", "steps", "tokens", "tokens_per_second")
NUMBERS += ("training_seconds", "flops_per_token", "passes", "bits_per_byte")
# Of each coefficient, in the order of its form in FORMS: the least, the most, and where the search starts.
_ANY = (-math.inf, math.inf)
SEARCH: dict[str, dict[str, tuple[float, float, tuple[float, ...]]]] = {
    "additive": {
        "E": (0.0, math.inf, (0.3, 1.0)),
        "A": (0.0, math.inf, (0.1, 0.5)),
        "alpha": (0.0, 2.0, (0.2, 0.8)),
        "B": (0.0, math.inf, (0.3, 1.0)),
        "beta": (0.0, 2.0, (0.2, 0.8)),
    },
    "joint": {
        "A": (0.0, math.inf, (0.5, 1.5)),
        "alpha": (0.0, 2.0, (0.05, 0.3)),
        "B": (0.0, math.inf, (1.0, 2.0)),
        "beta": (0.05, 2.0, (0.1, 0.5)),
    },
    "quadratic": {"c": (*_ANY, (0.5,)), **dict.fromkeys(("c_n", "c_d", "c_nn", "c_nd", "c_dd"), (*_ANY, (0.0,)))},
}

Run = dict[str, Any]  # a line of results.jsonl: TEXTS, NUMBERS, seed and git_commit
Point = tuple[str, float]  # size and budget in seconds


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("--recipe", default="cpu_10m", help="recipe of train_mlm.py, a file or a name (cpu_10m)")
    add("--sizes", nargs="+", default="128x2 256x2 256x4 512x4".split(), help="width x layers, as 256x4")
    add("--budgets", nargs="+", default="2m 5m 10m 20m".split(), help="wall-clock budgets of the runs")
    add("--held_out", nargs="+", default=["320x4:7m", "192x3:15m"], metavar="SIZE:BUDGET", help="runs to predict")
    add("--text", help="training text in a form that data_prep reads (the docstrings of the installed packages)")
    add("--eval_text", help="held-out text in such a form (a part of --text)")
    add("--tokenizer", help="folder, tokenizer.json or vocab.txt (one is trained)")
    add("--packing", default="packed", help="packing of the data folder that is made (packed)")
    add("--data_dir", help="a data folder that is there, instead of --text; the docstrings of another run's, say")
    add("--config_file", default="cpu", help="launch profile: a name of accelerate_configs/, or a file (cpu)")
    add("--seed", type=int, default=0, help="of every run (0)")
    add("--output_dir", default="out/size_fit", help="folder of the runs and results (out/size_fit)")
    add("--resume", action="store_true", help="keep the results in --output_dir and run only what is missing")
    add("--fit_only", action="store_true", help="train nothing: fit all results in --output_dir")
    add("--write", action="store_true", help="store the fit for budget_trainer.plan")
    a = parser.parse_args(argv)
    sizes = list(dict.fromkeys(_size(text, "sizes") for text in a.sizes))
    seconds = list(dict.fromkeys(parse_duration(text, "budgets") for text in a.budgets))
    a.points = list(itertools.product(sizes, seconds))
    a.held = list(dict.fromkeys(map(_point, a.held_out)))
    if len(a.held) < FEWEST_HELD_OUT:
        raise InputError(f"held_out: {len(a.held)} run is too few to check a fit; give {FEWEST_HELD_OUT} or more")
    log = Path(a.output_dir) / RESULTS
    if a.fit_only:
        if not log.is_file():
            raise InputError(f"output_dir: {log} is not there; give the folder of a run without --fit_only")
        return a
    _check_apart(a.held, a.points)
    _check_enough(a.points, "sizes, budgets")
    if log.exists() and not a.resume:
        raise InputError(f"output_dir: {log} holds results; add --resume to go on, or give another folder")
    for name in ("text", "eval_text", "tokenizer", "data_dir"):
        if getattr(a, name) is not None:
            if not Path(getattr(a, name)).exists():
                raise InputError(f"{name}: {getattr(a, name)} does not exist; give --{name}")
            setattr(a, name, str(Path(getattr(a, name)).resolve()))
    if a.data_dir and (a.text or a.eval_text or a.tokenizer):
        raise InputError("data_dir: it has texts and tokenizer in it; leave --text, --eval_text and --tokenizer out")
    if a.eval_text and not a.text:
        raise InputError("eval_text: it belongs to a training text; give --text too")
    a.config_file = str(profile_path(a.config_file, "config_file").resolve())
    a.recipe = Path(recipe_path(a.recipe, "recipe"))
    a.proportion = _proportion(a.recipe)
    a.text_name = _text_name(a)
    return a


def _size(text: str, field: str) -> str:
    """It, without leading zeros. InputError where its heads are not whole."""
    width, layers = parse_size(text, field)
    if width % HEAD_SIZE:
        near = HEAD_SIZE * max(1, round(width / HEAD_SIZE))
        raise InputError(f"{field}: the width of {text} is no multiple of {HEAD_SIZE}, a head; give {near}x{layers}")
    return f"{width}x{layers}"


def _point(text: str) -> Point:
    """`320x4:7m` as size and seconds."""
    size, colon, budget = text.partition(":")
    if not colon:
        raise InputError(f"held_out: {text!r} is not a size and a budget; write it as 320x4:7m")
    return _size(size, "held_out"), parse_duration(budget, "held_out")


def _told(point: Point) -> str:
    return f"{point[0]}:{format_duration(point[1])}"


def _point_of(run: Run) -> Point:
    return run["size"], run["budget_seconds"]


def _check_apart(held: Iterable[Point], points: Collection[Point]) -> None:
    """Refuse a held-out run whose size or budget is that of a run in the fit."""
    for point in held:
        for what, place in (("size", 0), ("budget", 1)):
            if point[place] in {other[place] for other in points}:
                raise InputError(f"held_out: the {what} of {_told(point)} is one of the fit's; give another {what}")


def _check_enough(points: Collection[Point], field: str) -> None:
    sizes, fix = len({size for size, _ in points}), f"give {FEWEST_RUNS} or more, of 2 sizes or more"
    if len(points) < FEWEST_RUNS or sizes < 2:
        raise InputError(f"{field}: {len(points)} runs of {sizes} sizes are too few for a fit; {fix}")


def _proportion(recipe: Path) -> float:
    """Of the feed-forward blocks' width to the model's."""
    from budget_trainer.config.parser import read_recipe

    given = read_recipe(recipe)
    try:
        found = float(given["intermediate_size"]) / float(given["hidden_size"])
        if not 0 < found < math.inf:
            raise ValueError
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise InputError(
            f"recipe: {recipe} has no hidden_size and intermediate_size, in whose proportion sizes are; add both"
        ) from None
    return found


def _text_name(a: argparse.Namespace) -> str:
    if a.data_dir is None:
        return "docstrings" if a.text is None else Path(a.text).name
    try:
        found = describe_data(Path(a.data_dir))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(repr(error).split())
        fix = "give a folder that data_prep.blocks has made"
        raise InputError(f"data_dir: {a.data_dir} is no data folder ({said}); {fix}") from None
    return ", ".join(source["name"] for source in found["sources"]) or Path(a.data_dir).name


# ---- the runs ----


def jobs(a: argparse.Namespace) -> list[dict[str, Any]]:
    """What to run: by budget, the short ones first, then what is held out."""
    asked = {"recipe": a.recipe.name, "text": a.text_name, "seed": a.seed}
    points = sorted(a.points, key=lambda point: point[1]) + a.held
    return [{"size": size, "budget_seconds": seconds, **asked} for size, seconds in points]


def measure(a: argparse.Namespace) -> list[Run]:
    """Run what is missing; all results in the folder."""
    log = a.output_dir / RESULTS
    results, wanted = read_results(log) if log.exists() else [], jobs(a)
    _check_alike([*results, *wanted], ("recipe", "text"))
    missing = [job for job in wanted if not any(all(run.get(key) == job[key] for key in job) for run in results)]
    data = prepare(a)
    for number, job in enumerate(missing, start=1):
        label = _told(_point_of(job))
        print(f"run {number} of {len(missing)}: {label}", flush=True)
        result = check_run(run_job(a, job, data), f"run: {label}", "see its log, and lower the recipe's rates")
        results.append(result)
        _check_alike(results, ALIKE)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        said = f"{result['bits_per_byte']:.3f} bits per byte, {result['tokens_per_second']:,.0f} tokens/s"
        print(f"    {said}", flush=True)
    return results


def prepare(a: argparse.Namespace) -> str:
    """The data folder: the one that was given, or one made here of the texts."""
    if a.data_dir is not None:
        return str(a.data_dir)
    train, held_out = prepare_texts(a.text, a.eval_text, a.output_dir / "text")
    folder: Path = a.output_dir / f"data-{a.packing}"
    prepare_blocks(train, held_out, a.tokenizer, folder, a.packing)
    return str(folder)


def run_job(a: argparse.Namespace, job: dict[str, Any], data: str) -> Run:
    """Train; the result as a line of results.jsonl."""
    size, seconds = _point_of(job)
    width, layers = parse_size(size, "sizes")
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // HEAD_SIZE}
    shape["intermediate_size"] = round(a.proportion * width)
    folder = fresh_folder(a.output_dir / f"{size}-{format_duration(seconds)}-seed{job['seed']}")
    recipe = ablations.write_variant(a.recipe, shape, folder / "recipe.yaml")
    report = train_recipe(a.config_file, recipe, data, folder, seconds, job["seed"])
    return {**job, **figures(report, body_of(folder / "run" / "final"))}


def figures(report: dict[str, Any], body: int) -> dict[str, Any]:
    """What of a run's report is fitted, or said of the fit."""
    training = report["shares"]["train"] + report["shares"]["data_wait"]
    flops_per_second, with_compiling = 1e12 * (report["model_tflops_per_second"] or 0.0), report["tokens_per_second"]
    return {
        "body_parameters": body,
        **{name: report[name] for name in ("parameters", "model_type", "steps", "tokens")},
        "execution": "compiled" if report["recipe"]["torch_compile"] else "eager",
        "training_seconds": training,  # without compiling, and so are tokens/s
        "tokens_per_second": report["tokens"] / (training or math.nan),
        "flops_per_token": flops_per_second / (with_compiling or math.nan),
        "passes": report["passes_over_corpus"],
        "bits_per_byte": report["evaluation"]["bits_per_byte"],
        "hardware": hardware_line(report["hardware"]),
        "git_commit": report["git_commit"],
    }


def body_of(model: Path) -> int:
    """Parameters of the layers of a saved model, as the planner counts them; its weights are not read."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    from budget_trainer.model.flops import body_parameters

    with torch.device("meta"):
        return body_parameters(AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(model)).base_model)


def read_results(path: Path) -> list[Run]:
    """All lines. InputError for the first that is none of this benchmark's."""
    runs, fix = [], "delete the line, then --resume runs it again"
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        where = f"results: line {number} of {path}"
        try:
            run = json.loads(line)
        except ValueError:
            raise InputError(f"{where} is not JSON; {fix}") from None
        if not isinstance(run, dict):
            raise InputError(f"{where} is no object; {fix}")
        runs.append(check_run(run, where, fix))
    return runs


def check_run(run: Run, where: str, fix: str) -> Run:
    """It, where all of its texts and numbers are there, the numbers finite and above zero. InputError else."""
    for name in TEXTS:
        if not isinstance(run.get(name), str):
            raise InputError(f"{where}: {name} is {run.get(name)!r} and no text; {fix}")
    for name in NUMBERS:
        value = run.get(name)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{where}: {name} is {value!r} and no number above zero; {fix}")
    return run


def _check_alike(runs: Iterable[dict[str, Any]], names: Iterable[str]) -> None:
    """Refuse results of several recipes, texts, kinds of model or machines."""
    runs = list(runs)
    for name in names:
        found = list(dict.fromkeys(run[name] for run in runs))
        if len(found) > 1:
            raise InputError(
                f"results: {name} is {found[0]} in one run, {found[1]} in another; give each its own folder"
            )


def split(results: Sequence[Run], held: Sequence[Point]) -> tuple[list[Run], list[Run]]:
    """The runs of the fit, and those that are held out. InputError where they are too few, or not apart, or not alike."""
    _check_alike(results, ALIKE)
    apart = [run for run in results if _point_of(run) in held]
    if missing := [point for point in held if point not in map(_point_of, apart)]:
        raise InputError(f"held_out: {_told(missing[0])} is not among the results; give --held_out two that are")
    grid = [run for run in results if _point_of(run) not in held]
    points = set(map(_point_of, grid))
    _check_apart(held, points)
    _check_enough(points, "results")
    return grid, apart


# ---- the fit ----


@dataclass(frozen=True)
class Fitted:
    """A form, its coefficients, and what each run is above the prediction of a fit without its size and budget."""

    form: str
    coefficients: NDArray[np.float64]
    left_out: NDArray[np.float64]  # bits per byte

    def residuals(self, runs: Sequence[Run]) -> NDArray[np.float64]:
        """Measured less predicted, bits per byte."""
        return _bits(runs) - _predict(self.form, self.coefficients, runs)

    def named(self) -> dict[str, float]:
        return dict(zip(SEARCH[self.form], map(float, self.coefficients), strict=True))


def _column(runs: Sequence[Run], name: str) -> NDArray[np.float64]:
    return np.array([run[name] for run in runs], dtype=np.float64)


def _bits(runs: Sequence[Run]) -> NDArray[np.float64]:
    return _column(runs, "bits_per_byte")


def _predict(form: str, coefficients: NDArray[np.float64], runs: Sequence[Run]) -> NDArray[np.float64]:
    size, tokens = _column(runs, "body_parameters") / MILLION, _column(runs, "tokens") / MILLION
    found: NDArray[np.float64] = FORMS[form](size, tokens, *coefficients)
    return found


def search(form: str, runs: Sequence[Run], starts: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    """The coefficients of least Huber loss of the logarithms' residuals, from the best of the starts."""
    from scipy.optimize import least_squares

    low, high, _ = zip(*SEARCH[form].values(), strict=True)
    measured = np.log(_bits(runs))

    def residuals(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(_predict(form, coefficients, runs)) - measured

    with np.errstate(all="ignore"):  # a step too far is no number, and the search takes a shorter one
        options: dict[str, Any] = {"bounds": (low, high), "x_scale": "jac"}
        near = [
            least_squares(residuals, start, **options).x for start in starts
        ]  # far off, Huber's loss leads nowhere
        found = [least_squares(residuals, place, loss="huber", f_scale=HUBER, **options) for place in near]
    best: NDArray[np.float64] = min(found, key=lambda one: one.cost).x
    return best


def fit(form: str, runs: Sequence[Run]) -> Fitted:
    """Fit all runs, then without each size and budget in turn, from where the first has ended."""
    whole = search(form, runs, itertools.product(*(starts for _, _, starts in SEARCH[form].values())))
    left = np.zeros(len(runs))
    for point in dict.fromkeys(map(_point_of, runs)):
        without = search(form, [run for run in runs if _point_of(run) != point], [whole])
        here = [number for number, run in enumerate(runs) if _point_of(run) == point]
        of_point = [runs[number] for number in here]
        left[here] = _bits(of_point) - _predict(form, without, of_point)
    return Fitted(form, whole, left)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


class Speeds:
    """The tokens that a size sees in a budget, by runs of one machine.

    Tokens/s are of a line through the logarithms of the runs' tokens/s and FLOPs per token: one of the eager and one of the
    compiled runs, or one of all where either are of one size only; a budget is as most runs at the nearest one are. The
    seconds outside of training (set-up, compiling, validations, saves) are the median of a budget's runs; from budget to
    budget they are a line, beyond them constant.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        kinds, budgets = _by(runs, "execution"), _by(runs, "budget_seconds")
        apart = all(len(_by(some, "size")) > 1 for some in kinds.values())
        self.lines = {kind: self._line(some if apart else runs) for kind, some in kinds.items()}
        self._kinds = {budget: statistics.mode(run["execution"] for run in some) for budget, some in budgets.items()}
        trained = {budget: statistics.median(_column(some, "training_seconds")) for budget, some in budgets.items()}
        self._outside = {budget: budget - float(seconds) for budget, seconds in trained.items()}

    @staticmethod
    def _line(runs: Sequence[Run]) -> dict[str, float]:
        flops, speeds = (np.log(_column(runs, name)) for name in ("flops_per_token", "tokens_per_second"))
        slope, level = np.polyfit(flops, speeds, 1)
        return {"slope": float(slope), "level": float(level)}

    def foresee(self, run: Run, seconds: float | None = None) -> Run:
        """It with the tokens that its size would see in `seconds` (its budget), of a second of training at least."""
        seconds = seconds or run["budget_seconds"]
        line = self.lines[self._kinds[min(self._kinds, key=lambda budget: abs(budget - seconds))]]
        outside = float(np.interp(seconds, [*self._outside], [*self._outside.values()]))
        speed = math.exp(line["level"]) * run["flops_per_token"] ** line["slope"]
        return {**run, "tokens": max(1.0, seconds - outside) * speed}


def _by(runs: Iterable[Run], name: str) -> dict[Any, list[Run]]:
    """Runs by what they have of that name, in its order."""
    runs = list(runs)
    return {value: [run for run in runs if run[name] == value] for value in sorted({run[name] for run in runs})}


def content(best: Fitted, speeds: Speeds, grid: Sequence[Run], held: Sequence[Run]) -> dict[str, Any]:
    """What `SizeFit.read` reads, and where it comes from."""
    values = {name: _column(grid, name) for name in ("body_parameters", "tokens")}
    values["product"] = values["body_parameters"] * values["tokens"]
    pairs = [(run, best.residuals([run, speeds.foresee(run)]).tolist()) for run in held]
    return {
        "format": SIZE_FIT_FORMAT,
        "made_at": time.strftime("%Y-%m-%d"),
        "form": best.form,
        "coefficients": best.named(),  # N and D in millions
        "range": {name: [float(column.min()), float(column.max())] for name, column in values.items()},
        "runs": len(grid),
        "slopes": {name: line["slope"] for name, line in speeds.lines.items()},
        "budget_seconds": [*_by(grid, "budget_seconds")],
        "residual_rms": _rms(best.residuals(grid)),
        "leave_one_out_rms": _rms(best.left_out),
        "held_out": [
            {"run": _told(_point_of(run)), "off_by_tokens": by_tokens, "off": off} for run, (by_tokens, off) in pairs
        ],
        **{name: grid[0][name] for name in ALIKE},
        "git_commits": list(dict.fromkeys(run.get("git_commit") for run in [*grid, *held])),
    }


def by_budget(best: Fitted, speeds: Speeds, runs: Sequence[Run]) -> dict[str, Any]:
    """Of each budget that was run the bits per byte of each size, by the tokens that this machine gives it."""
    of_size = {run["size"]: run for run in sorted(runs, key=lambda run: float(run["body_parameters"]))}
    budgets = []
    for seconds in _by(runs, "budget_seconds"):
        foreseen = [speeds.foresee(run, seconds) for run in of_size.values()]
        bits = dict(zip(of_size, _predict(best.form, best.coefficients, foreseen).tolist(), strict=True))
        best_size = min(bits, key=lambda size: bits[size])
        budgets.append({"budget_seconds": seconds, "bits_per_byte": bits, "best": best_size})
    return {"lines": speeds.lines, "budgets": budgets}


# ---- what is printed ----


def runs_table(best: Fitted, grid: Sequence[Run]) -> str:
    head = f"{'size':>8} {'budget':>6} {'N':>9} {'D':>9} {'tokens/s':>9} {'passes':>6}"
    lines = [f"{head} {'measured':>8} {'fitted':>7} {'residual':>8} {'left out':>8}"]
    residuals = best.residuals(grid)
    for run, residual, left in zip(grid, residuals, best.left_out, strict=True):
        size, seconds = _point_of(run)
        text = f"{size:>8} {format_duration(seconds):>6} {run['body_parameters'] / MILLION:7.2f} M"
        text += f" {run['tokens'] / MILLION:7.2f} M {run['tokens_per_second']:9,.0f} {run['passes']:6.2f}"
        bits = run["bits_per_byte"]
        lines.append(f"{text} {bits:8.3f} {bits - residual:7.3f} {residual:+8.3f} {left:+8.3f}")
    return "\n".join(lines)


def forms_table(fits: Sequence[Fitted], best: Fitted, grid: Sequence[Run]) -> str:
    lines = [f"{'form':12} {'residuals':>9} {'left out':>8}  coefficients (root mean squares in bits per byte)"]
    for one in fits:
        named = ", ".join(f"{name} {value:.4g}" for name, value in one.named().items())
        mark = "  <- taken" * (one is best)
        lines.append(f"{one.form:12} {_rms(one.residuals(grid)):9.4f} {_rms(one.left_out):8.4f}  {named}{mark}")
    return "\n".join(lines)


def held_table(best: Fitted, speeds: Speeds, held: Sequence[Run]) -> str:
    """Predicted by the tokens that they trained, and by size and budget, which must be within MOST_BITS."""
    head = f"{'held out':>10} {'measured':>8} {'by its tokens':>26} {'by size and budget':>26}"
    lines = [f"{head}  within {MOST_BITS:g}"]
    for run in held:
        bits, seen = run["bits_per_byte"], [run, speeds.foresee(run)]
        off, text = best.residuals(seen), f"{_told(_point_of(run)):>10} {bits:8.3f}"
        for one, miss in zip(seen, off, strict=True):
            text += f" {one['tokens'] / MILLION:8.2f} M {bits - miss:7.3f} {miss:+7.3f}"
        lines.append(f"{text}  {'yes' if abs(off[1]) <= MOST_BITS else 'NO'}")
    return "\n".join(lines)


def budgets_table(found: dict[str, Any]) -> str:
    rows = found["budgets"]
    lines = [f"{'budget':>8} " + " ".join(f"{size:>8}" for size in rows[0]["bits_per_byte"]) + "  best size"]
    for row in rows:
        bits = " ".join(f"{value:8.3f}" for value in row["bits_per_byte"].values())
        lines.append(f"{format_duration(row['budget_seconds']):>8} {bits}  {row['best']}")
    for name, line in found["lines"].items():
        lines.append(f"tokens/s here, {name}: {math.exp(line['level']):.3g} x FLOPs per token ^ {line['slope']:.3f}")
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    results = read_results(a.output_dir / RESULTS) if a.fit_only else measure(a)
    grid, held = split(results, a.held)
    fits = [fit(form, grid) for form in FORMS]
    best = min(fits, key=lambda one: _rms(one.left_out))
    speeds = Speeds(grid)
    stored, budgets = content(best, speeds, grid, held), by_budget(best, speeds, results)
    parts = [runs_table(best, grid), forms_table(fits, best, grid)]
    parts += [held_table(best, speeds, held), budgets_table(budgets)]
    told: dict[str, Any] = {"fit": stored, "by_budget": budgets, "runs": results}
    told["forms"] = {one.form: {**one.named(), "leave_one_out_rms": _rms(one.left_out)} for one in fits}
    publish(a, "size_fit", "\n\n".join(parts), told, leave_out=("points", "held"), file="fit.json")
    if any(abs(run["off"]) > MOST_BITS for run in stored["held_out"]):
        raise SystemExit(1)
    if a.write:
        write_json_atomic(SIZE_FIT, stored)
        print(f"the planner's fit: {SIZE_FIT}")


if __name__ == "__main__":
    sys.exit(main())
