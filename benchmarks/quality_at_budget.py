#!/usr/bin/env python3
"""Our recipes against what others would write with the same libraries: the same machine, text, tokenizer and wall-clock budget.

    python benchmarks/quality_at_budget.py --budget 5m
    python benchmarks/quality_at_budget.py --text train.txt.xz --eval_text held_out.txt.xz --tokenizer DIR \
        --recipes recipes/cpu_10m.yaml --budget 300s --output_dir out/quality

Without --text it trains on the docstrings of the installed packages, without --eval_text on all but a twentieth of the
documents, without --tokenizer with one that it trains on the text: nothing is downloaded. The baselines are those of
benchmarks/baselines/, each with the flags that tuning found for the nearest budget (--tuned), or finds here (--tune TRIALS,
outside of the budget), else with its defaults; the table says which. One process runs at a time, seed by seed, and one script
of stock classes scores every checkpoint. The budget of ours holds set-up, compilation and the save, with an empty compile cache
for every run; that of a baseline holds its training only, compilation included. All takes roughly (recipes + baselines) x seeds
x (budget + a minute). A baseline that fails is a line of the table and makes the exit code 1; the others go on.

Each result is appended to results.jsonl as it comes: --resume skips what is there, but for what failed. The folder belongs to
one comparison, by its file comparison.json: another budget, text, tokenizer, recipe, flag of a baseline or commit is refused.

With --ablate "name: flag=value flag2=value2" (repeatable) or --ablations recipes/ablations/cpu_10m.yaml, variants of the
one recipe run beside it, so that a machine that drifts does so for all of them; a second table has each variant's difference to
the recipe with the same seed. --baselines without a name leaves them out. --downstream DIR adds a score on GLUE, by
benchmarks/downstream.py.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import ablations  # noqa: E402
from benchmarks.baselines import runs, tune  # noqa: E402
from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish, run_child, train_recipe  # noqa: E402
from benchmarks.comparison import FIGURES, claim, claim_of_all, claim_of_runs, read_results  # noqa: E402
from benchmarks.texts import check_enough, digest, prepare_blocks, prepare_texts  # noqa: E402
from budget_trainer.budget.clock import format_duration, parse_duration  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402
from budget_trainer.core.io import fresh_folder  # noqa: E402
from budget_trainer.core.package_data import profile_path  # noqa: E402
from budget_trainer.reporting.report import environment  # noqa: E402

TUNED = "tuned.yaml"  # in output_dir
LARGEST_BATCH = 32  # with which a baseline is searched


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("--text", help="training text in a form that data_prep reads (the docstrings of the installed packages)")
    add("--eval_text", help="held-out text in such a form (a part of --text)")
    add("--tokenizer", help="folder, tokenizer.json or vocab.txt that all runs share (one is trained)")
    add("--recipes", nargs="+", default=["recipes/cpu_10m.yaml"], help="recipes of train_mlm.py")
    add("--ablate", action="append", default=[], metavar="NAME: FLAG=VALUE ...", help="a variant of the one recipe")
    add("--ablations", help="YAML file of variants: name to changed flags")
    add("--baselines", nargs="*", default=runs.NAMES, metavar="NAME", help=f"some of {', '.join(runs.NAMES)} (all)")
    add(
        "--tuned",
        help="file of benchmarks/baselines/tune.py with their best flags (OUTPUT_DIR/tuned.yaml, the repository's)",
    )
    add("--tune", type=int, metavar="TRIALS", help="tune each of them first, here, with so many trials of the budget")
    add("--seeds", type=int, default=3, help="runs per recipe and per baseline (3)")
    add("--first_seed", type=int, default=0, help="their seeds count from here, to share the runs among machines (0)")
    add("--budget", default="300s", help="wall-clock budget of every run (300s)")
    add(
        "--config_file",
        default="cpu",
        help="launch profile of our runs: a name of accelerate_configs/, or a file (cpu)",
    )
    add("--packing", default="packed", help="packing of our data folder (packed)")
    add("--data_dir", help="data folder of our runs; that it was made from --text is believed (one is made here)")
    add("--max_blocks", type=int, default=2000, help="blocks to score each checkpoint on (2000)")
    add("--downstream", metavar="DIR[,DIR]", help="GLUE data: each run's model is fine-tuned too, which takes hours")
    add("--output_dir", default="out/quality", help="folder of all runs and results (out/quality)")
    add("--resume", action="store_true", help="keep the results in --output_dir and run only what is missing")
    a = parser.parse_args(argv)
    a.seconds = parse_duration(a.budget, "budget")
    a.config_file = str(profile_path(a.config_file, "config_file").resolve())
    for name in ("text", "eval_text", "tokenizer", "tuned", "data_dir"):
        if getattr(a, name) is not None:
            if not Path(getattr(a, name)).exists():
                raise InputError(f"{name}: {getattr(a, name)} does not exist; give --{name}")
            setattr(a, name, str(Path(getattr(a, name)).resolve()))
    if a.data_dir and not (Path(a.data_dir) / "manifest.json").is_file():
        raise InputError(
            f"data_dir: {a.data_dir} holds no manifest.json; give a folder that data_prep.blocks has made"
        )
    if a.data_dir and not (a.text and a.eval_text):
        raise InputError("data_dir: what was held out of it is not known here; give its --text and an --eval_text too")
    if a.data_dir and a.tokenizer:
        raise InputError("tokenizer: the folder of --data_dir has its own; leave --tokenizer out")
    if a.eval_text and not a.text:
        raise InputError("eval_text: it belongs to a training text; give --text too")
    if a.seeds < 1 or a.max_blocks < 1:
        raise InputError(f"seeds {a.seeds}, max_blocks {a.max_blocks}: both must be 1 or more; correct them")
    for recipe in a.recipes:
        if not Path(recipe).is_file():
            raise InputError(f"recipes: {recipe} does not exist; give files of recipes/")
    for name in a.baselines:
        runs.Baseline.named(name)
    if a.tune is not None and a.tuned is not None:
        raise InputError("tuned: with --tune the flags are found here; leave one of the two out")
    tune.check_trials(a.tune)
    folders = [Path(folder).resolve() for folder in a.downstream.split(",")] if a.downstream else []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"downstream: {folder} is not a folder; give those of benchmarks/downstream.py")
    a.downstream = ",".join(map(str, folders))
    a.variants = ablations.gather(a.ablations, a.ablate)
    ablations.check(a.variants, a.recipes)
    names = [_file_name(name) for name in (*(Path(recipe).stem for recipe in a.recipes), *a.variants, *a.baselines)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"recipes, ablate, baselines: two runs are called {twice[0]}; rename one or leave it out")
    a.output_dir = Path(a.output_dir).resolve()
    if (a.output_dir / "results.jsonl").exists() and not a.resume:
        raise InputError(f"output_dir: {a.output_dir} holds results; add --resume to go on, or give another folder")
    return a


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def best_flags(a: argparse.Namespace, hardware: str) -> dict[str, runs.Best]:
    """The flags of each baseline: those that tuning has found, or finds now. InputError: a file of another format, or what
    was tuned in this folder lacks one."""
    here = a.output_dir / TUNED
    file = Path(a.tuned) if a.tuned else here if a.tune is not None or here.exists() else runs.TUNED
    if a.tune is not None:
        asked = argparse.Namespace(**{**vars(a), "trials": a.tune})
        for name in a.baselines:
            entry = tune.tune(asked, name, a.output_dir / f"tune-{name}-{format_duration(a.seconds)}")
            runs.record(file, name, a.seconds, entry)
    best = {name: runs.best_of(name, a.seconds, file, hardware) for name in a.baselines}
    if file == here and (missing := [name for name in best if best[name].told == runs.NOT_TUNED]):
        raise InputError(f"tuned: {file} has no {missing[0]}; give --tune TRIALS, or leave it out of --baselines")
    return best


def plan(a: argparse.Namespace, best: dict[str, runs.Best]) -> list[dict[str, Any]]:
    """The runs, seed by seed, so that a machine that drifts does so for all."""
    base = [{"kind": "ours", "name": Path(recipe).stem, "recipe": str(Path(recipe).resolve())} for recipe in a.recipes]
    base += [{**base[0], "kind": "ablation", "name": name, "changes": a.variants[name]} for name in a.variants]
    base += [{"kind": "baseline", "name": name, "flags": best[name].flags} for name in a.baselines]
    seeds = range(a.first_seed, a.first_seed + a.seeds)
    return [{**job, "seed": seed, "budget_seconds": a.seconds} for seed in seeds for job in base]


def prepare(a: argparse.Namespace) -> str:
    """The texts, then our data folder, made once outside of the budget, as the baselines' tokenisation is.

    `a` has then the texts, one document a line, and as tokenizer a folder. InputError: texts that are too small.
    """
    train, held_out = prepare_texts(a.text, a.eval_text, a.output_dir / "text")
    a.text, a.eval_text = str(train), str(held_out)
    name = f"data-{a.packing}" + (f"-{digest(a.tokenizer)[:8]}" if a.tokenizer else "")
    folder = Path(a.data_dir) if a.data_dir else a.output_dir / name
    prepare_blocks(train, held_out, a.tokenizer, folder, a.packing)
    a.tokenizer = str(folder / "tokenizer")
    check_enough(train, held_out, a.tokenizer, LARGEST_BATCH if a.baselines else 1)
    return str(folder)


def run_ours(a: argparse.Namespace, job: dict[str, Any], folder: Path, data: str) -> dict[str, Any]:
    recipe = job["recipe"]
    if "changes" in job:
        recipe = ablations.write_variant(Path(recipe), job["changes"], folder / "recipe.yaml")
    report = train_recipe(a.config_file, recipe, data, folder, a.seconds, job["seed"])
    figures = {key: report[key] for key in ("used_seconds", "steps", "tokens_per_second", "shares")}
    return {**figures, **runs.score(folder / "run" / "final", folder, a.eval_text, a.max_blocks)}


def run_baseline(a: argparse.Namespace, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    baseline = runs.Baseline.named(job["name"])
    words = ["--text", a.text, "--tokenizer", a.tokenizer, "--total_training_time", f"{a.seconds:g}s"]
    words += ["--seed", str(job["seed"]), *(f"--{name}={value}" for name, value in job["flags"].items())]
    return baseline.run(words, folder, a.eval_text, a.max_blocks)


def folder_of(a: argparse.Namespace, job: dict[str, Any]) -> Path:
    return a.output_dir / f"{_file_name(job['name'])}-seed{job['seed']}"


def run_job(a: argparse.Namespace, job: dict[str, Any], data: str) -> dict[str, Any]:
    """Train, score; the result as one flat dict. Of a baseline that fails it has `failed`, the reason."""
    folder = fresh_folder(folder_of(a, job))  # what a killed benchmark left there has no result
    if job["kind"] != "baseline":
        return {**job, **run_ours(a, job, folder, data)}
    try:
        return {**job, **run_baseline(a, job, folder)}
    except InputError as error:
        return {**job, "failed": str(error)}


def score_downstream(a: argparse.Namespace, jobs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Give the rows of `jobs` `downstream`: median, min and max over the seeds of the score of benchmarks/downstream.py."""
    folders: dict[str, list[str]] = {}
    for job in jobs:
        final = folder_of(a, job) / ("" if job["kind"] == "baseline" else "run/final")
        folders.setdefault(_file_name(job["name"]), []).append(str(final))
    print(f"fine-tuning {len(jobs)} models", flush=True)
    command = [sys.executable, str(ROOT / "benchmarks" / "downstream.py"), "--glue_dir", a.downstream, "--no_floor"]
    command += ["--output_dir", str(a.output_dir / "downstream")]
    command += [f"{name}={','.join(found)}" for name, found in folders.items()]
    run_child(command, a.output_dir / "downstream.log")
    groups = json.loads((a.output_dir / "downstream" / "downstream.json").read_text())["groups"]
    for row in (row for row in rows if _file_name(row["name"]) in folders):
        score = groups[_file_name(row["name"])]["score"]
        row["downstream"] = {key: score[key] for key in ("median", "min", "max")}


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per name: runs, median, mean, lowest, highest and spread (highest - lowest) of FIGURES; how far the medians are
    from those of the first recipe; variants against the recipe (`ablations.add_deltas`). `failed` has the reasons of runs that
    failed; without another run a row has nothing else."""
    rows = []
    done = [result for result in results if "failed" not in result]
    for name in dict.fromkeys(result["name"] for result in results):
        of_name = [result for result in done if result["name"] == name]
        failed = [result for result in results if result["name"] == name and "failed" in result]
        row: dict[str, Any] = {"name": name, "kind": (of_name + failed)[0]["kind"], "runs": len(of_name)}
        row |= {"failed": [run["failed"] for run in failed]} if failed else {}
        for key in FIGURES if of_name else ():
            values = [run[key] for run in of_name]
            row[key] = {"median": statistics.median(values), "mean": statistics.mean(values)}
            row[key] |= {"min": min(values), "max": max(values), "spread": max(values) - min(values)}
        rows.append(row)
    ours = next((row for row in rows if row["kind"] == "ours"), None)
    for row in (row for row in rows if ours and row["runs"]):
        assert ours is not None
        row["bits_per_byte_above_ours"] = row["bits_per_byte"]["median"] - ours["bits_per_byte"]["median"]
        row["mean_bits_per_byte_above_ours"] = row["bits_per_byte"]["mean"] - ours["bits_per_byte"]["mean"]
        row["tokens_per_second_ratio"] = row["tokens_per_second"]["median"] / ours["tokens_per_second"]["median"]
    ablations.add_deltas(rows, done)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'run':26} {'n':>2} {'bits/byte':>9} {'mean':>6} {'min':>6} {'max':>6} {'spread':>6} {'loss':>6} {'tokens/s':>9}"
        "  against the first recipe" + ("  downstream (range)" if any("downstream" in row for row in rows) else "")
    ]
    for row in rows:
        failed = f"{len(row['failed'])} failed: {row['failed'][-1]}" if "failed" in row else ""
        if not row["runs"]:
            lines.append(f"{row['name'][:26]:26} {0:2}  {failed}")
            continue
        bits = row["bits_per_byte"]
        text = f"{row['name'][:26]:26} {row['runs']:2} {bits['median']:9.3f} {bits['mean']:6.3f}"
        text += f" {bits['min']:6.3f} {bits['max']:6.3f} {bits['spread']:6.3f}"
        text += f" {row['loss']['median']:6.3f} {row['tokens_per_second']['median']:9,.0f}"
        against = ""
        if "tokens_per_second_ratio" in row and row is not rows[0]:
            against = f"{row['bits_per_byte_above_ours']:+.3f}, {row['tokens_per_second_ratio']:.2f} x tokens/s"
        if "downstream" in row:
            score = row["downstream"]
            against = f"{against:24}  {score['median']:.1f} ({score['min']:.1f} to {score['max']:.1f})"
        lines.append(f"{text}  {against}  {failed}".rstrip())
    return "\n".join(lines)


def flags_table(best: dict[str, runs.Best], results: Sequence[dict[str, Any]]) -> str:
    """With which flags each baseline ran, where they come from, the best trials, and what its script says of its runs."""
    lines = [""] if best else []
    for name, found in best.items():
        lines.append(f"{name}: {runs.flags_line(found.flags) or 'its defaults'}; {found.told}")
        lines += [f"    {run['bits_per_byte']:.3f} bits/byte: {runs.flags_line(run['flags'])}" for run in found.trials]
        of_name = [result for result in results if result["name"] == name]
        if steps := [run for run in of_name if "planned_steps" in run]:
            did = (f"{run['steps']} of {run['planned_steps']} to {run['last_learning_rate']:.1e}" for run in steps)
            lines.append(f"    planned steps done, and the last rate: {', '.join(did)}")
        if judged := [run["compiled"] for run in of_name if "compiled" in run]:
            lines.append(f"    compiled: {sum(judged)} of {len(judged)} runs")
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    log = a.output_dir / "results.jsonl"
    results, here = read_results(log), environment()
    held, data = bool(results), prepare(a)
    shared = claim_of_all(a, data, here["git_commit"])
    claim(a.output_dir, shared, held)
    best = best_flags(a, tune.hardware_line(here["hardware"]))
    jobs = plan(a, best)
    claim(a.output_dir, {**shared, **claim_of_runs(jobs)}, held)
    for number, job in enumerate(jobs, start=1):
        place = job["name"], job["seed"]
        if place in results and "failed" not in results[place]:
            continue
        print(f"run {number} of {len(jobs)}: {place[0]}, seed {place[1]}, {format_duration(a.seconds)}", flush=True)
        result = results[place] = run_job(a, job, data)
        with log.open("a") as file:
            file.write(json.dumps(result) + "\n")
        said = f"failed: {result['failed']}" if "failed" in result else ""
        said = said or f"{result['bits_per_byte']:.3f} bits per byte, {result['tokens_per_second']:,.0f} tokens/s"
        print(f"    {said}", flush=True)
    found = list(results.values())
    rows = summarise(found)
    scored = [job for job in jobs if "failed" not in results[job["name"], job["seed"]]]
    if a.downstream and scored:
        score_downstream(a, scored, rows)
    told = {name: {"flags": of.flags, "tuning": of.told, "trials": of.trials} for name, of in best.items()}
    text = f"{table(rows)}\n{flags_table(best, found)}{ablations.table(rows)}"
    publish(a, "quality_at_budget", text, {"summary": rows, "runs": found, "baselines": told}, file="results.json")
    if any("failed" in result for result in found):
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
