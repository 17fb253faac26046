"""benchmarks/board.py: what makes a row, what is refused, and the page that is in the repository."""

import copy
import json
import shutil
import subprocess
from importlib.metadata import version

import pytest

from benchmarks import board
from budget_trainer.core.errors import InputError
from tests.conftest import ROOT, words

TWINS = "twin_probability: float = _masking(\n        0.3,"
RECIPE = "learning_rate: 2e-3\ncurve: linear\nbf16: true\nreport_to: none\nmodel_config:\n  rope: {theta: 100}\n"
COMMAND = "accelerate launch train_mlm.py recipes/tiny.yaml --total_training_time 3m --seed 0"
ARGUMENTS = "budget_trainer/config/arguments.py"


def git(folder, *given):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *given], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def use_repository(folder, monkeypatch):
    """Make `folder` the repository that board.py looks at, with recipes/tiny.yaml and today's flags; its commit."""
    for name in ("recipes", "docs", "benchmarks/results", "budget_trainer/config"):
        (folder / name).mkdir(parents=True)
    (folder / "recipes" / "tiny.yaml").write_text(RECIPE)
    shutil.copy(ROOT / ARGUMENTS, folder / ARGUMENTS)
    git(folder, "init", "--quiet")
    git(folder, "add", "recipes", ARGUMENTS)
    git(folder, "commit", "--quiet", "--message", "a recipe")
    monkeypatch.setattr(board, "ROOT", folder)
    monkeypatch.setattr(board, "RESULTS", folder / "benchmarks" / "results")
    monkeypatch.setattr(board, "PAGE", folder / "docs" / "board.md")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def commit(tmp_path, monkeypatch):
    return use_repository(tmp_path / "repository", monkeypatch)


def report(commit, seed=0, **changes):
    """A run of recipes/tiny.yaml in 3 minutes on two cores, as it writes run_report.json."""
    recipe = {"recipe": "/home/me/repository/recipes/tiny.yaml", "learning_rate": 0.002, "curve": "linear"}
    recipe |= {"bf16": False, "report_to": [], "model_config": '{"rope": {"theta": 100}}', "use_cpu": True}
    recipe |= {"total_training_time": "3m", "adam_beta2": 0.98, "twin_probability": 0.0, "unigram_bias": True}
    recipe |= {"max_steps": 2**40, "dataloader_num_workers": 0, "activation_checkpointing": False, "local_rank": -1}
    made = {
        "budget_seconds": 180.0,
        "used_seconds": 179.5,
        "overrun_seconds": 0.0,
        "shares": {"setup": 9.0, "compile": 0.0, "train": 160.0, "data_wait": 0.5, "evaluate": 8.0, "save": 2.0},
        "tokens_per_second": 12_000.0,
        "evaluation": {"loss": 4.0, "bits_per_byte": 1.5 + seed / 10, "complete": True},
        "world_size": 1,
        "parameters": 9_028_928,
        "recipe": recipe
        | {"seed": seed, "data_dir": "/home/me/data", "output_dir": f"/home/me/out/{seed}", "plan": None},
        "data": {"validation_fraction": 0.01, "validation_rows": 1964, "sources": [{"name": "wiki.txt"}]},
        "hardware": {"cpu": "a CPU", "cores": 2, "memory_gib": 23.5, "gpus": []},
        "git_commit": commit,
    }
    return made | changes


def result(commit, *reports):
    runs = [{"report": one, "downstream": {}} for one in reports or [report(commit), report(commit, 1)]]
    return {"format": 1, "track": "cpu_3m", "command": COMMAND, "protocol": {}, "runs": runs}


def test_the_page_in_the_repository_is_what_the_results_make():
    if not (ROOT / ".git").exists():
        pytest.skip("the commits of the results are looked up in the repository")
    assert board.PAGE.read_text() == board.page(board.read_results()), "run `python benchmarks/board.py`"


