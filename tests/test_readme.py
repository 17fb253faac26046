"""What README and docs show is true: commands and recipes parse, targets and files exist, the Python runs."""

import ast
import importlib
import re
import shlex

import pytest

from budget_trainer.glue.grid import read_grid
from budget_trainer.glue.parsing import parse_request
from budget_trainer.recipes import parse_recipe
from budget_trainer.sweep.arguments import parse_arguments
from data_prep.data_recipe import SOURCE_KEYS, read_data_recipe
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```bash\n(.*?)```", README + (ROOT / "docs" / "data.md").read_text(), re.S)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def commands():
    for block in SHELL:
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split("#")[0].strip()
            for command in line.split("&&"):
                if command.strip():
                    yield command.strip()


def test_there_is_something_to_check():
    assert sum("train_mlm.py" in command for command in commands()) >= 1
    assert {"make quickstart", "make test"} <= set(commands()) and len(PYTHON) >= 3


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_command(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words[1]
        for word in words[2:]:
            assert re.search(rf"^{word.split('=')[0]}\s*\?=", (ROOT / "Makefile").read_text(), re.M), word
            if word.startswith("CONFIG="):
                assert (ROOT / word.removeprefix("CONFIG=")).exists()
    elif "train_mlm.py" in words:
        at = words.index("train_mlm.py")
        assert (ROOT / words[words.index("--config_file") + 1]).exists()
        assert parse_recipe([str(ROOT / words[at + 1]), *words[at + 2 :], "--use_cpu", "true"]).data_dir
    elif "finetune_glue.py" in words:
        assert "--config_file" not in words or (ROOT / words[words.index("--config_file") + 1]).exists()
        request = parse_request([*words[words.index("finetune_glue.py") + 1 :], "--use_cpu", "true"])
        assert request.suite.grid is None or read_grid(str(ROOT / request.suite.grid), None, 1)
    elif "sweep.py" in words:
        path = words[2]
        assert parse_arguments([str(ROOT / path), *words[3:]]).spec().trials
    elif words[:2] == ["python", "-m"]:
        module = importlib.import_module(words[2])
        if hasattr(module, "_parse"):
            module._parse(words[3:])
    elif words[0] == "pip":
        for word in words:
            assert not word.endswith(".txt") or (ROOT / word).exists()
    else:
        assert words[0] in (".", "python3"), f"a kind of command that no test covers: {command}"


@pytest.mark.parametrize("code", PYTHON)
def test_names_that_are_imported_exist(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


LAUNCHER = ("num_processes", "machine_rank", "main_process_ip", "main_process_port")


def test_every_flag_of_the_table_exists():
    from budget_trainer.glue.arguments import RENAMED
    from budget_trainer.glue.parsing import KEYS as GLUE_KEYS
    from budget_trainer.recipes import KEYS

    for flag in re.findall(r"`--(\w+)", README):
        known = flag in KEYS | GLUE_KEYS | set(RENAMED) or flag.removeprefix("no_") in KEYS
        assert known or flag in ("input", "kind", "help", "text", "cpu", *LAUNCHER), flag


def test_files_that_are_named_exist():
    for path in re.findall(r"`((?:docs|recipes|benchmarks|accelerate_configs|tests)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path


def data_recipes():
    """(file, number, text) of every recipe in YAML that a document shows."""
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.md")]):
        for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.S)):
            yield pytest.param(text, id=f"{path.name}-{number}")


@pytest.mark.parametrize("text", [*data_recipes()])
def test_data_recipe(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = read_data_recipe(tmp_path / "recipe.yaml")
    assert recipe.sources and all(source.kind in ("dataset", "jsonl") for source in recipe.sources)


def test_data_recipes_name_the_corpora_that_are_promised():
    text = "".join(param.values[0] for param in data_recipes())
    promised = ("wikimedia/wikipedia", "bookcorpus", "allenai/c4", "HuggingFaceFW/fineweb-edu", "jsonl", "parquet/")
    assert all(name in text for name in promised)


def test_every_key_of_a_source_is_explained():
    table = (ROOT / "docs" / "data.md").read_text().partition("| key of a source")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`(?=[ ,].*\|.*\|)", table)) >= set(SOURCE_KEYS)
