"""Which runs a suite has, what they are called, how time is divided, what is made of their scores: without a single run."""

import json
import sys
import time

import pytest

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError
from budget_trainer.core.jobs import FINE_TUNING
from budget_trainer.glue import plan as plan_module
from budget_trainer.glue.arguments import KEYS, parse_request
from budget_trainer.glue.plan import PlannedRun, make_plan, read_grid, share
from budget_trainer.glue.suite import _Runner
from budget_trainer.glue.tasks import TASKS
from tests.conftest import ROOT, words
from tests.glue.conftest import SHORT

GRIDS = sorted((ROOT / "recipes" / "glue").glob("*.yaml"))


@pytest.fixture
def request_of(options):
    def call(**changes):
        flags = {key: value for key, value in {**options, **changes}.items() if value is not None}
        return parse_request(words(flags))

    return call


def names(plan):
    return list(dict.fromkeys(run.task.name for run in plan.runs))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_grid_is_taken(path, request_of):
    request = request_of(grid=path, task_name="all", **dict.fromkeys(SHORT))
    plan = make_plan(request)
    assert set(names(plan)) == {"CoLA", "SST-2", "MRPC", "STS-B", "MNLI", "RTE", "WNLI"}
    assert set(plan.absent) == {"QQP", "QNLI"} and plan.covered == {"AX": "MNLI"}
    if path.stem == "paper":  # as the paper has it: five seeds of each
        assert {run.seed for run in plan.runs} == {1, 2, 3, 4, 5}
        assert [len(plan.of(name)) for name in ("RTE", "MNLI")] == [30, 10]