def test_a_row(commit):
    text = board.page({"tiny.json": result(commit)})
    assert text.count("No row yet.") == len(board.TRACKS) - 1
    row = (
        "| [`tiny.yaml`](../benchmarks/results/tiny.json) | 1 % of wiki.txt, 1,964 blocks | 1.550 (1.500 to 1.600) |  "
    )
    row += "|  |  | 9.0 M | 12,000 (12,000 to 12,000) | 179.5 (179.5 to 179.5) s | 2 cores of a CPU, 23.5 GiB | "
    assert f"{row}{commit[:7]} | 0, 1 |" in text and f"tiny.json: {COMMAND}" in text
    assert text.endswith(board.BEFORE.read_text())


def test_the_best_of_a_held_out_text_comes_first(commit):
    other = {"validation_fraction": 0.0, "validation_text": "books.txt", "sources": [{"name": "wiki.txt"}]}
    rows = {"a.json": [report(commit, 2)], "b.json": [report(commit)], "c.json": [report(commit, 3, data=other)]}
    text = board.page({name: result(commit, *reports) for name, reports in rows.items()})
    found = [line.partition("results/")[2][:6] for line in text.splitlines() if line.startswith("| [`tiny.yaml`]")]
    assert found == ["b.json", "a.json", "c.json"]


GPU = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.2}
CARD = {"name": "NVIDIA GeForce RTX 4090", "memory_gib": 23.6}
OLD = {"name": "TITAN V", "memory_gib": 11.8}


@pytest.mark.parametrize(
    ("track", "gpus", "changes", "fits"),
    [
        ("cpu_3m", [], {"cores": 2}, True),
        ("cpu_3m", [], {"cores": 4}, False),
        ("cpu_3m", [GPU], {"use_cpu": False}, False),
        ("cpu_3m", [GPU], {}, True),  # which did not take part
        ("h100_8m", [GPU], {"use_cpu": False}, True),
        ("h100_8m", [GPU], {}, False),
        ("h100_8m", [GPU], {"use_cpu": False, "world_size": 2}, False),
        ("h100_8m", [GPU] * 2, {"use_cpu": False}, True),  # one process takes one
        ("h100_8m", [GPU, CARD], {"use_cpu": False}, False),
        ("h100_8m", [], {"use_cpu": False}, False),
        ("24gb_24h", [CARD], {"use_cpu": False}, True),
        ("24gb_24h", [GPU], {"use_cpu": False}, False),
        ("24gb_24h", [OLD], {"use_cpu": False}, False),
        ("paper", [OLD] * 8, {"use_cpu": False, "world_size": 8}, True),
        ("paper", [CARD] * 8, {"use_cpu": False, "world_size": 8}, False),
    ],
)
def test_the_machine_of_a_track(track, gpus, changes, fits):
    made = report("a" * 40)
    made["hardware"] |= {"gpus": gpus, "cores": changes.get("cores", 2)}
    made["recipe"]["use_cpu"] = changes.get("use_cpu", True)
    made["world_size"] = changes.get("world_size", 1)
    assert board.TRACKS[track].fits(made) is fits


def set_in(value, path, new):
    """`value` with another value at `path`, keys with dots between them."""
    *parents, last = path.split(".")
    for key in parents:
        value = value[int(key) if key.isdecimal() else key]
    value[last] = new


