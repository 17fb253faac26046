#!/usr/bin/env python3
"""Write docs/api.md from the docstrings of the public modules: `make docs`, or

    python docs/make_api.py           (prints; --write writes docs/api.md)

Reads the sources without importing them, so that it needs no torch and gives the same text everywhere.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
PACKAGE = "budget_trainer"
# What is meant for use in programs of others, and the subject in a few words.
MODULES = {
    "budget.clock": "durations, the clock of a budget and its file",
    "budget.curves": "from progress to a share of the learning rate",
    "budget.scheduler": "the learning rate of a PyTorch optimizer by the clock",
    "budget.callback": "the budget as a callback of any Trainer",
    "budget.mixin": "budget and schedule for any Trainer",
    "budget.stages": "what follows the schedule beside the learning rate, and when to validate",
    "budget.channel": "the control message between processes",
    "training.trainer": "the Trainer of `train_mlm.py`",
    "training.saving": "complete saves and checkpoints of that Trainer",
    "training.callbacks": "what happens while a run trains",
    "training.recovery": "losses that are not finite, memory that is refused",
    "training.evaluation": "the pinned evaluation",
    "data.masking": "masking",
    "data.folder": "the data folder and its sampler",
    "model.optimizers": "optimizers by name",
    "core.errors": "what is raised",
}
HEAD = """# API

From the docstrings. Names in the first table are imported from `budget_trainer` itself, each at its first use; the others
from their module. How they are used together: [As a plugin](plugins.md). Times are seconds unless a name or a text says
otherwise; text such as `24h` is read by `parse_duration`.

<!-- Made by docs/make_api.py: change the docstrings, then run `make docs`. -->
"""


def module_path(name: str) -> Path:
    return (ROOT / PACKAGE).joinpath(*name.split(".")).with_suffix(".py")


def exported() -> dict[str, str]:
    """The names of `budget_trainer.__all__`, and the module of each."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_WHERE":
            where: dict[str, str] = ast.literal_eval(node.value)
            return where
    raise ValueError("budget_trainer/__init__.py has no _WHERE")


def prose(text: str | None) -> str:
    """A docstring as Markdown: its own backticks and indented code kept, what Markdown would swallow escaped."""
    lines: list[str] = []
    returned = False  # within Returns:
    for line in inspect.cleandoc(text or "").splitlines():
        if re.match(r"[A-Z]\w+:$", line):  # Args:, Raises:
            returned = line in ("Returns:", "Yields:")
            line = f"**{line}**\n"
        elif found := re.match(r"    (\*{0,2}\w+(?:, \w+)*): (.*)", line):
            line = f"- `{found[1]}`: {escaped(found[2])}"
        elif line.startswith("    ") and lines and (lines[-1].startswith("- `") or lines[-1].startswith("  ")):
            line = f"  {escaped(line.strip())}"
        elif returned and line.startswith("    "):
            line = escaped(line.strip())
        elif not line.startswith("    "):
            line = escaped(line)
        lines.append(line)
    return "\n".join(lines).strip()


def escaped(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else _escape(part) for part in parts)


def _escape(text: str) -> str:
    return re.sub(r"([*\[\]])", r"\\\1", text).replace("<", "&lt;")


