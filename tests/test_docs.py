"""The documents hold together: links, anchors, pictures, and commands that the commands' own parsers take."""

import argparse
import ast
import contextlib
import importlib
import inspect
import re
import subprocess
import sys
from configparser import ConfigParser
from urllib.parse import urlsplit

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from budget_trainer.errors import InputError
from budget_trainer.glue.arguments import RENAMED
from budget_trainer.glue.grid import read_grid
from budget_trainer.glue.parsing import KEYS as GLUE_KEYS
from budget_trainer.glue.parsing import parse_request
from budget_trainer.migration.launcher import SWITCHES, VALUED
from budget_trainer.migration.original_flags import FLAGS
from budget_trainer.recipes import KEYS, parse_recipe
from data_prep.data_recipe import read_data_recipe
from docs import make_api
from tests import documents
from tests.conftest import ROOT
from tests.documents import PAGES, name_of

SHELL = [*documents.blocks("bash"), *documents.blocks("sh")]
setup = ConfigParser()
setup.read(ROOT / "setup.cfg")
ENTRY_POINTS = dict(
    line.replace(" ", "").split("=") for line in setup["options.entry_points"]["console_scripts"].split("\n") if line
)
MAKEFILE = (ROOT / "Makefile").read_text()
# Commands of others: their flags are their own business.
OTHERS = {
    ".",
    "source",
    "cd",
    "git",
    "export",
    "pip",
    "hf",
    "sbatch",
    "scontrol",
    "squeue",
    "scancel",
    "ls",
    "cat",
    "tail",
}
OTHERS |= {"kill", "echo", "rm", "test", "[", "df", "tensorboard", "nvidia-smi", "ssh", "sleep", "mkdir", "cp", "head"}
OTHERS |= {
    "done",
    "fi",
    "for",
    "grep",
    "py-spy",
    "tar",
    "wc",
    "pkill",
    "trap",
    "wait",
    "exit",
    "set",
    "python3",
    "watch",
}

OF_OTHERS = {"--help", "--requeue", "--time", "--signal", "--nodes", "--upgrade"}  # sbatch's and pip's


class Parsed(BaseException):
    """Raised behind a parser that took its words, so that nothing more is done. No `except Exception` catches it."""


# ---- links ----


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures(page):
    for is_picture, text, target in documents.links(page):
        assert text.strip(), f"{target}: no text; a picture needs one for who cannot see it"
        url = urlsplit(target)
        if url.scheme or url.netloc:
            assert url.scheme == "https" and "." in url.netloc and target[-1] not in ".,;", target
            continue
        path = page if not url.path else (page.parent / url.path).resolve()
        assert path.exists(), f"{target}: no such file"
        assert path.is_relative_to(ROOT), f"{target}: outside of the project"
        assert not is_picture or path.stat().st_size < 1_000_000, f"{target}: a picture of over a megabyte"
        if url.fragment:
            assert url.fragment in documents.anchors(path), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_bare_addresses_and_no_html(page):
    text = documents.without_code(page)
    for bare in re.findall(r"<?https?://[^\s)>\]]+>?", documents.LINK.sub("", text)):
        assert re.search(rf"^\[[^\]]+\]: +{re.escape(bare)}", text, re.M), f"{bare}: write it as [text](address)"
    assert not re.findall(r"<(?:img|a)\b[^>]*(?:src|href)", text), "pictures and links are written in Markdown"


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


def test_every_picture_is_shown_somewhere():
    shown = {
        (page.parent / target).resolve() for page in PAGES for picture, _, target in documents.links(page) if picture
    }
    assert {*(ROOT / "docs" / "images").iterdir()} <= shown


def test_files_that_are_named_exist():
    for page in PAGES:
        for code in documents.inline_code(page):
            if re.fullmatch(r"(?:docs|recipes|benchmarks|accelerate_configs|tests)/[\w./]+", code):
                assert (ROOT / code).exists(), f"{name_of(page)}: {code}"


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# `code_of` it: *a*, b & c!\n## Same\n```bash\n# no heading\n```\n### Same\n## [Link](x.md) 1.5\n"
    )
    assert documents.anchors(page) == {"code_of-it-a-b--c", "same", "same-1", "link-15"}


# ---- commands ----


@pytest.mark.parametrize(("where", "script"), SHELL, ids=[where for where, _ in SHELL])
def test_shell_is_shell(where, script):
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_a_script_that_is_shown_is_the_one_that_is_given():
    for where, script in SHELL:
        if script.startswith("#!"):
            assert script == (ROOT / "accelerate_configs" / "slurm.sbatch").read_text(), where


ALL = sorted({tuple(words) for _, script in SHELL for words in documents.commands(script)})


def test_there_is_something_to_check():
    assert sum("train_mlm.py" in words for words in ALL) >= 5
    assert {("make", "quickstart"), ("make", "test")} <= set(ALL)