FAULTS = [
    ("format", 2, "format: 2, this version reads 1; "),
    ("track", "cpu_5m", "track: 'cpu_5m' is none of cpu_3m, "),
    ("track", "cpu_10m", "budget_seconds: 180.0 is not the 600 of the track; "),
    ("runs", [], "result: not what `board.py add` writes "),
    ("runs.0.report.shares", None, "result: not what `board.py add` writes "),
    ("runs.0.report.shares.train", 161.0, "shares: they add up to 180.50 s where used_seconds is 179.50; "),
    ("runs.1.report.shares.train", 159.9, "shares: they add up to 179.40 s where used_seconds is 179.50; "),
    ("runs.0.report.used_seconds", float("nan"), "shares: they add up to 179.50 s where used_seconds is nan; "),
    ("runs.0.report.overrun_seconds", 2.0, "used_seconds: 179.50 of 180 s, so the budget was overrun; "),
    ("runs.0.report.evaluation", None, "evaluation: not complete; "),
    ("runs.0.report.evaluation.complete", False, "evaluation: not complete; "),
    ("runs.0.report.hardware.cores", 64, "hardware: 64 cores of a CPU, 23.5 GiB is not the machine of track cpu_3m "),
    ("runs.0.report.git_commit", None, "git_commit: None is no commit of an unchanged checkout; "),
    ("runs.0.report.git_commit", f"{'a' * 40}-dirty", f"git_commit: {'a' * 40}-dirty is no commit of an unchanged "),
    ("runs.0.report.git_commit", "a" * 40, f"git_commit: {'a' * 40} is not in this repository; "),
    ("runs.0.report.recipe.recipe", "recipes/other.yaml", "recipe: recipes/other.yaml is not in the repository at "),
    ("runs.0.report.recipe.recipe", "my/tiny.yaml", "recipe: my/tiny.yaml is no file of recipes/; "),
    ("runs.0.report.recipe.recipe", None, "recipe: None is no file of recipes/; "),
    ("runs.0.report.recipe.learning_rate", 0.003, "recipe: learning_rate was 0.003 in the run; tiny.yaml at "),
    ("runs.0.report.recipe.curve", None, "recipe: curve was None in the run; tiny.yaml at "),
    ("runs.1.report.recipe.twin_probability", 0.3, "recipe: twin_probability was 0.3 in the run; tiny.yaml at "),
    ("runs.0.report.recipe.model_name_or_path", "mine", "recipe: model_name_or_path was 'mine' in the run; "),
    ("runs.0.report.recipe.model_config", '{"rope": {"theta": 10}}', "recipe: model_config was "),
    ("command", "train_mlm.py recipes/mine.yaml", "command: it does not call train_mlm.py with tiny.yaml; "),
    (
        "command",
        "train_mlm.py recipes/tiny_glue.yaml --x tiny",
        "command: it does not call train_mlm.py with tiny.yaml; ",
    ),
    ("command", "train.py recipes/tiny.yaml", "command: it does not call train_mlm.py with tiny.yaml; "),
    ("command", "train_mlm.py 'recipes/tiny.yaml", "result: not what `board.py add` writes "),
    ("command", None, "result: not what `board.py add` writes "),
    ("protocol", [], "result: not what `board.py add` writes "),
    ("runs.0.report.parameters", None, "result: not what `board.py add` writes "),
    ("runs.0.report.parameters", 10**400, "result: not what `board.py add` writes "),
    ("runs.1.report.tokens_per_second", None, "result: not what `board.py add` writes "),
    ("runs.0.report.hardware", {"cpu": "a CPU", "cores": 2, "gpus": []}, "result: not what `board.py add` writes "),
    ("runs.1.report.recipe.seed", 0, "seed: 0, 0 are not different; "),
    ("runs.1.report.recipe.adam_beta1", 0.95, "adam_beta1: None in one run, 0.95 in another; "),
    ("runs.1.report.hardware.cpu", "another", "hardware: {'cpu': 'a CPU', "),
    ("runs.0.report.data", {"sources": []}, "data: the report names no held-out text; "),
    ("runs.0.downstream", {"MNLI": {"median": 50.0}}, "downstream: the runs were not scored on the same tasks; "),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), FAULTS, ids=[f"{path}-{value}"[:60] for path, value, _ in FAULTS]
)
def test_a_fault_is_one_line_that_names_the_file(path, value, message, commit, capsys):
    faulty = copy.deepcopy(result(commit))
    set_in(faulty, path, value)
    (board.RESULTS / "mine.json").write_text(json.dumps(faulty))
    assert board.main([]) == 2 and not board.PAGE.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: mine.json: {message}")


def test_a_budget_that_was_overrun(commit):
    faulty = report(commit, used_seconds=181.0)
    faulty["shares"]["train"] += 1.5
    with pytest.raises(InputError, match="used_seconds: 181.00 of 180 s, so the budget was overrun; run again"):
        board.check(result(commit, faulty))


