#!/usr/bin/env python3
"""Every promise of the project measured on this machine: `make acceptance`, or `tests/acceptance.py budget resume`.

Prints a table (asked, measured, held), writes out/acceptance.json and out/acceptance.md, and exits with 1 where a line
does not hold. What needs real text finds it in the folder BUDGET_DATA (default ../shared/data);
where that is missing the line says "not measured". Takes over an hour on two cores, most of it `quality` and `budget`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.data_prep import measure  # noqa: E402
from benchmarks.watched import watch  # noqa: E402
from budget_trainer.core.io import fresh_folder  # noqa: E402
from budget_trainer.core.output import Markup, table  # noqa: E402
from budget_trainer.reporting.report import environment  # noqa: E402
from tests.conftest import ROOT, SHARED_DATA, launcher, on_cpus  # noqa: E402

WIKI = [SHARED_DATA / f"wiki{name}.txt.xz" for name in ("2015_00", "2015_03", "2018_00")]
VOCAB, GLUE = SHARED_DATA / "vocab.tar.xz", SHARED_DATA / "glue_data.tar.xz"
NEEDS = {"quality": [*WIKI[:2], VOCAB], "data_prep": [WIKI[2], VOCAB], "glue": [GLUE, VOCAB]}
OUT = ROOT / "out" / "acceptance"
LOAD = """
import sys
for name in ("budget_trainer", "data_prep", "train_mlm"):
    sys.modules[name] = None
