#!/usr/bin/env python3
"""What one large GPU is asked, in stages of at most nine minutes that go on where they were stopped.

    python benchmarks/gpu_hour.py --data_dir data/packed --glue_dir data/glue_data,data/mnli_22k \
        --output_dir out/gpu_hour all --total_minutes 27

stage            min  what it runs
check            5.5  gpu_8m.yaml for a minute each: bf16, fp16, ZeRO-2, FSDP2; the loss has to fall, host syncs are counted
throughput         5  tokens per second beside a stock Trainer: 24 x 1024 (335 M) and 8 x 768 (81 M)
three_minutes_1    8  three minutes of gpu_8m.yaml, then of a stock Trainer at 5e-4; one at a time, as all trainings
three_minutes_2    8  the stock Trainer at 2e-4 and 1e-3
eight_minutes      9  gpu_8m.yaml for eight minutes: the model of the next two
glue_1             7  CoLA, SST-2, MRPC and RTE: rates 5e-5, 1e-4, 3e-4, seeds 1, 2, 3, some runs side by side
glue_2             7  STS-B and MNLI, the same
glue_3             9  the floor: STS-B, SST-2 and MNLI from random weights of that architecture, the same
factors_1 ...      9  two minutes each of gpu_8m.yaml and its variants (--factors), three to a stage, then STS-B and SST-2

A stage ends after --stage_minutes; what was not finished by then is begun anew by the same command. OUT/<stage>.json has every
finished run, OUT/<stage>.md its table, OUT/gpu_hour.md all tables. Copied to another machine these files are enough to go on;
where runs are missing that start from weights which were not copied (OUT/eight_minutes, OUT/factors_*), the stage that makes
those trains them again. A run that fails is a row with its error; --retry_failed runs it again. Nothing is loaded from the Hub.
--tiny rehearses all of it on a CPU.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import ablations  # noqa: E402
from benchmarks.downstream import Model, draw_floor  # noqa: E402
from benchmarks.workload import Workload, fit  # noqa: E402
from budget_trainer.core.command import DONE, FAILED, RESUMABLE, Parser, StopRequest, run_script  # noqa: E402
from budget_trainer.core.errors import InputError, RunError  # noqa: E402
from budget_trainer.core.io import (  # noqa: E402
    check_writable,
    fresh_folder,
    hold_folder,
    json_types,
    sha256,
    user_path,
    write_atomic,
    write_json_atomic,
)
from budget_trainer.core.jobs import TRAINING, Job, JobEnd, devices, make_launch, run_jobs  # noqa: E402
from budget_trainer.data.folder import DataFolder  # noqa: E402
from budget_trainer.glue.data import load_task  # noqa: E402
from budget_trainer.glue.plan import read_grid  # noqa: E402
from budget_trainer.glue.results import read_object, read_result  # noqa: E402
from budget_trainer.glue.tasks import find_task  # noqa: E402
from budget_trainer.reporting.report import environment  # noqa: E402
from budget_trainer.training.run_folder import RunFolder  # noqa: E402

RECIPE = ROOT / "recipes" / "gpu_8m.yaml"
RUNS = "benchmarks.gpu_hour_runs"
FACTORS_PER_STAGE = 3
GRACE_SECONDS = 5.0  # of a run whose stage is over
MODEL = "run/final"  # in the folder of a training
RANDOM = "random weights"


@dataclass(frozen=True)
class Sizes:
    """The numbers that a rehearsal has smaller; the path is the same.

    `training` and `glue` are flags of every run of ours, `spare_seconds` is what a run needs beside its budget (launch, last
    evaluation), `minutes` maps a kind of training to its budget, `syncs` are the steps in which they are counted.
    """

    training: dict[str, Any] = field(default_factory=dict)
    glue: dict[str, Any] = field(default_factory=lambda: {"bf16": "true"})
    minutes: dict[str, float] = field(default_factory=lambda: {"check": 1, "three": 3, "eight": 8, "factor": 2})
    spare_seconds: float = 30.0
    stock_spare_seconds: float = 60.0
    syncs: tuple[int, int] = (10, 42)
    stock: dict[str, Any] = field(
        default_factory=lambda: (
            {"hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 12}
            | {"intermediate_size": 3072, "batch_size": 256, "dataloader_num_workers": 4, "bf16": True}
        )
    )
    probe_steps: int = 40
    stock_rates: tuple[tuple[float, ...], ...] = ((5e-4,), (2e-4, 1e-3))
    shapes: dict[str, str] = field(
        default_factory=lambda: {
            "24 x 1024": "--hidden_size 1024 --layers 24 --heads 16 --intermediate_size 4096 --batch_size 128 --steps 10",
            "8 x 768": "--hidden_size 768 --layers 8 --heads 12 --intermediate_size 3072 --batch_size 256 --steps 20",
        }
    )
    throughput: str = "--variants ours_bf16_regional,stock_bf16 --rounds 3 --warmup_steps 3 --dataloader_num_workers 4"
    throughput_seconds: float = 150.0
    tasks: tuple[tuple[str, ...], ...] = (("CoLA", "SST-2", "MRPC", "RTE"), ("STS-B", "MNLI"))
    floor_tasks: tuple[str, ...] = ("STS-B", "SST-2", "MNLI")
    rates: tuple[float, ...] = (5e-5, 1e-4, 3e-4)
    seeds: tuple[int, ...] = (1, 2, 3)
    factor_tasks: tuple[str, ...] = ("STS-B", "SST-2")
    factor_rates: tuple[float, ...] = (1e-4, 3e-4)
    factor_rows: int = 20_000  # of the training set, at most
    side_by_side: int = 12


FULL = Sizes()
_TINY_MODEL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TINY = Sizes(
    training={**_TINY_MODEL, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    | {"lr_schedule": "step", "max_steps": 20, "total_training_time": "10m", "bf16": "false", "torch_compile": "false"}
    | {"dataloader_num_workers": 0, "dataloader_persistent_workers": "false"},
    glue={"max_seq_length": 32, "num_train_epochs": 1, "max_train_samples": 32, "max_eval_samples": 16},
    minutes=dict.fromkeys(FULL.minutes, 0.02),
    stock_spare_seconds=30.0,
    syncs=(4, 12),
    stock={**_TINY_MODEL, "batch_size": 8, "bf16": False},
    probe_steps=3,
    stock_rates=((5e-4,), (1e-3,)),
    shapes={"1 x 32": "--hidden_size 32 --layers 1 --heads 2 --intermediate_size 64 --batch_size 4 --steps 2"},
    throughput="--variants ours_bf16_regional,stock_bf16 --rounds 1 --warmup_steps 1 --use_cpu --no_compile "
    "--vocab_size 200 --seq_length 32 --peak_seconds 0.02",
    throughput_seconds=30.0,
    tasks=(("CoLA",), ("MNLI",)),
    floor_tasks=("MNLI",),
    rates=(1e-3,),
    seeds=(1, 2),
    factor_rates=(1e-3,),
    factor_rows=32,
    side_by_side=2,
)
# MNLI of 22,000 rows is an epoch of 680 steps, too short for a model of minutes.
TASK_FLAGS = {"MNLI": {"num_train_epochs": 3}}
PROFILES: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": ("single_gpu", {}),
    "fp16": ("single_gpu", {"bf16": "false", "fp16": "true"}),
    "ZeRO-2": ("zero2", {"max_grad_norm": 0}),  # as Muon wants it there
    "FSDP2": ("fsdp", {}),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("gpu_hour.py", __doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("stages", nargs="*", metavar="STAGE", help="what to run, in this order; all: every stage")
    add("--stage", action="append", default=[], help="the same, repeatable")
    add("--list", action="store_true", help="print the stages and what is there of them, and run nothing")
    add("--data_dir", help="data folder of data_prep.blocks, packed, blocks of 128")
    add(
        "--pairs_data_dir",
        help="the same text with --packing nsp, for variants with add_nsp; without it they are left out",
    )
    add("--glue_dir", help="folders in GLUE's official layout, separated by commas")
    add(
        "--grid",
        default=str(ROOT / "recipes" / "glue" / "cpu.yaml"),
        help="flags of each task (recipes/glue/cpu.yaml)",
    )
    factors = ROOT / "recipes" / "ablations" / "gpu_8m.yaml"
    add("--factors", default=str(factors), help="YAML: variants of gpu_8m.yaml, name to changed flags (that file)")
    add("--output_dir", default="out/gpu_hour", help="of all results, an earlier one to go on (out/gpu_hour)")
    add("--stage_minutes", type=float, default=9.0, help="a stage ends then (9)")
    add("--total_minutes", type=float, default=math.inf, help="this command ends then")
    add("--side_by_side", type=int, help="fine-tuning runs at a time on the one GPU (12)")
    add("--retry_failed", action="store_true", help="run again what has failed")
    add("--tiny", action="store_true", help="tiny sizes, on the CPU: a rehearsal")
    a = parser.parse_args(argv)
    for name in ("stage_minutes", "total_minutes", "side_by_side"):
        if (value := getattr(a, name)) is not None and not value > 0:
            raise InputError(f"{name}: {value:g} is not above 0; give more")
    for name in ("grid", "factors", "output_dir", "data_dir", "pairs_data_dir"):
        if (value := getattr(a, name)) is not None:
            setattr(a, name, Path(user_path(value, name)).resolve())
    a.glue_dir = [Path(user_path(part, "glue_dir")).resolve() for part in (a.glue_dir or "").split(",") if part]
    a.variants = ablations.gather(str(a.factors), [])
    ablations.check(a.variants, [str(RECIPE)])
    return a


class Waits(InputError):
    """A stage that starts from weights which are not there yet."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run of a stage.

    `asked` is what makes it another run where it differs; it stands in its row. `command` makes the command line for its new
    folder, `read` gives the figures that the run has left there. It begins where `seconds` are left of the stage.
    `is_used_up` says, of all rows of the stage, whether its weights are of no more use; None: it leaves none.
    `model` is what it starts from, `left_out` why it is not run. One that `resumes` is only evaluated where it had ended.
    """

    name: str
    asked: dict[str, Any]
    command: Callable[[Path], Sequence[str]]
    read: Callable[[Path], dict[str, Any]]
    seconds: float
    is_used_up: Callable[[list[dict[str, Any]]], bool] | None = None
    resumes: bool = False
    model: Path | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class Stage:
    """Parts that run `alone` on the GPU one after the other, then those `side_by_side`, which are made of the rows of the
    first; and the table of all rows."""

    about: str
    minutes: float
    alone: Callable[["Hour"], list[Part]] = lambda hour: []
    side_by_side: Callable[["Hour", list[dict[str, Any]]], list[Part]] = lambda hour, rows: []
    table: Callable[[list[dict[str, Any]]], str] = lambda rows: ""


class Hour:
    """The runs of one call and their results in `a.output_dir`."""

    def __init__(self, a: argparse.Namespace, stop: StopRequest) -> None:
        self.a, self.stop, self.out = a, stop, a.output_dir
        self.sizes = TINY if a.tiny else FULL
        self.stages = make_stages(a)
        self.end = time.monotonic() + 60 * a.total_minutes
        self.data: DataFolder | None = None

    # ---- what is there ----

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The finished runs of a stage. InputError where they are of other data, or the file is damaged."""
        path = self.out / f"{stage}.json"
        if not path.exists():
            return []
        content = read_object(path, "delete it, or copy it again")
        if not isinstance(content.get("rows"), list):
            raise InputError(f"{path}: has no rows; delete it, or copy it again")
        if self.data is not None and content.get("data") != self._of_data():
            raise InputError(
                f"output_dir: {path} is of other data, or of a rehearsal; give another folder, or that data_dir"
            )
        return list(content["rows"])

    def _of_data(self) -> dict[str, Any]:
        assert self.data is not None
        return {"fingerprint": self.data.fingerprint, "tiny": self.a.tiny}

    def parts(self, stage: str, rows: list[dict[str, Any]]) -> list[list[Part]]:
        """The parts that run alone, and those that run side by side as far as they are known yet."""
        return [self.stages[stage].alone(self), self.stages[stage].side_by_side(self, rows)]

    def is_done(self, stage: str, part: Part, rows: list[dict[str, Any]]) -> bool:
        """Whether its row is there, and its weights where they are still needed."""
        if (row := find(rows, part)) is None:
            return False
        if row["status"] == "ok" and part.is_used_up is not None:
            return (self.folder(stage, part.name) / MODEL).is_dir() or part.is_used_up(rows)
        return row["status"] != "left out" or part.left_out is not None

    def folder(self, stage: str, name: str) -> Path:
        return self.out / stage / re.sub(r"[^\w.-]+", "-", name)

    # ---- a stage ----

    def run(self, name: str) -> tuple[bool, bool]:
        """Run what is not there of a stage; whether it is complete, and whether a run of it has failed.

        Raises Waits where it starts from weights that are not there.
        """
        deadline = min(self.end, time.monotonic() + 60 * self.a.stage_minutes)
        rows = self.rows(name)
        if self.a.retry_failed:
            rows = [row for row in rows if row["status"] != "failed"]
        side_by_side = self.a.side_by_side or self.sizes.side_by_side
        for side, slots in enumerate((1, side_by_side)):
            waiting = [part for part in self.parts(name, rows)[side] if not self.is_done(name, part, rows)]
            lost = next((part for part in waiting if part.model is not None and not part.model.is_dir()), None)
            if lost is not None:
                raise Waits(f"stages: {name} starts from {lost.model}, which is not there; run eight_minutes first")
            again = {part.name for part in waiting}
            rows = [row for row in rows if row["name"] not in again]
            self._work(name, waiting, rows, slots, deadline)
            if not all(self.is_done(name, part, rows) for part in self.parts(name, rows)[side]):
                break
        complete = all(self.is_done(name, part, rows) for parts in self.parts(name, rows) for part in parts)
        self._write(name, rows, complete)
        if complete and name.startswith("factors"):
            for model in (self.out / name).glob(f"*/{MODEL}"):
                shutil.rmtree(model)
        failed = sum(row["status"] == "failed" for row in rows)
        what = "complete" if complete else "the same command goes on"
        print(f"{name}: {what}; {len(rows)} runs, {failed} failed\n{self.stages[name].table(rows)}", flush=True)
        return complete, bool(failed)

    def _work(self, stage: str, waiting: list[Part], rows: list[dict[str, Any]], slots: int, deadline: float) -> None:
        """Run what is waiting, `slots` at a time, as far as the time goes; `rows` get what has ended."""

        def note(part: Part, status: str, seconds: float, error: str | None, figures: dict[str, Any]) -> None:
            said = error and " ".join(error.replace("|", "/").split())[:300]
            row = {"name": part.name, "status": status, "error": said, "asked": part.asked, "seconds": seconds}
            rows.append(json_types({**row, "commit": self._commit, **figures}))
            print(f"  {part.name}: {said or status}, {seconds:.0f} s", flush=True)
            self._write(stage, rows, complete=False)

        def needed(part: Part) -> float:
            """Seconds of the stage: what runs of the task have taken, where it is a task."""
            alike = [row["seconds"] for row in rows if row["asked"].get("task", "") == part.asked.get("task")]
            return max([part.seconds, *alike])

        def next_job() -> Job | None:
            for part in list(waiting):
                if part.left_out is not None:
                    waiting.remove(part)
                    note(part, "left out", 0.0, part.left_out, {})
                elif time.monotonic() + needed(part) <= deadline:
                    waiting.remove(part)
                    return job(part)
            return None

        def job(part: Part) -> Job:
            folder = self.folder(stage, part.name)
            if not (part.resumes and RunFolder(folder / "run").awaits_evaluation()):
                fresh_folder(folder)
            environ = [f"TORCHINDUCTOR_CACHE_DIR={folder / 'compile-cache'}"]  # empty: everybody pays for compiling
            environ += [f"OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // slots)}"] if slots > 1 else []
            environ += ["DS_ACCELERATOR=cpu"] if self.a.tiny else []
            return Job(
                command=["env", *environ, *map(str, part.command(folder))],
                log=folder / "log.txt",
                watch=lambda seconds: "its stage is over" if time.monotonic() > deadline else None,
                on_end=partial(ended, part, folder),
                grace_seconds=GRACE_SECONDS,
            )

        def ended(part: Part, folder: Path, end: JobEnd) -> None:
            shutil.rmtree(folder / "compile-cache", ignore_errors=True)
            if end.reason is not None:
                print(f"  {part.name}: stopped after {end.seconds:.0f} s, {end.reason}", flush=True)
            elif end.code != 0:
                note(part, "failed", end.seconds, end.error, {})
            else:
                try:
                    figures = part.read(folder)
                except (OSError, ValueError, LookupError, TypeError, RunError) as error:
                    note(part, "failed", end.seconds, str(error), {})
                else:
                    note(part, "ok", end.seconds, None, figures)
            if part.is_used_up is None:
                shutil.rmtree(folder / MODEL, ignore_errors=True)

        run_jobs(devices(self.a.tiny)[:1] * slots, next_job, self.stop)

    def _write(self, name: str, rows: list[dict[str, Any]], complete: bool) -> None:
        """The stage's JSON and table, and all tables in one page."""
        order = {part.name: place for place, part in enumerate(sum(self.parts(name, rows), []))}
        rows = sorted(rows, key=lambda row: order.get(row["name"], len(order)))
        content = {"benchmark": "gpu_hour", "stage": name, "complete": complete, "data": self._of_data(), "rows": rows}
        write_json_atomic(self.out / f"{name}.json", {**content, **self._environment})
        about = f"## {name}\n\n{self.stages[name].about}" + ("" if complete else " (not complete)")
        write_atomic(self.out / f"{name}.md", f"{about}\n\n{self.stages[name].table(rows)}\n")
        pages = [self.out / f"{stage}.md" for stage in self.stages]
        texts = [path.read_text(encoding="utf-8") for path in pages if path.exists()]
        write_atomic(self.out / "gpu_hour.md", "\n".join([f"# A GPU hour\n\n{self._machine}\n", *texts]))

    # ---- what is checked before anything is started ----

    def check(self, names: Sequence[str]) -> None:
        """Refuse what would only be found after minutes. InputError: one line."""
        a = self.a
        if a.data_dir is None:
            raise InputError("data_dir: missing; give the folder that data_prep.blocks has made")
        self.data = DataFolder.open(a.data_dir)
        self.data.columns_for()
        self.data.validation_rows(1)
        if a.pairs_data_dir is not None:
            DataFolder.open(a.pairs_data_dir).columns_for(next_sentence=True)
        if not a.tiny and devices(use_cpu=False) == [None]:
            raise InputError("tiny: no CUDA device is visible here; give --tiny for a rehearsal on the CPU")
        check_writable(self.out)
        tasks = {task for name in names for task in tasks_of(name, self.sizes)}
        if tasks and not a.glue_dir:
            raise InputError(f"glue_dir: missing; give folders that hold {', '.join(sorted(tasks))}")
        for task in sorted(tasks):
            load_task(find_task(task), a.glue_dir).check(do_train=True, do_eval=True, do_predict=False)
        self.grid = read_grid(str(a.grid), None, 1)
        for name in names:
            for part in self.stages[name].alone(self):
                for limit in ("stage_minutes", "total_minutes"):
                    if part.seconds > 60 * (given := getattr(a, limit)):
                        least = math.ceil(part.seconds / 6) / 10
                        raise InputError(
                            f"{limit}: {given:g} is too short for {part.name} of {name}; give {least:g} or more"
                        )
        self._environment = environment()
        self._commit = self._environment.get("git_commit")
        hardware, versions = self._environment["hardware"], self._environment["versions"]
        gpus = ", ".join(gpu["name"] for gpu in hardware.get("gpus") or []) or hardware.get("cpu")
        self._machine = f"{gpus}, torch {versions['torch']}, transformers {versions['transformers']}, {self._commit}"

    # ---- parts ----

    def training(
        self,
        name: str,
        kind: str,
        *,
        changes: dict[str, Any] | None = None,
        flags: dict[str, Any] | None = None,
        profile: str | None = None,
        **options: Any,
    ) -> Part:
        """gpu_8m.yaml, or a variant of it, for the minutes of its `kind`; under a `profile` its host syncs are counted."""
        minutes, sizes = self.sizes.minutes[kind], self.sizes
        flags = {"total_training_time": f"{minutes:g}m", **sizes.training, **(flags or {}), "report_to": "none"}
        pairs = (changes or {}).get("add_nsp") is not None
        data = self.a.pairs_data_dir if pairs else self.a.data_dir
        if pairs and data is None:
            options["left_out"] = "no --pairs_data_dir"

        def command(folder: Path) -> list[str]:
            recipe = ablations.write_variant(RECIPE, changes, folder / "recipe.yaml") if changes else str(RECIPE)
            words = [recipe, "--data_dir", str(data), "--output_dir", str(folder / "run"), "--disable_tqdm", "true"]
            words += [
                "--resume_from_checkpoint",
                "auto",
            ]  # which finds no checkpoint, but an evaluation that is missing
            words += [f"--{key}={value}" for key, value in flags.items()]
            if profile is None:
                return make_launch(self.out / "launch.yaml", self.a.tiny)(TRAINING, words)
            own = self.out / "profiles" / f"{profile}.yaml"
            own.parent.mkdir(exist_ok=True)
            given = yaml.safe_load((ROOT / "accelerate_configs" / own.name).read_text())
            write_atomic(own, yaml.safe_dump({**given, "num_processes": 1, "use_cpu": self.a.tiny}))
            head = ["watch", str(folder / "syncs.json"), *map(str, sizes.syncs)]
            return make_launch(own, self.a.tiny, own)(RUNS, [*head, *words])

        asked = {"recipe": RECIPE.name, "changes": changes or {}, "flags": flags, "profile": profile}
        seconds = 60 * minutes + sizes.spare_seconds
        read = partial(self._trained, watched=profile is not None)
        resumes = profile is None  # what was watched is not on disk
        return Part(name=name, asked=asked, command=command, read=read, seconds=seconds, resumes=resumes, **options)

    def _trained(self, folder: Path, watched: bool) -> dict[str, Any]:
        report = json.loads((folder / "run" / "run_report.json").read_text())
        names = "steps tokens tokens_per_second mfu used_seconds budget_seconds shares passes_over_corpus".split()
        figures = {**{key: report.get(key) for key in names}, **scores(report["evaluation"])}
        figures["weights"] = sha256(folder / MODEL / "model.safetensors")
        if watched:
            assert self.data is not None
            if not figures["loss"] < (guess := math.log(self.data.vocab_size)):
                raise RunError(f"its loss of {figures['loss']} is not below that of a guess, {guess:.2f}")
            figures |= json.loads((folder / "syncs.json").read_text())
        return figures

    def stock(self, rate: float) -> Part:
        """A stock Trainer for three minutes."""
        assert self.data is not None
        seconds = 60 * self.sizes.minutes["three"]
        base = Workload(**self.sizes.stock, block_size=self.data.block_size, sparse=False, compile=False)
        workload, _ = fit(base, str(self.a.data_dir), self.out)
        order = {"workload": asdict(workload), "seconds": seconds, "learning_rate": rate, "seed": 0}
        order |= {"probe_steps": self.sizes.probe_steps, "data_dir": str(self.a.data_dir)}

        def command(folder: Path) -> list[str]:
            given = json.dumps({**order, "result": str(folder / "stock.json")})
            return [sys.executable, str(ROOT / "benchmarks" / "gpu_hour_runs.py"), "stock", given]

        def read(folder: Path) -> dict[str, Any]:
            figures = json.loads((folder / "stock.json").read_text())
            return {**figures, **scores(figures.pop("evaluation"))}

        asked = {key: value for key, value in order.items() if key != "data_dir"}
        needed = seconds + self.sizes.stock_spare_seconds
        return Part(name=f"stock, {short(rate)}", asked=asked, command=command, read=read, seconds=needed)

    def throughput(self, name: str, words: str) -> Part:
        words = f"{words} {self.sizes.throughput}"

        def command(folder: Path) -> list[str]:
            script = str(ROOT / "benchmarks" / "throughput.py")
            return [sys.executable, script, *words.split(), "--output_dir", str(folder)]

        def read(folder: Path) -> dict[str, Any]:
            names = "tokens_per_second ratio_to_stock mfu peak_memory_mib parameters compile_seconds shares".split()
            variants = json.loads((folder / "throughput.json").read_text())["variants"]
            return {"variants": {which: {key: row[key] for key in names} for which, row in variants.items()}}

        needed = self.sizes.throughput_seconds
        return Part(name=name, asked={"flags": words}, command=command, read=read, seconds=needed)

    def fine_tunings(
        self, of: str, model: Path, weights: str, tasks: Sequence[str], rates: Sequence[float], **more: Any
    ) -> list[Part]:
        """Every task at every rate from `model` with every seed, the first seed of all first. `more` are flags."""
        seeds = more.pop("seeds", self.sizes.seeds)
        grid = [(seed, task, rate) for seed in seeds for task in tasks for rate in rates]
        return [self._fine_tuning(of, model, weights, task, rate, seed, more) for seed, task, rate in grid]

    def _fine_tuning(
        self, of: str, model: Path, weights: str, name: str, rate: float, seed: int, more: dict[str, Any]
    ) -> Part:
        task, use_cpu = find_task(name), {"use_cpu": "true"} if self.a.tiny else {}
        own = {"learning_rate": short(rate), **TASK_FLAGS.get(name, {}), **more, **self.sizes.glue, **use_cpu}
        flags = self.grid.configurations(task, {key: str(value) for key, value in own.items()})[0]

        def command(folder: Path) -> list[str]:
            start = self._drawn() if of == RANDOM else model
            words = ["--task_name", name, "--model_name_or_path", str(start), "--output_dir", str(folder / "run")]
            words += ["--glue_dir", *map(str, self.a.glue_dir), "--seed", str(seed), "--report_to", "none"]
            words += ["--do_predict", "false", "--save_model", "false", "--disable_tqdm", "true"]
            words += [f"--{key}={value}" for key, value in flags.items()]
            return [sys.executable, str(ROOT / "finetune_glue.py"), *words]

        def read(folder: Path) -> dict[str, Any]:
            if (result := read_result(folder / "run")) is None:
                raise RunError(f"{folder / 'run'} has no result.json")
            names = ("metrics", "best_epoch", "steps", "data_sha256")
            return {"score": result["headline"]["value"], **{key: result[key] for key in names}}

        asked = {"of": of, "weights": weights, "task": name, "metric": task.headline, "rate": rate, "seed": seed}
        return Part(
            name=f"{of}, {name}, {short(rate)}, seed {seed}",
            asked={**asked, "flags": flags},
            command=command,
            read=read,
            seconds=self.sizes.spare_seconds,
            model=model,
        )

    def _drawn(self) -> Path:
        """The architecture of eight_minutes with random weights."""
        return draw_floor(Model("", None, self.model, ""), self.out, seed=0).folder

    @property
    def model(self) -> Path:
        """What eight_minutes has trained, or is to train."""
        return self.folder("eight_minutes", RECIPE.stem) / MODEL