@pytest.mark.parametrize("words", ALL, ids=[" ".join(words)[:70] for words in ALL])
def test_command(words, monkeypatch):
    check_command(list(words), monkeypatch)


def check_command(words, monkeypatch):
    """Whether the program that is named takes the flags and values."""
    program, *rest = words
    for word in rest:
        if re.match(r"(recipes|accelerate_configs)/", word):
            assert (ROOT / word).exists(), word
    if program == "make":
        check_make(rest)
    elif program == "accelerate" and rest[:1] == ["launch"]:
        given = launch_command_parser().parse_args(rest[1:])
        assert given.config_file is None or "/" not in given.config_file or (ROOT / given.config_file).exists()
        check_python([given.training_script, *given.training_script_args], monkeypatch)
    elif program == "torchrun":
        given = get_args_parser().parse_args(rest)
        check_python([given.training_script, *given.training_script_args], monkeypatch)
    elif program == "sbatch" and "accelerate_configs/slurm.sbatch" in rest:
        at = rest.index("accelerate_configs/slurm.sbatch")
        check_python(["train_mlm.py", *rest[at + 1 :]], monkeypatch)
    elif program in ENTRY_POINTS:
        check_entry(ENTRY_POINTS[program], rest, monkeypatch)
    elif program.endswith("python"):
        check_python(rest, monkeypatch)
    elif program == "pip":
        assert all((ROOT / word).exists() for word in rest if word.endswith(".txt"))
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(setup["options.extras_require"]), extras
    else:
        assert program in OTHERS, f"a kind of command that no test covers: {' '.join(words)}"


def check_make(words):
    targets = [word for word in words if "=" not in word]
    assert all(re.search(rf"^{target}:", MAKEFILE, re.M) for target in targets), targets
    for name, _, value in (word.partition("=") for word in words if "=" in word):
        assert re.search(rf"^{name}\s*\?=", MAKEFILE, re.M), name
        assert name != "CONFIG" or (ROOT / value).exists()


def check_python(words, monkeypatch):
    if words[0] == "-m":
        module, rest = words[1], words[2:]
        if module.split(".")[0] not in ("budget_trainer", "data_prep"):
            return
        check_entry(f"{module}:main", rest, monkeypatch)
    elif words[0] != "-c":
        path = ROOT / words[0]
        if not path.exists():
            assert re.match(r"(my|your)_?", words[0]), f"{words[0]}: no such script"
            return
        monkeypatch.syspath_prepend(str(path.parent))
        check_entry(f"{words[0].removesuffix('.py').replace('/', '.')}:main", words[1:], monkeypatch)


def check_entry(entry, words, monkeypatch):
    """Parse as `module:function` does; of the two large ones with all checks of values."""
    module, _, function = entry.partition(":")
    if "--help" in words or "-h" in words:
        return
    if module == "train_mlm":
        given_recipe = bool(words) and not words[0].startswith("-")
        if given_recipe:
            words = [
                str(ROOT / (words[0] if words[0].startswith("recipes/") else "recipes/quickstart.yaml")),
                *words[1:],
            ]
        needed = [("--data_dir", "data"), ("--output_dir", "out"), ("--total_training_time", "1h")]
        for flag, value in needed if "..." in words else ():
            words += [flag, value]
        words = [word for word in words if word != "..."]
        assert parse_recipe([*words, "--use_cpu", "true", "--fp16", "false"]).data_dir
    elif module == "finetune_glue":
        request = parse_request([*(word for word in words if word != "..."), "--use_cpu", "true"])
        grid = request.suite.grid
        if grid is not None and grid.startswith("recipes/"):
            assert read_grid(str(ROOT / grid), None, 1)
    else:
        parse_alone(importlib.import_module(module), function, words, monkeypatch)


