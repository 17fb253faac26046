#!/usr/bin/env python3
"""Draw docs/images/packages.svg: the packages of budget_trainer and which of them import which, read off the sources.

    python docs/make_architecture.py           (prints; --write writes the picture)

An arrow goes from a package to one that it imports; arrows that follow from others (a -> c where a -> b -> c) are left out.
A test compares the picture in the repository with what this prints.
"""

from __future__ import annotations

import argparse
import ast
import re
from html import escape
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "budget_trainer"
PICTURE = ROOT / "docs" / "images" / "packages.svg"
# The scripts at the top, and where their stories are.
SCRIPTS = {f"{name}.py": PACKAGE / f"{name}.py" for name in ("train_mlm", "finetune_glue")}
SCRIPTS |= {"sweep.py": PACKAGE / "sweep" / "__init__.py"}
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT, MARGIN = 1000, 100, 290, 62, 20
COLUMNS = (170, 500, 830)


def imported_packages(path: Path) -> set[str]:
    """Names of our packages that the module at `path` imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {match[1] for name in names if (match := re.match(r"budget_trainer\.(\w+)", name))}
    return {name for name in found if (PACKAGE / name / "__init__.py").exists()}


def edges() -> dict[str, set[str]]:
    """For each package and script the packages that it imports."""
    packages = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    found = {
        name: set().union(*(imported_packages(path) for path in (PACKAGE / name).rglob("*.py"))) - {name}
        for name in packages
    }
    return found | {script: imported_packages(story) for script, story in SCRIPTS.items()}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Everything that `start` imports, directly or through others."""
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Only the arrows that do not follow from others."""
    return {
        name: {to for to in targets if not any(to in reachable(graph, other) for other in targets - {to})}
        for name, targets in graph.items()
    }


def levels(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rows of the picture from the scripts down: a package stands above all that it imports."""
    depth: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((height(to) for to in graph[name]), default=-1)
        return depth[name]

    top = max(height(name) for name in graph if name not in SCRIPTS)
    rows = [[name for name in sorted(graph) if name not in SCRIPTS and depth[name] == row] for row in range(top + 1)]
    return [list(SCRIPTS), *reversed(rows)]


def placed(rows: list[list[str]], arrows: dict[str, set[str]]) -> dict[str, tuple[int, int]]:
    """x of the middle and y of the top of each box: as near as the columns allow to the boxes that its arrows go to."""
    places: dict[str, tuple[int, int]] = {}
    for y, row in reversed([*enumerate(rows)]):
        wish = {name: [places[to][0] for to in arrows[name]] for name in row}
        mean = {name: sum(xs) / len(xs) if xs else COLUMNS[1] for name, xs in wish.items()}
        names = sorted(row, key=lambda name: (mean[name], name))
        columns = min(
            reversed([*combinations(COLUMNS, len(names))]),
            key=lambda columns: sum(abs(x - mean[name]) for x, name in zip(columns, names, strict=True)),
        )
        places |= {name: (x, MARGIN + y * ROW) for x, name in zip(columns, names, strict=True)}
    return places


def route(places: dict[str, tuple[int, int]], start: str, end: str) -> list[tuple[float, float]]:
    """Points of an arrow from the bottom of one box to the top of another, around the boxes between them."""
    (x, top), (to_x, to_y) = places[start], places[end]
    y = top + BOX_HEIGHT
    points: list[tuple[float, float]] = [(x, y)]
    for row in range(top + ROW, to_y, ROW):
        at = [x + (to_x - x) * (row + part - y) / (to_y - y) for part in (0, BOX_HEIGHT / 2, BOX_HEIGHT)]
        near = BOX_WIDTH / 2 + 6
        hit = [box for box, box_y in places.values() if box_y == row and min(abs(box - here) for here in at) < near]
        if hit:
            side = -1 if at[1] < hit[0] or (at[1] == hit[0] and hit[0] > WIDTH / 2) else 1
            beside = hit[0] + side * (BOX_WIDTH / 2 + 14)
            points += [(beside, row - 6), (beside, row + BOX_HEIGHT + 6)]
    return [*points, (to_x, to_y)]


def purpose(name: str) -> str:
    """The first sentence of a package's docstring."""
    path = ROOT / name if name in SCRIPTS else PACKAGE / name / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.])\s", text, maxsplit=1)[0].rstrip(".")


def wrapped(text: str, width: int = 48) -> list[str]:
    """`text` in at most two lines."""
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) + 1 > width and len(lines) < 2:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [line if len(line) <= width else line[: width - 1].rsplit(" ", 1)[0] + " ..." for line in lines]


def svg() -> str:
    """The picture as the text of an SVG file."""
    graph = edges()
    rows = levels(graph)
    places = placed(rows, reduced(graph))
    height = 2 * MARGIN + (len(rows) - 1) * ROW + BOX_HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L10,5 L0,10 z" fill="#6b7480"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for name, targets in sorted(reduced(graph).items()):
        for to in sorted(targets):
            points = " ".join(f"{x:.0f},{y:.0f}" for x, y in route(places, name, to))
            out.append(
                f'<polyline points="{points}" fill="none" stroke="#6b7480" stroke-width="1.3" marker-end="url(#arrow)"/>'
            )
    for name, (x, y) in places.items():
        fill, edge = ("#fdf3e1", "#d9a441") if name in SCRIPTS else ("#e8f1f5", "#1f6f8b")
        out.append(
            f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
            f'fill="{fill}" stroke="{edge}"/>'
        )
        label = f'<text x="{x:.0f}" text-anchor="middle" '
        out.append(f'{label}y="{y + 18:.0f}" font-size="15" font-weight="bold" fill="#22303c">{escape(name)}</text>')
        for k, line in enumerate(wrapped(purpose(name))):
            out.append(f'{label}y="{y + 34 + 13 * k:.0f}" font-size="10.5" fill="#22303c">{escape(line)}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the packages and their imports.")
    parser.add_argument("--write", action="store_true", help=f"write {PICTURE.relative_to(ROOT)}")
    if parser.parse_args().write:
        PICTURE.write_text(svg(), encoding="utf-8")
    else:
        print(svg(), end="")


if __name__ == "__main__":
    main()