def test_the_command_line_wins_over_the_grid(tmp_path):
    path = tmp_path / "grid.yaml"
    grid = "grid: {learning_rate: [1e-5, 2e-5], max_grad_norm: [1, 2]}"
    path.write_text(f"seeds: [1]\nflags: {{weight_decay: 0.1}}\n{grid}\n")
    grid = read_grid(str(path), "7,8", 42)
    assert grid.seeds == [7, 8]
    assert len(grid.configurations(TASKS["RTE"], {})) == 4
    rest = {"learning_rate": "3e-5", "weight_decay": "0"}
    found = grid.configurations(TASKS["RTE"], rest)
    assert found == [{**rest, "max_grad_norm": "1"}, {**rest, "max_grad_norm": "2"}]
    assert read_grid(None, None, 42).configurations(TASKS["RTE"], {}) == [{}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: [1]", "'seed' is unknown; it has seeds, flags, grid, tasks"),
        ("flags: {learning_rat: 1}", "learning_rat: unknown key (grid: "),
        ("flags: {seed: 1}", "'seed' cannot stand there"),
        ("flags: {learning_rate: [1, 2]}", "learning_rate has several values; put it under grid"),
        ("flags: 3", "flags is not a mapping; write"),
        ("grid: {learning_rate: 1}", "learning_rate is no list of values; write learning_rate: [a, b]"),
        ("grid: [1]", "grid is not a mapping; write"),
        ("tasks: {MPRC: {flags: {}}}", "task_name: 'MPRC' is no task of GLUE; did you mean MRPC?"),
        ("tasks: {MRPC: {seeds: [1]}}", "tasks: MRPC has to be a mapping of flags and grid"),
        ("seeds: [1, 1]", "seeds: ['1', '1'] are not different whole numbers from 0 on; write 1,2"),
        ("seeds: [one]", "seeds: ['one'] are not different whole numbers"),
        ("[", "is not YAML ("),
    ],
)
def test_a_grid_that_is_none(tmp_path, text, expected):
    path = tmp_path / "grid.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InputError) as error:
        read_grid(str(path), None, 42)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_value_of_a_grid_is_checked_before_anything_runs(request_of, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("grid: {learning_rate: [1e-5, fast]}\n")
    with pytest.raises(InputError, match="learning_rate: 'fast' is not a number"):
        make_plan(request_of(grid=path, learning_rate=None))


def test_the_intermediate_task_comes_first(request_of):
    plan = make_plan(request_of(task_name="RTE,STS-B,WNLI", intermediate_task="mnli", seeds="1,2"))
    assert names(plan)[0] == "MNLI" == plan.intermediate
    assert {run.task.name for run in plan.runs if run.base == "MNLI"} == {"RTE", "STS-B"}
    with pytest.raises(InputError, match="^intermediate_task: .*QNLI.*; or leave it out, and all start from"):
        make_plan(request_of(task_name="RTE", intermediate_task="QNLI"))


def test_ax_needs_mnli_and_some_task_is_left(request_of):
    plan = make_plan(request_of(task_name="AX,RTE"))
    assert plan.absent == {"AX": "task_name: AX is answered by the model of MNLI, which is not run"}
    with pytest.raises(InputError, match="task_name: no task can be run .*QNLI/train.tsv is not in"):
        make_plan(request_of(task_name="QNLI", seeds="1,2"))


RUN = {
    "task": TASKS["RTE"],
    "configuration": 0,
    "flags": {"learning_rate": "1e-5"},
    "seed": 1,
    "base": None,
    "weight": 1.0,
}
MADE_FROM = {"model": "m", "data": "d", "total_training_time": None, "keeps_model": False, "device": "cpu"}


def test_what_a_run_is_made_from_names_it(monkeypatch):
    first = PlannedRun(**RUN).key(**MADE_FROM)
    assert first == PlannedRun(**{**RUN, "configuration": 5, "weight": 2.0}).key(**MADE_FROM) and len(first) == 16
    changes = [{"seed": 2}, {"flags": {"learning_rate": "2e-5"}}, {"task": TASKS["WNLI"]}]
    keys = {PlannedRun(**{**RUN, **change}).key(**MADE_FROM) for change in changes}
    changes = [{"model": "n"}, {"data": "e"}, {"total_training_time": "1h"}, {"keeps_model": True}, {"device": "cuda"}]
    keys |= {PlannedRun(**RUN).key(**{**MADE_FROM, **change}) for change in changes}
    monkeypatch.setattr(plan_module, "RESULTS_VERSION", plan_module.RESULTS_VERSION + 1)  # as after a change of scores
    keys.add(PlannedRun(**RUN).key(**MADE_FROM))
    assert len({first, *keys}) == 10


@pytest.mark.parametrize(
    ("weights", "overhead", "remaining", "running", "devices", "expected"),
    [
        ([1.0, 1.0], 10.0, 100.0, [], 1, 50.0),
        ([1.0, 3.0], 10.0, 100.0, [], 1, 30.0),  # 10 each, 80 as 1 to 3
        ([5.0], 10.0, 100.0, [], 1, 100.0),
        ([1.0, 9.0], 10.0, 10.0, [], 1, 5.0),  # not even the overhead: equal parts
        ([1.0], 10.0, 0.0, [], 1, 0.0),
        ([1.0], 10.0, -1.0, [], 2, 0.0),
        ([1.0] * 5, 0.0, 100.0, [], 4, 80.0),
        ([1.0] * 5, 0.0, 100.0, [30.0, 300.0, -5.0], 4, 54.0),  # 400 - 30 - 100
        ([1.0, 1.0], 10.0, 100.0, [], 4, 100.0),  # no longer than there is
    ],
)
def test_a_share_of_the_time(weights, overhead, remaining, running, devices, expected):
    assert share(weights, overhead, remaining, running, devices) == pytest.approx(expected)


def test_a_bare_number_is_hours_and_flags_of_the_suite_make_one(request_of):
    assert request_of(total_training_time="2").total_seconds == 7200.0
    assert not request_of().is_suite
    for changes in ({"seeds": "1"}, {"task_name": "CoLA,RTE"}, {"intermediate_task": "MNLI"}):
        assert request_of(**changes).is_suite
    assert {"learning_rate", "max_seq_length"} <= set(request_of().own_flags()) <= KEYS
    assert not {"seed", "glue_dir", "output_dir", "use_cpu"} & set(request_of(seed=3).own_flags())


RUN_SCRIPT = """
import json, os, sys, time
words = sys.argv[2:]
folder = words[words.index("--output_dir") + 1]
device = os.environ["CUDA_VISIBLE_DEVICES"]
begin = time.time()
time.sleep(1.5 if device == "0" else 0.1)
with open(os.path.join(sys.argv[1], "said"), "a") as said:
    said.write(json.dumps([device, begin, time.time(), words[words.index("--total_training_time") + 1]]) + "\\n")
result = {"format": 1, "headline": {"value": 0.5}, "metrics": {}, "rows": {}, "official_rows": {"dev": True}}
result |= {"configuration": {"learning_rate": 5e-5}}
result |= {"best_epoch": 1.0, "steps": 5, "predictions": {}, "seconds": {"total": 0.1}}
open(os.path.join(folder, "result.json"), "w").write(json.dumps(result))
"""


def test_one_run_on_each_device_at_a_time(request_of, tmp_path):
    def launch(module, line):
        assert module == FINE_TUNING
        return [sys.executable, "-c", RUN_SCRIPT, str(tmp_path), *line]

    def runner():
        rest = StopRequest(), (tmp_path, "digest"), ["0", "1"], launch
        return _Runner(request, make_plan(request), BudgetClock(900.0), *rest)

    def said():
        return sorted(json.loads(line) for line in (tmp_path / "said").read_text().splitlines())

    (tmp_path / "grid.yaml").write_text("grid: {learning_rate: [1e-3, 2e-3, 3e-3]}\n")
    flags = {"task_name": "RTE,CoLA", "grid": tmp_path / "grid.yaml", "learning_rate": None, "seeds": "7"}
    request = request_of(**flags, total_training_time="900s")
    first = runner()
    first.work()
    runs = said()
    assert len(runs) == 6 and {device for device, *_ in runs} == {"0", "1"}
    for device in "01":
        times = [(begin, end) for name, begin, end, _ in runs if name == device]
        assert all(end <= begin for (_, end), (begin, _) in zip(times, times[1:], strict=False)), "two on one device"
    assert all(30 < float(seconds.removesuffix("s")) < 899 for *_, seconds in runs), runs
    found = first.results()
    rates = [one.flags["learning_rate"] for one in found["CoLA"].configurations]
    assert rates == ["1e-3", "2e-3", "3e-3"], "in the order of the grid, though the first has ended last"
    assert sum(len(task.finished) for task in found.values()) == 6
    runner().work()
    assert len(said()) == 6, "what is finished is not begun again"


def test_runs_that_fail_are_noted_and_those_without_time_not_begun(request_of, tmp_path):
    request = request_of(task_name="RTE,CoLA", seeds="7", total_training_time="900s")
    late = [0.0]
    clock = BudgetClock(900.0, time_fn=lambda: time.monotonic() + late[0])

    def errors():
        command = [sys.executable, "-c", "print('error: no memory'); raise SystemExit(1)"]
        model = (tmp_path, "digest")
        runner = _Runner(request, make_plan(request), clock, StopRequest(), model, [None], lambda *line: command)
        runner.work()
        return [task.configurations[0].runs[0].error for task in runner.results().values()]

    assert errors() == ["no memory"] * 2
    late[0] = 898.0
    assert errors() == ["total_training_time is over; give more, or fewer runs"] * 2
