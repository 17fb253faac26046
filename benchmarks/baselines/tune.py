"""Tune baselines for a budget: each trial is a whole run, scored on the held-out text; the search is that of sweep.py.

    python -m benchmarks.baselines.tune expert_modernbert stock_bert --text train.txt --eval_text held_out.txt \
        --tokenizer out/data/tokenizer --budget 5m --output_dir out/tune

What is searched stands in NAME.yaml beside the scripts, in the form of a sweep file: its samplers, its study and its rules for
the values are used; the first trial has the script's defaults. sweep.py itself runs train_mlm.py only, and reads that script's
report and progress, which a stock script does not write; here a trial is the baseline's command and the stock scorer's
answer. Trials run one after the other, each for its budget and roughly a minute more, two where the script times whether to
compile; the same command goes on where it was ended. The held-out text that chooses the best is the one on which the baseline
is compared afterwards, which favours it.

Writes the best flags and trials to --tuned, from where benchmarks/quality_at_budget.py takes them.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.baselines.runs import LEAST_TRIALS, NAMES, Baseline, flags_line, record
from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish
from benchmarks.texts import check_apart, digest
from budget_trainer.budget.clock import format_duration, parse_duration
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import hold_folder, sha256
from budget_trainer.reporting.report import environment

if TYPE_CHECKING:
    from optuna import Trial

    from budget_trainer.sweep.study import SweepStudy

ERROR, SECONDS = "error", "seconds"  # attributes of a trial in the study, as in a sweep


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help=f"baselines: {', '.join(NAMES)}")
    add("--text", required=True, help="training text, one document per line")
    add("--eval_text", required=True, help="held-out text in the same form")
    add("--tokenizer", required=True, help="folder of the tokenizer")
    add("--budget", default="5m", help="of each trial (5m)")
    add("--trials", type=int, help=f"how many for each baseline, at least {LEAST_TRIALS} (those of NAME.yaml)")
    add("--max_blocks", type=int, default=2000, help="blocks to score each trial on (2000)")
    add("--output_dir", default="out/tune", help="folder of the trials (out/tune)")
    add("--tuned", help="file for the best flags; other entries in it stay (OUTPUT_DIR/tuned.yaml)")
    a = parser.parse_args(argv)
    a.seconds = parse_duration(a.budget, "budget")
    check_trials(a.trials)
    for name in a.names:
        Baseline.named(name)
    for name in ("text", "eval_text", "tokenizer"):
        if not Path(getattr(a, name)).exists():
            raise InputError(f"{name}: {getattr(a, name)} does not exist; give --{name}")
        setattr(a, name, str(Path(getattr(a, name)).resolve()))
    return a


def check_trials(trials: int | None) -> None:
    if trials is not None and trials < LEAST_TRIALS:
        raise InputError(f"trials: {trials} are too few to call a baseline tuned; give {LEAST_TRIALS} or more")


def tune(a: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """All trials of a baseline in `folder`; the entry of the best one for `record`, and `runs`, the best first.

    a: text, eval_text, tokenizer, seconds, trials (None: those of the sweep file), max_blocks. InputError: the folder holds
    another search, or is in use. RunError: fewer than LEAST_TRIALS have finished.
    """
    from optuna.trial import TrialState

    from budget_trainer.config.parser import yaml_typed
    from budget_trainer.sweep.spec import SweepSpec
    from budget_trainer.sweep.study import SweepStudy, exclusive, identity, open_storage, storage_errors

    baseline = Baseline.named(name)
    own = {"time_per_trial": f"{a.seconds:g}s", "output_dir": str(folder)}
    own |= {} if a.trials is None else {"trials": str(a.trials)}
    data = {"text": a.text, "tokenizer": a.tokenizer, "seed": "0"}
    spec = SweepSpec.read({**baseline.sweep, **own, "fixed": {**baseline.fixed, **data}}, name)
    texts = {"text": sha256(Path(a.text)), "eval_text": sha256(Path(a.eval_text)), "max_blocks": a.max_blocks}
    texts |= {"tokenizer": digest(a.tokenizer), "script": baseline.digest}
    folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(folder), storage_errors(spec.storage):
        with exclusive(spec):
            study = SweepStudy(spec, open_storage(spec.storage), identity(spec, texts, baseline.script))
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial(yaml_typed(baseline.first))
        while (trial := _next_trial(study)) is not None:
            _run_trial(a, baseline, study, trial)
        trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(done) < LEAST_TRIALS:
        reason = next((trial.user_attrs[ERROR] for trial in reversed(trials) if ERROR in trial.user_attrs), "")
        what = f"{len(done)} of {len(trials)} of {name} have finished, too few to call it tuned"
        raise RunError(f"trials: {what} (the last failure: {reason}); mend that, or give more trials")
    done.sort(key=lambda trial: trial.value or 0.0)
    runs = [{"flags": _flags(trial.params), "bits_per_byte": trial.value, **trial.user_attrs} for trial in done]
    here = environment()
    entry = {"flags": runs[0]["flags"], "bits_per_byte": done[0].value, "trials": len(trials), "finished": len(done)}
    entry |= {"hardware": hardware_line(here["hardware"]), "git_commit": here["git_commit"]}
    return {**entry, "runs": runs}


def _next_trial(study: SweepStudy) -> Trial | None:
    """A new trial, or one that a killed process has left; None where all have ended. The folder is held, so nobody runs one."""
    from optuna.trial import TrialState

    from budget_trainer.sweep.study import exclusive

    with exclusive(study.spec):
        trials = study.get_trials(deepcopy=False)
        if lost := next((trial for trial in trials if trial.state == TrialState.RUNNING), None):
            return study.resume(lost)
        return study.propose() if len(trials) < (study.spec.limit or LEAST_TRIALS) else None


def _run_trial(a: argparse.Namespace, baseline: Baseline, study: SweepStudy, trial: Trial) -> None:
    """Train and score a trial, and record how it ended."""
    from optuna.trial import TrialState

    spec, begin, reason = study.spec, time.monotonic(), ""
    place = spec.folder(trial.number)
    shutil.rmtree(place, ignore_errors=True)
    words = [word for word in spec.words(trial.params, trial.number) if not word.startswith("--output_dir=")]
    try:
        found = baseline.run(words, place, a.eval_text, a.max_blocks)
        if not math.isfinite(found["bits_per_byte"]):
            reason = "the loss is not a finite number"
    except InputError as error:
        reason = str(error)
    trial.set_user_attr(SECONDS, round(time.monotonic() - begin, 1))
    head = f"{baseline.name}, trial {trial.number + 1} of {spec.limit}: {flags_line(trial.params)}"
    if reason:
        trial.set_user_attr(ERROR, reason[:500])
        study.conclude(trial, None, TrialState.FAIL)
        print(f"{head}: failed: {reason}", flush=True)
        return
    trial.set_user_attr("tokens_per_second", found["tokens_per_second"])
    study.conclude(trial, found["bits_per_byte"], TrialState.COMPLETE)
    shutil.rmtree(place)
    print(f"{head}: {found['bits_per_byte']:.3f} bits per byte", flush=True)


def hardware_line(hardware: dict[str, Any]) -> str:
    """The GPUs, or the cores, in words."""
    if hardware["gpus"]:
        return f"{len(hardware['gpus'])} x {hardware['gpus'][0]['name']}"
    return f"{hardware['cores']} cores of {hardware['cpu']}"


def _flags(params: dict[str, Any]) -> dict[str, Any]:
    """As the command line takes them."""
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in params.items()}


def table(name: str, found: dict[str, Any]) -> str:
    """The trials that have finished, the best first."""
    lines = [f"{name}: {found['finished']} of {found['trials']} trials finished"]
    for run in found["runs"]:
        figures = f"{run['bits_per_byte']:7.3f} bits/byte {run['tokens_per_second']:9,.0f} tokens/s"
        lines.append(f"  {figures}  {flags_line(run['flags'])}")
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    check_apart(a.text, a.eval_text)
    file = Path(a.tuned).resolve() if a.tuned else a.output_dir / "tuned.yaml"
    found = {}
    for name in a.names:
        found[name] = tune(a, name, a.output_dir / f"{name}-{format_duration(a.seconds)}")
        record(file, name, a.seconds, found[name])
    publish(a, "tune", "\n".join(table(name, of) for name, of in found.items()), {"baselines": found})


if __name__ == "__main__":
    sys.exit(main())