from transformers import AutoModelForMaskedLM, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForMaskedLM.from_pretrained(sys.argv[1])
"""
# Seconds, processes, and whether the second one is slowed.
BUDGETS = [*((seconds, processes, False) for seconds in (30, 60, 180) for processes in (1, 2)), (60, 2, True)]


HELD: dict[Any, Any] = {True: "yes", False: "**no**", None: "not measured"}


class Line(NamedTuple):
    """One promise. `held` is None where it could not be measured."""

    check: str
    asked: str
    measured: str
    held: bool | None


class Failed(Exception):
    """A command that should have succeeded."""


def sh(command: list[Any], log: Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> float:
    """Run a command with its output in `log`; returns seconds. Raises Failed with the last line of the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with log.open("w") as file:
        code = subprocess.run([*map(str, command)], cwd=cwd, env=env, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        raise Failed(f"exit code {code}: {last_line(log)} ({log})")
    return time.monotonic() - begin


def last_line(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").strip().rpartition("\n")[2].split())


def quickstart() -> Iterator[Line]:
    clone = fresh_folder(OUT / "quickstart") / "clone"
    sh(["git", "clone", "--quiet", ROOT, clone], OUT / "clone.log")
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS")}
    python = f"PYTHON={getattr(sys, '_base_executable', sys.executable)}"
    seconds = sh(["make", "quickstart", python], OUT / "quickstart.log", cwd=clone, env=environ)
    asked = "make quickstart from a fresh clone, installation included: exit 0 in under 600 s"
    yield Line("quickstart", asked, f"{seconds:.0f} s", seconds < 600)
    printed = (OUT / "quickstart.log").read_text(errors="replace").count("[MASK]")
    yield Line("quickstart", "five fill-mask examples printed", f"{printed} printed", printed >= 5)
    model = clone / "out" / "quickstart" / "final"
    sh([sys.executable, "-I", "-c", LOAD, model], OUT / "load.log", cwd=Path("/"))
    remote = "auto_map" in json.loads((model / "config.json").read_text())
    yield Line("quickstart", "the checkpoint loads where none of our code can be imported", "loaded", not remote)


def docstring_data() -> Path:
    """The quickstart's data folder, made once."""
    data = OUT / "data"
    if not (data / "blocks" / "manifest.json").exists():
        corpus, tokenizer, blocks = fresh_folder(data) / "corpus.txt", data / "tokenizer", data / "blocks"
        stages = {"docstrings": ["--output_file", corpus]}
        stages["tokenizer"] = ["--input", corpus, "--vocab_size", 8192, "--output_dir", tokenizer]
        stages["blocks"] = ["--input", corpus, "--tokenizer", tokenizer, "--output_dir", blocks]
        for stage, flags in stages.items():
            sh([sys.executable, "-m", f"data_prep.{stage}", *flags], OUT / f"{stage}.log")
    return data / "blocks"


def timed_run(folder: Path, budget: int, processes: int, slowed: bool) -> tuple[float, float, dict]:
    """Train for `budget` seconds; seconds until final/ appeared since the process began and since the launch; the report."""
    flags = ["--data_dir", docstring_data(), "--output_dir", folder / "run", "--total_training_time", f"{budget}s"]
    command = [*map(str, launcher(on_cpus(processes), "train_mlm.py", "recipes/quickstart.yaml", *flags))]
    bursts: list[int] = []
    slow = (lambda last: bursts.append(burst(last))) if slowed else None
    log, wanted = folder / "log.txt", folder / "run" / "final" / "config.json"
    seen = watch(command, log, wanted, processes, slow)
    if seen.code or seen.since_start is None or seen.since_launch is None:
        raise Failed(f"exit code {seen.code}: {last_line(log)} ({log})")
    if slowed and not sum(bursts):
        raise Failed("the second process was never slowed")
    return seen.since_start, seen.since_launch, json.loads((folder / "run" / "run_report.json").read_text())


def burst(process: psutil.Process) -> int:
    """Stop a process for 0.2 s, then leave it alone for 0.3 s."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.3)
        return 1
    return 0


def budget() -> Iterator[Line]:
    for seconds, processes, slowed in BUDGETS:
        name = f"budget {seconds} s, processes: {processes}{', one slowed' if slowed else ''}"
        least = 0.97 if seconds >= 180 else 0.95
        try:
            outside, launch, report = timed_run(fresh_folder(OUT / name.replace(" ", "-")), seconds, processes, slowed)
        except Failed as error:
            yield Line(name, "a finished run", str(error), False)
            continue
        used = report["used_seconds"]
        measured = f"{outside:.2f} s outside (from launch {launch:.2f}), {used:.2f} s in the report"
        asked = f"final/ on disk within {least * seconds:g} to {seconds} s"
        yield Line(name, asked, measured, all(least * seconds <= value <= seconds for value in (outside, used)))
        share = report["learning_rate_last"] / report["learning_rate_peak"]
        yield Line(name, "last learning rate at most 2 % of the peak", f"{100 * share:.2f} %", share <= 0.02)
        if processes > 1:
            ranks = {(rank["steps"], rank["learning_rates_sha256"]) for rank in report["ranks"]}
            measured = f"{len(report['ranks'])} ranks, {len(ranks)} different histories of {report['steps']} steps"
            held = len(ranks) == 1 and len(report["ranks"]) == processes
            yield Line(name, "same steps, bit-equal learning rates", measured, held)


def by_pytest(path: str, asked: str) -> Iterator[Line]:
    """The outcome of one test file."""
    name = Path(path).stem.removeprefix("test_")
    log = OUT / f"{name}.log"
    seconds = sh([sys.executable, "-m", "pytest", "-q", path], log)
    held = None if " skipped" in last_line(log) else True
    yield Line(name, asked, f"{last_line(log).strip('= ')} ({seconds:.0f} s)", held)


def uncased(folder: Path) -> Path:
    """bert-base-uncased's tokenizer.json, unpacked."""
    with tarfile.open(VOCAB) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.rglob("bert-base-uncased-tokenizer.json"))


def quality() -> Iterator[Line]:
    commit = environment()["git_commit"] or "unknown-dirty"  # runs of another state of the code are never taken up
    folder = fresh_folder(OUT / f"quality-{commit}") if commit.endswith("-dirty") else OUT / f"quality-{commit}"
    command = [sys.executable, "benchmarks/quality_at_budget.py", "--text", WIKI[0], "--eval_text", WIKI[1]]
    command += ["--tokenizer", uncased(OUT / "vocab"), "--budget", "300s", "--output_dir", folder, "--resume"]
    sh(command, OUT / "quality.log")
    rows = json.loads((folder / "results.json").read_text())["summary"]
    ours = next(row for row in rows if row["kind"] == "ours")
    for row in (row for row in rows if row["kind"] == "baseline"):
        least = 0.40 if row["name"] == "stock_bert" else 0.30
        asked = f"300 s, median of three: at least {least:.2f} bits per byte below {row['name']}"
        below, speed = row["bits_per_byte_above_ours"], row["tokens_per_second_ratio"]
        figures = (
            f"{ours['bits_per_byte']['median']:.3f} against {row['bits_per_byte']['median']:.3f}, {below:.3f} below"
        )
        figures += f"; {ours['tokens_per_second']['median']:,.0f} tokens/s, {1 / speed:.1f} times its"
        yield Line("quality", asked, figures, below >= least and min(ours["runs"], row["runs"]) >= 3)


def data_prep() -> Iterator[Line]:
    speed, memory = "at least 3 MB/s of raw text from text to blocks (46 MB, two processes)", "memory under 2 GiB"
    folder = fresh_folder(OUT / "data_prep")
    command = [sys.executable, "-m", "data_prep.blocks", "--input", str(WIKI[2]), "--num_proc", "2"]
    command += ["--tokenizer", str(uncased(OUT / "vocab")), "--output_dir", str(folder / "blocks")]
    seconds, peak_mib = measure(command, folder / "log.txt")
    manifest = json.loads((folder / "blocks" / "manifest.json").read_text())
    megabytes = sum(source["text_bytes"] for source in manifest["sources"]) / 1e6
    measured = f"{megabytes / seconds:.2f} MB/s ({megabytes:.1f} MB in {seconds:.1f} s)"
    yield Line("data_prep", speed, measured, megabytes / seconds >= 3)
    yield Line("data_prep", memory, f"{peak_mib / 1024:.2f} GiB", peak_mib < 2048)


def glue() -> Iterator[Line]:
    asked = "GLUE by one command with a tiny model: under 30 minutes, official row counts, what has no data is named"
    folder = fresh_folder(OUT / "glue")
    with tarfile.open(GLUE) as archive:
        archive.extractall(folder / "data", filter="data")
    model = tiny_encoder(uncased(OUT / "vocab"), folder / "model")
    command = [sys.executable, "finetune_glue.py", "--model_name_or_path", model, "--task_name", "all"]
    command += ["--glue_dir", folder / "data" / "glue_data", folder / "data" / "glue_subset"]
    command += ["--intermediate_task", "MNLI", "--grid", "recipes/glue/quick.yaml", "--total_training_time", "25m"]
    seconds = sh([*command, "--use_cpu", "true", "--output_dir", folder / "out"], folder / "log.txt")
    report = json.loads((folder / "out" / "glue_report.json").read_text())
    check = [sys.executable, "-m", "budget_trainer.glue.check_submission", folder / "out" / "submission"]
    sh([*check, "--partial"], folder / "check.txt")
    files = set(report["submission"]["files"])
    official = {f"{task}.tsv" for task in ("CoLA", "SST-2", "MRPC", "STS-B", "RTE", "WNLI", "AX")} <= files
    measured = (
        f"{seconds:.0f} s, {len(report['tasks'])} tasks, files {sorted(files)}, absent {sorted(report['absent'])}"
    )
    yield Line("glue", asked, measured, seconds < 1800 and official and set(report["absent"]) == {"QNLI"})


def tiny_encoder(tokenizer_file: Path, folder: Path) -> Path:
    """A BERT of 2 layers of 64 with random weights, and its tokenizer."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    tokenizer = BertTokenizerFast(tokenizer_file=str(tokenizer_file))
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_time() -> Iterator[Line]:
    seconds = sh(["make", "test"], OUT / "tests.log")
    asked = "make test passes in under 25 minutes"
    yield Line("test_time", asked, f"{seconds:.0f} s, {last_line(OUT / 'tests.log').strip('= ')}", seconds < 1500)


RIGHT = "1 x 8, 8 x 1 and 2 processes x 4: losses, gradient norms, weights within 1e-4; sparse equals dense"
AGAIN = "kill -9 at step 40 of 60, resume from 30: same batches, masks, losses, weights, bit for bit"
CHECKS: dict[str, Callable[[], Iterator[Line]]] = {
    "quickstart": quickstart,
    "right_loss": partial(by_pytest, "tests/distributed/test_right_loss.py", RIGHT),
    "resume": partial(by_pytest, "tests/training/test_resume.py", AGAIN),
    **{check.__name__: check for check in (data_prep, glue, test_time, budget, quality)},
}


def markdown(lines: list[Line]) -> str:
    rows = [line._replace(held=HELD[line.held]) for line in lines]
    return table(Line._fields, [[Markup(cell.replace("|", "/")) for cell in row] for row in rows]) + "\n"


def measured(name: str) -> Iterator[Line]:
    """The lines of a check, or one that says why there are none."""
    if gone := [path for path in NEEDS.get(name, ()) if not path.exists()]:
        yield Line(name, "its files are there", f"not measured: {gone[0]} is missing (set BUDGET_DATA)", None)
        return
    try:
        yield from CHECKS[name]()
    except Failed as error:
        yield Line(name, "the check runs through", str(error), False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", help=f"all, or some of: {' '.join(CHECKS)}")
    chosen = parser.parse_args(argv).checks or list(CHECKS)
    if unknown := set(chosen) - set(CHECKS):
        parser.error(f"checks: {sorted(unknown)[0]} is unknown; choose from {' '.join(CHECKS)}")
    lines: list[Line] = []
    for name in chosen:
        print(f"== {name}", flush=True)
        for line in measured(name):
            lines.append(line)
            print(f"{HELD[line.held]:12} {line.check}: {line.asked}\n{'':12} {line.measured}", flush=True)
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT.parent / "acceptance.json").write_text(json.dumps([line._asdict() for line in lines], indent=2) + "\n")
        (OUT.parent / "acceptance.md").write_text(markdown(lines))
    print("\n" + markdown(lines))
    return 1 if any(line.held is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