def arguments(function: ast.FunctionDef, bound: bool) -> list[str]:
    """What stands between the brackets, as the formatter would write it; `bound` leaves out self or cls."""
    args = function.args
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    parts = [one_argument(arg, default) for arg, default in zip(plain, defaults, strict=True)][1 if bound else 0 :]
    if args.vararg is not None:
        parts.append(f"*{one_argument(args.vararg, None)}")
    elif args.kwonlyargs:
        parts.append("*")
    parts += [one_argument(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg is not None:
        parts.append(f"**{one_argument(args.kwarg, None)}")
    return parts


def one_argument(arg: ast.arg, default: ast.expr | None) -> str:
    text = arg.arg if arg.annotation is None else f"{arg.arg}: {unparse(arg.annotation)}"
    if default is None:
        return text
    return text + (" = " if arg.annotation is not None else "=") + unparse(default)


def unparse(node: ast.AST) -> str:
    """As the formatter would write it: with double quotes."""
    text = ast.unparse(node)
    return text if '"' in text else text.replace("'", '"')


def is_public(name: str) -> bool:
    return not name.startswith("_")


def shown(node: ast.FunctionDef) -> str:
    """One method or property of a class, as an item of a list: its call and what it says."""
    kinds = {unparse(decorator) for decorator in node.decorator_list}
    result = "" if node.returns is None else unparse(node.returns)
    if "property" in kinds:
        call = f"{node.name}: {result}"
    else:
        call = f"{node.name}({', '.join(arguments(node, bound='staticmethod' not in kinds))})" + (
            result and f" -> {result}"
        )
    said = prose(ast.get_docstring(node)).splitlines()
    # Four spaces: Python-Markdown, which makes the site, takes two for the end of the list.
    return "\n".join([f"- **`{call}`**", *(f"    {line}".rstrip() for line in (["", *said] if said else []))])


def signature(node: ast.FunctionDef, result: str, indent: str) -> str:
    """A line of a stub, or a line for each argument where that would be too long."""
    inside = arguments(node, bound=False)
    line = f"{indent}def {node.name}({', '.join(inside)}){result}: ..."
    if len(line) <= 100:
        return line
    return "\n".join(
        [f"{indent}def {node.name}(", *(f"{indent}    {one}," for one in inside), f"{indent}){result}: ..."]
    )


def of_function(node: ast.FunctionDef) -> str:
    result = "" if node.returns is None else f" -> {unparse(node.returns)}"
    return f"```python\n{signature(node, result, '')}\n```\n\n{prose(ast.get_docstring(node))}".strip()


def of_class(node: ast.ClassDef) -> str:
    bases = ", ".join(unparse(base) for base in node.bases)
    head = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    fields = [unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
    body = [f"    {field}" for field in fields if is_public(field)]
    if "__init__" in methods:
        body.append(signature(methods["__init__"], "", "    "))
    head += "\n" + "\n".join(body) if body else " ..."
    parts = [f"```python\n{head}\n```", prose(ast.get_docstring(node))]
    parts += [shown(item) for name, item in methods.items() if is_public(name) and not name.startswith("on_")]
    events = [f"`{name}`" for name in methods if name.startswith("on_")]
    if events:
        parts.append(f"Answers to {', '.join(events)}.")
    return "\n\n".join(part for part in parts if part)


def constants(tree: ast.Module) -> Iterator[str]:
    """Public constants of a module, with their values as they are written, where they are short."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
            name, value = target.id, unparse(node.value)
            if is_public(name) and name.isupper() and len(value) <= 200:
                yield f"`{name} = {value}`"


def of_module(name: str) -> str:
    tree = ast.parse(module_path(name).read_text(encoding="utf-8"))
    parts = [f"## budget_trainer.{name}", prose(ast.get_docstring(tree))]
    parts += ["\n".join(f"- {line}" for line in constants(tree))]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and is_public(node.name) and ast.get_docstring(node):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            text = of_class(node) if isinstance(node, ast.ClassDef) else of_function(node)
            parts.append(f"### {kind} {node.name}\n\n{text}")
    return "\n\n".join(part for part in parts if part)


def link(module: str) -> str:
    """To the heading of a module; the anchor is made as GitHub makes it."""
    return f"[{PACKAGE}.{module}](#{PACKAGE}{module.replace('.', '')})"


def page() -> str:
    rows = [f"| `{name}` | {link(module)} |" for name, module in exported().items()]
    rows = ["| name | from |", "|---|---|", *sorted(rows)]
    contents = [f"- {link(name)}: {what}" for name, what in MODULES.items()]
    return "\n\n".join([HEAD.strip(), "\n".join(rows), "\n".join(contents), *map(of_module, MODULES)]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/api.md instead of printing it")
    if parser.parse_args(argv).write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