def parse_alone(module, function, words, monkeypatch):
    """The module's own parsing: its `_parse` or `parse`, which check values too, or its main function up to there."""
    for name in ("_parse", "parse"):
        if hasattr(module, name):
            getattr(module, name)(words)
            return
    taken = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        taken(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    main = getattr(module, function)
    with pytest.raises(Parsed):
        code = main(words) if inspect.signature(main).parameters else main()
        pytest.fail(f"{module.__name__} {' '.join(words)}: exit code {code} before the flags were parsed")


@pytest.mark.parametrize(
    "line",
    [
        "accelerate launch --config_file accelerate_configs/cpu.yaml train_mlm.py recipes/quickstart.yaml --dat_dir d",
        "accelerate launch --config_file accelerate_configs/tpu.yaml train_mlm.py recipes/quickstart.yaml ...",
        "accelerate launch --num_proc 2 train_mlm.py recipes/quickstart.yaml ...",
        "python train_mlm.py recipes/quickstart.yaml --data_dir d --output_dir o --total_training_time 10x",
        "python train_mlm.py recipes/quickstar.yaml ...",
        "python -m data_prep.blocks --inputs corpus --tokenizer t --output_dir o",
        "python -m budget_trainer.fill_mask out/final --texts word",
        "python -m budget_trainer.fil_mask out/final",
        "budget-fill-mask out/final --texts word",
        "budget-prep-blocks --inputs corpus",
        "python finetune_glue.py --model_name_or_path m --task MRPC --output_dir o",
        "make quick",
        "make quickstart BUDGETS=3m",
        "pip install -e '.[deepsped]'",
        "python sweeping.py",
        "somecommand",
    ],
)
def test_what_is_wrong_is_found(line, monkeypatch):
    (words,) = documents.commands(line)
    with pytest.raises((AssertionError, InputError, SystemExit, ImportError)):
        check_command(words, monkeypatch)


def test_commands_are_split_as_a_shell_does():
    script = "A=1 python x.py --a 'b; c' \\\n    --d  # why\nmake test && cd out | tail 2>/dev/null\nfoo 'a\nb'\n"
    expected = [["python", "x.py", "--a", "b; c", "--d"], ["make", "test"], ["cd", "out"], ["tail"], ["foo", "a\nb"]]
    assert list(documents.commands(script)) == expected


def flags_of(main, monkeypatch):
    """All flags of the parser that `main` makes."""
    found = set()

    def parse_args(self, *args, **kwargs):
        found.update(self._option_string_actions)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", ["command"])
        with contextlib.suppress(Parsed, InputError, SystemExit):
            main([]) if inspect.signature(main).parameters else main()
    return found


def test_every_flag_that_is_named_exists(monkeypatch):
    """In code within a line: a flag of one of our commands, of the launchers, or one of those that are others'."""
    keys = KEYS | GLUE_KEYS | set(RENAMED) | {f"no_{key}" for key in KEYS} | set(FLAGS)
    known = {f"--{key}" for key in keys} | set(launch_command_parser()._option_string_actions)
    known |= set(get_args_parser()._option_string_actions) | {f"--{name.lstrip('-')}" for name in {*VALUED, *SWITCHES}}
    modules = {entry.partition(":")[0] for entry in ENTRY_POINTS.values()} - {"train_mlm", "finetune_glue"}
    modules |= {f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")} - {
        "benchmarks.scaling_point"
    }
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in sorted(modules):
        main = getattr(importlib.import_module(name), "main", None)
        known |= flags_of(main, monkeypatch) if main else set()
    wrong = {}
    for page in PAGES:
        for code in documents.inline_code(page):
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                if flag not in known | OF_OTHERS:
                    wrong.setdefault(name_of(page), set()).add(flag)
    assert not wrong


# ---- YAML and Python ----

YAML = [*documents.blocks("yaml")]


@pytest.mark.parametrize(("where", "text"), YAML, ids=[where for where, _ in YAML])
def test_yaml_is_what_its_reader_takes(where, text, tmp_path):
    """A data recipe, a grid for GLUE or a recipe of train_mlm.py, by its keys. Sweeps have tests of their own."""
    path = tmp_path / "given.yaml"
    path.write_text(text)
    keys = set(yaml.safe_load(text))
    if "sources" in keys:
        recipe = read_data_recipe(path)
        assert recipe.sources and all(source.kind in ("dataset", "jsonl") for source in recipe.sources)
    elif {"flags", "seeds"} & keys or "configurations" in keys:
        assert read_grid(str(path), None, 1)
    elif not {"hyperparameters", "search", "parameters", "compute_environment"} & keys:
        rest = {"data_dir": "data", "output_dir": "out", "total_training_time": "1h", "use_cpu": "true"}
        words = [word for key, value in rest.items() if key not in keys for word in (f"--{key}", value)]
        assert parse_recipe([str(path), *words, "--fp16", "false"]).output_dir


PYTHON = [*documents.blocks("python")]


@pytest.mark.parametrize(("where", "code"), PYTHON, ids=[where for where, _ in PYTHON])
def test_python_compiles_and_what_it_imports_of_ours_exists(where, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("budget_trainer", "data_prep"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


# ---- the reference ----


def test_the_reference_is_what_the_docstrings_make():
    assert make_api.PAGE.read_text() == make_api.page(), "run `make docs`"


def test_the_reference_has_every_public_name():
    import budget_trainer

    text = make_api.PAGE.read_text()
    assert set(make_api.exported()) == set(budget_trainer.__all__) - {"__version__"}
    for name, module in make_api.exported().items():
        assert module in make_api.MODULES and re.search(
            rf"^(### (class|function) {name}$|- `{name} = )", text, re.M
        ), name
        assert hasattr(budget_trainer, name)