@pytest.mark.parametrize(
    ("flags", "changes", "wrong"),
    [
        ("--learning_rate 3e-3", {"learning_rate": 0.003}, None),
        ("--learning-rate=0.003", {"learning_rate": 0.003}, None),
        ("--learning_rate 3e-3", {"learning_rate": 0.01}, "learning_rate"),
        ("--learning_rate 3e-3", {}, "learning_rate"),
        ("--no_unigram_bias", {"unigram_bias": False}, None),
        ("--no-unigram-bias --unigram_bias false", {"unigram_bias": False}, None),
        ("--no_unigram_bias", {}, "unigram_bias"),
        ("--report_to tensorboard", {"report_to": ["tensorboard"]}, None),
        ('--model_config \'{"rope": {"theta": 1e1}}\'', {"model_config": '{"rope": {"theta": 10}}'}, None),
        ("--model_name_or_path ~/out/final", {"model_name_or_path": "/home/me/out/final"}, None),
        ("--model_name_or_path ~/out/final", {"model_name_or_path": "final"}, None),  # as it is published
        ("--model_name_or_path ~/out/final", {"model_name_or_path": "/home/me/out/other"}, "model_name_or_path"),
        ("--max_steps 50", {"max_steps": 50}, None),
        ("", {"max_steps": 50}, "max_steps"),
        ("--max_steps 50", {}, "max_steps"),
        ("--warmup 1", {}, "warmup"),
        ("--twin_probability 0.3 > log.txt 2>&1", {"twin_probability": 0.3}, None),
        ("--batch_size_curve 0.5@0", {"batch_size_curve": "0.5@0", "gradient_accumulation_steps": 2}, None),
        ("--data_dir elsewhere --output_dir out/x --seed 3", {"run_name": "x"}, None),
        ("", {"bf16": True, "torch_compile": True, "torch_compile_backend": "inductor"}, None),
    ],
)
def test_flags_are_what_recipe_command_and_defaults_give(flags, changes, wrong, commit):
    changed = report(commit, versions={"transformers": version("transformers")})
    changed["recipe"] |= {"recipe": "tiny.yaml", **changes}  # also of an edited copy: the name alone proves nothing
    row = {**result(commit, changed), "command": f"{COMMAND} {flags}"}
    if wrong is None:
        board.check(row)
        return
    with pytest.raises(
        InputError, match=f"^recipe: {wrong} was .* in the run; tiny.yaml at {commit[:7]}, command and "
    ):
        board.check(row)


@pytest.mark.parametrize(
    "launcher",
    [
        "cd /home/me/train_mlm && accelerate launch --learning_rate 7 \\\n train_mlm.py recipes/tiny.yaml",
        "python -m accelerate.commands.launch --config_file cpu.yaml -m budget_trainer.train_mlm tiny",
        "OMP_NUM_THREADS=2 /venv/bin/budget-train-mlm tiny.yaml",
    ],
)
def test_the_launcher_of_a_command_is_not_read(launcher, commit):
    board.check({**result(commit), "command": f"{launcher} --total_training_time 3m --output_dir out/train_mlm"})


def test_defaults_are_those_of_the_commit_and_of_the_release(commit):
    """A default that changed since a run neither fails its row, nor passes for the one of then."""
    folder = board.ROOT
    text = (folder / ARGUMENTS).read_text()
    assert text.count("twin_probability: float = _masking(\n        0.0,") == 1
    (folder / ARGUMENTS).write_text(text.replace("twin_probability: float = _masking(\n        0.0,", TWINS))
    git(folder, "commit", "--quiet", "--all", "--message", "twins by default")
    later = git(folder, "rev-parse", "HEAD")
    board.check(result(commit))
    with pytest.raises(InputError, match=r"^recipe: twin_probability was 0\.0 in the run; .* give 0\.3; "):
        board.check(result(later))
    changed = report(commit, versions={"transformers": version("transformers")})
    changed["recipe"]["adam_beta1"] = 0.8
    with pytest.raises(InputError, match=r"^recipe: adam_beta1 was 0\.8 in the run; .* give 0\.9; "):
        board.check(result(commit, changed))
    board.check(result(commit, {**changed, "versions": {"transformers": "4.0.0"}}))  # whose default nobody knows here
    git(folder, "rm", "--quiet", ARGUMENTS)
    git(folder, "commit", "--quiet", "--message", "no flags")
    with pytest.raises(InputError, match=f"^git_commit: .* has no {ARGUMENTS} with the defaults; "):
        board.check(result(git(folder, "rev-parse", "HEAD")))