def find(rows: list[dict[str, Any]], part: Part) -> dict[str, Any] | None:
    """The row of a part, asked as it is asked now."""
    asked = json_types(part.asked)
    return next((row for row in rows if row["name"] == part.name and row["asked"] == asked), None)


def short(rate: float) -> str:
    """`5e-4`."""
    return f"{rate:.0e}".replace("e-0", "e-")


def scores(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {key: evaluation[key] for key in ("loss", "accuracy", "bits_per_byte")}


# ---- the stages ----


def make_stages(a: argparse.Namespace) -> dict[str, Stage]:
    """All of them, in their order."""
    minute = "gpu_8m.yaml for a minute under each profile; host syncs of the steps watched"
    three = "bits per byte after three minutes on the same text; the stock Trainer's set-up is not counted"
    rates = "dev scores in points of 100, median of the seeds (lowest, highest), by rate of fine-tuning"
    stages = {
        "check": Stage(minute, 5.5, _check, table=_check_table),
        "throughput": Stage("bf16, dropout 0.1 on both sides, ours compiled", 5, _throughput, table=_speed_table),
        "three_minutes_1": Stage(three, 8, partial(_three_minutes, 0), table=_training_table),
        "three_minutes_2": Stage(three, 8, partial(_three_minutes, 1), table=_training_table),
        "eight_minutes": Stage("gpu_8m.yaml", 9, _eight_minutes, table=_training_table),
        "glue_1": Stage(rates, 7, side_by_side=partial(_glue, 0), table=_glue_table),
        "glue_2": Stage(rates, 7, side_by_side=partial(_glue, 1), table=_glue_table),
        "glue_3": Stage(
            f"{rates}; random weights of the same architecture", 9, side_by_side=_floor, table=_glue_table
        ),
    }
    variants = {"gpu_8m": {}, **a.variants}
    names = list(variants)
    for number, at in enumerate(range(0, len(names), FACTORS_PER_STAGE), start=1):
        chosen = {name: variants[name] for name in names[at : at + FACTORS_PER_STAGE]}
        about = "two minutes each of gpu_8m.yaml and variants, one seed; then dev scores by task and rate"
        stages[f"factors_{number}"] = Stage(
            about,
            9,
            partial(_factors, f"factors_{number}", chosen),
            partial(_factor_scores, f"factors_{number}", chosen),
            _factor_table,
        )
    return stages


def tasks_of(stage: str, sizes: Sizes) -> Sequence[str]:
    """The GLUE tasks that a stage needs."""
    if stage.startswith("factors"):
        return sizes.factor_tasks
    return {"glue_1": sizes.tasks[0], "glue_2": sizes.tasks[1], "glue_3": sizes.floor_tasks}.get(stage, ())


def _check(hour: Hour) -> list[Part]:
    def left_out(profile: str) -> str | None:
        missing = profile.startswith("zero") and importlib.util.find_spec("deepspeed") is None
        return "deepspeed is not installed" if missing else None

    quiet = {"validate_every": None, "logging_steps": 10_000}  # both make the host wait, and may
    return [
        hour.training(name, "check", changes=quiet, flags=flags, profile=profile, left_out=left_out(profile))
        for name, (profile, flags) in PROFILES.items()
    ]


def _throughput(hour: Hour) -> list[Part]:
    return [hour.throughput(name, words) for name, words in hour.sizes.shapes.items()]


def _three_minutes(half: int, hour: Hour) -> list[Part]:
    ours = [hour.training("gpu_8m", "three")] if half == 0 else []
    return [*ours, *map(hour.stock, hour.sizes.stock_rates[half])]


def _eight_minutes(hour: Hour) -> list[Part]:
    def is_used_up(_: list[dict[str, Any]]) -> bool:
        stages = [(name, hour.rows(name)) for name in ("glue_1", "glue_2", "glue_3")]
        return all(hour.is_done(name, part, rows) for name, rows in stages for part in hour.parts(name, rows)[1])

    return [hour.training(RECIPE.stem, "eight", is_used_up=is_used_up)]


def _glue(half: int, hour: Hour, _: list[dict[str, Any]]) -> list[Part]:
    made = next((row["weights"] for row in hour.rows("eight_minutes") if row["status"] == "ok"), "")
    return hour.fine_tunings(RECIPE.stem, hour.model, made, hour.sizes.tasks[half], hour.sizes.rates)


def _floor(hour: Hour, _: list[dict[str, Any]]) -> list[Part]:
    return hour.fine_tunings(RANDOM, hour.model, "drawn with seed 0", hour.sizes.floor_tasks, hour.sizes.rates)


def _factors(stage: str, variants: dict[str, dict[str, Any]], hour: Hour) -> list[Part]:
    def is_used_up(name: str, rows: list[dict[str, Any]]) -> bool:
        scored = _factor_scores(stage, {name: variants[name]}, hour, rows)
        return all(hour.is_done(stage, part, rows) for part in scored)

    return [
        hour.training(name, "factor", changes=changes, is_used_up=partial(is_used_up, name))
        for name, changes in variants.items()
    ]


def _factor_scores(
    stage: str, variants: dict[str, dict[str, Any]], hour: Hour, rows: list[dict[str, Any]]
) -> list[Part]:
    """Of the variants that have been trained."""
    more = {"seeds": hour.sizes.seeds[:1], "max_train_samples": hour.sizes.factor_rows}
    tasks, rates = hour.sizes.factor_tasks, hour.sizes.factor_rates
    trained = [row for row in rows if row["name"] in variants and row["status"] == "ok"]
    parts = []
    for row in trained:
        model = hour.folder(stage, row["name"]) / MODEL
        parts += hour.fine_tunings(row["name"], model, row["weights"], tasks, rates, **more)
    return parts


# ---- tables ----


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _rows_table(head: Sequence[str], rows: list[dict[str, Any]], cells: Callable[[dict[str, Any]], list[str]]) -> str:
    """A line for each row; of a run without figures its error in the second column."""
    blank = [""] * (len(head) - 2)
    return markdown(
        head,
        [
            [row["name"], *(cells(row) if row["status"] == "ok" else [f"{row['status']}: {row['error']}", *blank])]
            for row in rows
        ],
    )


def _check_table(rows: list[dict[str, Any]]) -> str:
    def cells(row: dict[str, Any]) -> list[str]:
        syncs = f"{row['syncs']} in {row['watched_steps']} steps" if row["on_gpu"] else "no GPU, not counted"
        where = ", ".join(f"{place} ({count})" for place, count in row["where"].items())
        return [number(row["loss"], ".3f"), number(row["tokens_per_second"], ",.0f"), syncs, where]

    return _rows_table(["profile", "loss", "tokens/s", "host syncs", "where"], rows, cells)


def _speed_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if row["status"] != "ok":
            lines.append([row["name"], f"{row['status']}: {row['error']}", *[""] * 5])
        for name, variant in row.get("variants", {}).items():
            size = f"{row['name']}, {variant['parameters'] / 1e6:.0f} M"
            tokens, ratio = ("{median:{0}} ({min:{0}}, {max:{0}})",) * 2
            tokens = tokens.format(",.0f", **variant["tokens_per_second"])
            ratio = ratio.format(".2f", **variant["ratio_to_stock"])
            memory = f"{variant['peak_memory_mib'] / 1024:.1f} GiB"
            lines.append(
                [size, name, tokens, ratio, f"{variant['mfu']:.1%}", memory, f"{variant['compile_seconds']:.0f} s"]
            )
    return markdown(["model", "", "tokens/s (lowest, highest)", "x stock", "MFU", "memory", "compiling"], lines)


def _training_table(rows: list[dict[str, Any]]) -> str:
    def cells(row: dict[str, Any]) -> list[str]:
        text = [
            number(row["bits_per_byte"], ".3f"),
            number(row["accuracy"], ".1%"),
            number(row["tokens"] / 1e6, ",.1f"),
        ]
        text += [number(row["tokens_per_second"], ",.0f"), number(row.get("mfu"), ".1%")]
        return [*text, f"{row['used_seconds']:.1f} of {number(row['budget_seconds'], 'g')}"]

    head = ["run", "bits per byte", "masked tokens right", "million tokens", "tokens/s", "MFU", "seconds used"]
    return _rows_table(head, rows, cells)


def _cell(rows: list[dict[str, Any]]) -> str:
    """The scores of seeds; or the error of the first that has failed, where none has finished."""
    found = [100 * row["score"] for row in rows if row["status"] == "ok"]
    if not found:
        return f"{rows[0]['status']}: {rows[0]['error']}" if rows else ""
    spread = f" ({min(found):.1f}, {max(found):.1f})" if len(found) > 1 else ""
    return f"{statistics.median(found):.1f}{spread}" + (", some failed" if len(found) < len(rows) else "")


def _glue_table(rows: list[dict[str, Any]]) -> str:
    rates = sorted({row["asked"]["rate"] for row in rows})
    lines = []
    for key in dict.fromkeys((row["asked"]["of"], row["asked"]["task"], row["asked"]["metric"]) for row in rows):
        own = [row for row in rows if key == tuple(row["asked"][name] for name in ("of", "task", "metric"))]
        cells = [_cell([row for row in own if row["asked"]["rate"] == rate]) for rate in rates]
        lines.append([key[0], f"{key[1]}, {key[2]}", str(len({row["asked"]["seed"] for row in own})), *cells])
    return markdown(["model", "task", "seeds", *map(short, rates)], lines)


def _factor_table(rows: list[dict[str, Any]]) -> str:
    tuned = [row for row in rows if "task" in row["asked"]]
    columns = sorted({(row["asked"]["task"], row["asked"]["rate"]) for row in tuned}, reverse=True)
    lines = []
    for row in (row for row in rows if "task" not in row["asked"]):
        if row["status"] != "ok":
            lines.append([row["name"], f"{row['status']}: {row['error']}", *[""] * (1 + len(columns))])
            continue
        own = [other for other in tuned if other["asked"]["of"] == row["name"]]
        cells = [
            _cell([one for one in own if (one["asked"]["task"], one["asked"]["rate"]) == column]) for column in columns
        ]
        lines.append([row["name"], number(row["bits_per_byte"], ".3f"), number(row["tokens"] / 1e6, ",.1f"), *cells])
    return markdown(
        ["variant", "bits per byte", "million tokens", *(f"{task}, {short(rate)}" for task, rate in columns)], lines
    )


# ---- the command ----


def chosen(a: argparse.Namespace, stages: dict[str, Stage]) -> list[str]:
    """The stages that were asked for, each once."""
    names = [*a.stages, *a.stage]
    names = list(dict.fromkeys(name for given in names for name in (stages if given == "all" else [given])))
    if unknown := [name for name in names if name not in stages]:
        raise InputError(f"stages: {unknown[0]!r} is none of all, {', '.join(stages)}")
    if not names:
        raise InputError(f"stages: none is given; give all, or some of {', '.join(stages)}")
    return names


def gpu_hour(argv: Sequence[str] | None, stop: StopRequest, at_exit: ExitStack) -> int:
    """The stages that are asked for, as far as the time goes. Returns the exit code."""
    a = parse(argv)
    hour = Hour(a, stop)
    if a.list:
        for name, stage in hour.stages.items():
            there = hour.rows(name)
            state = f"{len(there)} runs are there" if there else "nothing is there"
            print(f"{name:16} {stage.minutes:4g} min  {state}; {stage.about}")
        return DONE
    names = chosen(a, hour.stages)
    hour.check(names)
    at_exit.enter_context(hold_folder(hour.out))
    complete, failed, waiting = True, False, list[Waits]()
    for name in names:
        if time.monotonic() >= hour.end:
            complete = False
            break
        try:
            ended = hour.run(name)
        except Waits as error:  # which the other stages may not need
            waiting.append(error)
            continue
        complete, failed = complete and ended[0], failed or ended[1]
    print(f"all tables in {hour.out / 'gpu_hour.md'}", flush=True)
    if waiting and complete:  # else the same command may yet make them
        raise waiting[0]
    return RESUMABLE if not complete else FAILED if failed else DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_script(gpu_hour, argv)


if __name__ == "__main__":
    sys.exit(main())
