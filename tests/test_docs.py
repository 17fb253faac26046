"""The documents hold together: links, anchors, pictures, YAML, Python and the reference. Commands: `test_docs_commands.py`."""

import ast
import importlib
import re
from dataclasses import fields
from urllib.parse import urlsplit

import pytest
import yaml
from transformers import TrainingArguments

import budget_trainer
from budget_trainer.config.arguments import KEYS
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.glue.plan import read_grid
from data_prep.recipe import SOURCE_KEYS, DataRecipe
from docs import budget_picture, make_api, make_architecture
from tests import documents
from tests.conftest import ROOT, words
from tests.documents import PAGES, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_pictures_and_files_that_are_named(page):
    for _, _, target in documents.links(page):
        url = urlsplit(target)
        if url.scheme or url.netloc:
            assert url.scheme == "https" and "." in url.netloc and target[-1] not in ".,;", target
            continue
        path = page if not url.path else (page.parent / url.path).resolve()
        assert path.exists() and path.is_relative_to(ROOT), f"{target}: no such file in the project"
        if url.fragment:
            assert url.fragment in documents.anchors(path), f"{target}: no such heading"
    for code in documents.inline_code(page):
        if re.fullmatch(r"(?:docs|recipes|benchmarks|accelerate_configs|tests)/[\w./]+", code):
            assert (ROOT / code).exists(), code


def test_every_page_is_reached_from_the_index_or_the_readme():
    waiting = [ROOT / "README.md", ROOT / "docs" / "index.md"]
    reached = set(waiting)
    while waiting:
        page = waiting.pop()
        for _, _, target in documents.links(page):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path.exists() and path not in reached and path.is_relative_to(ROOT):
                reached.add(path)
                waiting.append(path)
    assert set(PAGES) <= reached


def test_every_cell_of_the_comparison_has_a_source():
    """Rows are numbered through, no cell is empty, and the sources of each column name every row of the table once."""
    text = (ROOT / "docs" / "comparison.md").read_text()
    assert set(re.findall(r"\]\[([\w-]+)\]", text)) == set(re.findall(r"^\[([\w-]+)\]: ", text, re.M))
    last = 0
    for section in text.split("\n## ")[1:]:
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*\|$", section, re.M)]
        if table:
            (_, _, *tools), _, *rows = table
            numbers = [int(row[0]) for row in rows]
            assert numbers == [*range(last + 1, last + 1 + len(rows))]
            assert all(len(row) == 2 + len(tools) and all(row) for row in rows)
            sources = dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", section, re.M))
            assert [*sources] == tools
            for tool, line in sources.items():
                assert all("][" in part for part in line.split("; ")), tool
                cited = re.findall(r"\d+", re.sub(r"\[[^]]*\]\[[^]]*\]", "", line))
                assert sorted(map(int, cited)) == numbers, tool
            last = numbers[-1]
    assert last == 45


YAML = [*documents.blocks("yaml")]


@pytest.mark.parametrize(("where", "text"), YAML, ids=[where for where, _ in YAML])
def test_yaml_is_what_its_reader_takes(where, text, tmp_path):
    """A data recipe, a grid for GLUE or a recipe of train_mlm.py, by its keys. Sweeps have tests of their own."""
    path = tmp_path / "given.yaml"
    path.write_text(text)
    keys = set(yaml.safe_load(text))
    if "sources" in keys:
        recipe = DataRecipe.read(path)
        assert recipe.sources and all(source.kind in ("dataset", "jsonl", "mediawiki") for source in recipe.sources)
    elif {"flags", "seeds"} & keys or "configurations" in keys:
        assert read_grid(str(path), None, 1)
    elif not {"hyperparameters", "search", "parameters", "compute_environment"} & keys:
        rest = {"data_dir": "data", "output_dir": "out", "total_training_time": "1h", "use_cpu": "true"}
        needed = words({key: value for key, value in rest.items() if key not in keys})
        assert parse_recipe([str(path), *needed, "--fp16", "false"]).output_dir


PYTHON = [*documents.blocks("python")]


@pytest.mark.parametrize(("where", "code"), PYTHON, ids=[where for where, _ in PYTHON])
def test_python_compiles_and_what_it_imports_of_ours_exists(where, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("budget_trainer", "data_prep"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_reference_is_what_the_docstrings_make_and_has_every_public_name():
    text = make_api.PAGE.read_text()
    assert text == make_api.page(), "run `make docs`"
    assert set(make_api.exported()) == set(budget_trainer.__all__) - {"__version__"}
    for name in make_api.exported():
        assert re.search(rf"^(### (class|function) {name}$|- `{name} = )", text, re.M), name


def test_the_page_of_the_packages_names_modules_that_exist_and_its_picture_what_they_import():
    assert make_architecture.PICTURE.read_text() == make_architecture.svg(), "python docs/make_architecture.py --write"
    for name in ("architecture.md", "internals.md"):
        for code in documents.inline_code(ROOT / "docs" / name):
            if re.fullmatch(r"[\w/]+/\w+\.py", code):
                assert (ROOT / "budget_trainer" / code).exists() or (ROOT / code).exists(), f"{name}: {code}"
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "architecture.md").read_text(), re.M))
    assert listed == {path.parent.name for path in (ROOT / "budget_trainer").glob("*/__init__.py")}


def test_the_picture_holds_every_second_of_both_jobs(tmp_path):
    """By hand: 4 s of a first job that began at 1, a pause until 8, and 6 s of a second one."""
    at = [{"setup": setup, "train": train} for setup, train in ((1.0, 0.0), (1.0, 3.0), (2.0, 3.0), (2.0, 8.0))]
    first = budget_picture.Job(0.0, 5.5, [(2.0, at[0]), (5.0, at[1])])
    second = budget_picture.Job(7.0, 16.0, [(9.0, at[2]), (14.0, at[3])])
    assert budget_picture.pieces(first, {}) == [("setup", 1.0, 1.0), ("train", 2.0, 3.0)]
    assert budget_picture.pieces(second, at[1]) == [("setup", 8.0, 1.0), ("train", 9.0, 5.0)]
    lines = [{"job": job, "elapsed_seconds": second, "learning_rate": 1 / job} for job, second in ((1, 2.0), (2, 9.0))]
    shares = dict.fromkeys(budget_picture.WORDS, 0.0) | at[3]
    report = {"budget_seconds": 10.0, "used_seconds": 10.0, "shares": shares}
    budget_picture.draw([first, second], lines, report, tmp_path / "images" / "budget.png")
    assert (tmp_path / "images" / "budget.png").stat().st_size > 10_000


def test_every_key_has_a_place_in_the_documents():
    text = (ROOT / "docs" / "recipes.md").read_text()
    own = KEYS - {field.name for field in fields(TrainingArguments)}
    assert not {key for key in own if not re.search(rf"`(?:--)?{key}\b", text)}
    table = (ROOT / "docs" / "data.md").read_text().partition("| key of a source")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`(?=[ ,].*\|.*\|)", table)) >= set(SOURCE_KEYS)