def test_defaults_are_those_that_the_parser_has(commit):
    from budget_trainer.budget.lead import ENDLESS_STEPS
    from budget_trainer.config.arguments import PARSER, REPLACED

    read = board.defaults_at(commit, version("transformers"))
    plain = {name: getattr(known.default, "value", known.default) for name, known in PARSER.flags.items()}
    wrong = {name: (plain[name], read.get(name)) for name in plain.keys() - REPLACED if read.get(name) != plain[name]}
    assert not {name: both for name, both in wrong.items() if any(both)}
    assert board._RESOLVED["max_steps"] == (ENDLESS_STEPS,)


def test_what_a_run_settles_by_itself_may_differ_between_seeds(commit):
    compiled = report(commit, 1)
    compiled["recipe"] |= {"torch_compile": True, "torch_compile_backend": "inductor", "regional_compile": True}
    eager = report(commit)
    eager["recipe"] |= {"torch_compile": False, "torch_compile_backend": None, "regional_compile": False}
    board.check(result(commit, eager, compiled))


def test_a_held_out_text_of_another_size_is_another_one(commit):
    longer = report(commit, 1)
    longer["data"] = {**longer["data"], "validation_rows": 2000}
    with pytest.raises(
        InputError, match="^data: '1 % of wiki.txt, 1,964 blocks' in one run, '1 % of wiki.txt, 2,000 bl"
    ):
        board.check(result(commit, report(commit), longer))


def test_scores_of_another_protocol_are_refused(commit):
    rows = {name: result(commit) for name in ("a.json", "b.json")}
    for digest, row in zip("12", rows.values(), strict=True):
        row["protocol"] = {"STS-B": {"data_sha256": digest, "flags": []}}
        for run in row["runs"]:
            run["downstream"] = {"STS-B": {"median": 70.0}}
    with pytest.raises(InputError, match="b.json: downstream: STS-B has other data or flags than in a.json; "):
        board.page(rows)
    rows["b.json"]["protocol"] = rows["a.json"]["protocol"]
    assert board.page(rows).count("|  | 70.0 (70.0 to 70.0) |  |") == 2


@pytest.fixture
def add(commit, tmp_path, capsys):
    """`board.py add` of runs with these reports: its exit code, and the line it ends with."""

    def call(*reports, track="cpu_3m", **flags):
        folders = [tmp_path / "out" / str(number) for number in range(len(reports))]
        for folder, one in zip(folders, reports, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run_report.json").write_text(json.dumps(one))
        line = ["add", *map(str, folders), *words({"track": track, "command": COMMAND, **flags})]
        code = board.main(line)
        said = capsys.readouterr()
        return code, (said.err or said.out).splitlines()[-1]

    return call


def test_a_row_is_added_without_what_is_private(add, commit):
    assert add(report(commit), report(commit, 1))[0] == 0
    (path,) = board.RESULTS.iterdir()
    assert path.name == f"cpu_3m-tiny-{commit[:7]}.json" and "/home" not in path.read_text()
    assert board.PAGE.read_text() == board.page(board.read_results()) and path.name in board.PAGE.read_text()
    code, line = add(report(commit, 2))
    assert code == 2 and line.startswith(f"error: name: {path.name} is there already; ")
    assert add(report(commit, 2), name="again")[0] == 0
    assert add(report(commit, 3), name="a/b") == (
        2,
        "error: name: 'a/b' is no name of a file; take letters, digits, '.', '_' and '-'",
    )
    assert len([*board.RESULTS.iterdir()]) == 2


def test_what_cannot_be_added_writes_nothing(add, commit, tmp_path):
    faulty = report(commit)
    faulty["recipe"]["recipe"] = "/home/me/recipes_of_mine/tiny.yaml"  # its name alone would be the repository's
    assert add(faulty)[1].startswith("error: recipe: /home/me/recipes_of_mine/tiny.yaml is no file of recipes/; ")
    code, line = add(report(commit), downstream=tmp_path / "downstream.json")
    assert code == 2 and "downstream_of.json: missing; give downstream.json of benchmarks/downstream.py" in line
    (tmp_path / "out" / "0" / "run_report.json").unlink()
    code = board.main(["add", str(tmp_path / "out" / "0"), "--track", "cpu_3m", "--command", COMMAND])
    assert code == 2 and not any(board.RESULTS.iterdir()) and not board.PAGE.exists()
