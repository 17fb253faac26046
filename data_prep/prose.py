"""English prose out of the docstrings of Python packages. Files are parsed, never imported or executed."""

import ast
import gc
import hashlib
import inspect
import itertools
import os
import re
import sysconfig
import warnings
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from budget_trainer.core.errors import InputError
from data_prep.files import Leave, ignore

_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules"}
_SKIPPED |= {"test", "tests"}  # a third of all code and hardly any prose
# A sixth of running English is made of these; signatures, tables and lists of values have hardly any.
_FUNCTION_WORDS = frozenset(
    "a about after all also an and any are as at be because been before but by can could do does each either else for "
    "from given has have how if in into is it its like may more most must no not of on one only or other over same "
    "should so some such than that the their them then there these they this those to under until up use used uses "
    "using was we were what when where which while will with without would you your".split()
)

_MARKUP = (
    (re.compile(r"\[([^\[\]]+)\]\((?:[^()]*)\)"), r"\1"),  # [text](link)
    (re.compile(r":[\w:+.-]+:`[~!]?([^`<]*?)\s*(?:<[^`>]*>)?`"), r"\1"),  # :func:`x`, :ref:`text <target>`
    (re.compile(r"``([^`]*)``"), r"\1"),
    (re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <link>`_
    (re.compile(r"`([^`]*)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"\|(\w+)\|_?"), r"\1"),  # |substitution|
    (re.compile(r"\[\d+\]_|\[#\w*\]_"), ""),  # footnotes
)
_BULLET = re.compile(r"^(?:[-*+•]|\(?\d{1,2}[.)])\s+")
_RULE = re.compile(r"^[\s=~^\"'#*+_.:|`-]{3,}$")  # underlines, rules, table borders
_FIELD = re.compile(r"^(?::[\w ,*.~\[\]|]+:|@\w+|\.\.\s|\*{0,2}\w+\*{0,2}\s*(?:\([^)]*\))?\s*:(?:\s|$)|\w+ ?:\s*$)")
_SECTION = re.compile(r"^[A-Z][\w ]{0,30}:?$")


def read_docstrings(
    roots: Iterable[str | Path] | None, num_proc: int = 1, leave: Leave = ignore
) -> Generator[str, None, None]:
    """One document per module, in a fixed order: the packages take turns, so that a limit cuts all of them alike.
    Every paragraph occurs once in the whole corpus.

    roots: folders of packages; None: those of the running interpreter, then its standard library. leave: is told of files that
    cannot be read. InputError: no folder."""
    if roots is None:
        paths = (sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))
        roots = [path for path in dict.fromkeys(paths) if Path(path).is_dir()]
    folders = list(map(Path, roots))
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"packages {folder}: no such folder; give one with Python files")
    seen: set[bytes] = set()
    for file, paragraphs in _parsed(_in_turns(folders), num_proc):
        if isinstance(paragraphs, str):
            leave(str(file), paragraphs)
            continue
        new = []
        for paragraph in paragraphs:
            key = hashlib.blake2b(paragraph.casefold().encode(), digest_size=8).digest()
            if key not in seen:
                seen.add(key)
                new.append(paragraph)
        document = " ".join(new)
        if len(document) >= 200:
            yield document


def _prose_of_file(file: Path) -> list[str] | str:
    """The English paragraphs of the file's docstrings, or why it is not read."""
    try:
        if file.stat().st_size > 2_000_000:
            return "more than 2 MB"  # a table or generated code
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []  # parsing is what takes the time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except OSError as error:
        return error.strerror or "unreadable"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "no Python"
    return [paragraph for node in _documented(tree) for paragraph in _paragraphs_of(ast.get_docstring(node) or "")]


def _documented(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What can have a docstring, in order. Statements only: ast.walk, with every expression, takes longer than the parser."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        inner = (getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody", "cases"))
        waiting += reversed([child for children in inner if isinstance(children, list) for child in children])


def _in_turns(roots: Iterable[Path]) -> Iterator[Path]:
    """The first file of every package, then the second of every package, and so on."""
    packages: dict[tuple[Path, str], list[Path]] = {}
    for root in roots:
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and entry.name not in _SKIPPED:
                found = packages[root, entry.name] = []
                for directory, names, files in os.walk(entry):
                    names[:] = sorted(name for name in names if name not in _SKIPPED and not name.startswith("."))
                    found += [Path(directory, file) for file in sorted(files) if file.endswith(".py")]
            elif entry.suffix == ".py":  # single modules count as one package
                packages.setdefault((root, ""), []).append(entry)
    turns = itertools.zip_longest(*packages.values())
    return (file for turn in turns for file in turn if file is not None)


def _parsed(files: Iterator[Path], num_proc: int) -> Iterator[tuple[Path, list[str] | str]]:
    """_prose_of_file of every file, in order; reads ahead a little and stops reading when the caller stops."""
    if num_proc == 1:
        yield from ((file, _prose_of_file(file)) for file in files)
        return
    # A syntax tree is many objects and no cycle: collecting cycles only costs time.
    with ProcessPoolExecutor(num_proc, initializer=gc.disable) as pool:
        while ahead := list(itertools.islice(files, 256)):  # bounds what is computed in vain when a limit is reached
            yield from zip(ahead, pool.map(_prose_of_file, ahead, chunksize=8), strict=True)


def _paragraphs_of(docstring: str) -> list[str]:
    """The English paragraphs of a docstring, each one line of text."""
    paragraphs: list[list[str]] = [[]]
    code_indent: int | None = None  # lines deeper than this belong to a code block
    doctest = fenced = False
    last_indent = 0
    for line in inspect.cleandoc(docstring.expandtabs()).split("\n"):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith(("```", "~~~")):
            fenced = not fenced
            paragraphs.append([])
        elif fenced:
            continue
        elif not text:
            doctest = False
            paragraphs.append([])
        elif doctest or (code_indent is not None and indent > code_indent):
            continue
        elif text.startswith((">>>", "...", "$ ", "In [", "Out[", "|", "+-")):
            paragraphs.append([])
            doctest = text.startswith(">>>")  # what it prints goes on up to a blank line
        else:
            code_indent = indent if text.endswith("::") or text.startswith("..") else None
            if indent > last_indent and len(paragraphs[-1]) == 1 and len(paragraphs[-1][0].split()) < 5:
                paragraphs[-1].clear()  # a name or a type, whose description this line begins
            _add_line(text, paragraphs)
            last_indent = indent
    cleaned = (_without_markup(" ".join(lines)) for lines in paragraphs)
    return [paragraph for paragraph in cleaned if _is_english(paragraph)]


def _is_english(text: str) -> bool:
    words = re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)
    if len(words) < 8 or not text[0].isalpha() or not text.isprintable():
        return False
    letters = sum(map(len, words))
    return (
        letters >= 0.75 * len(text.replace(" ", ""))
        and letters <= 9.0 * len(words)  # longer ones are identifiers
        and sum(word.lower() in _FUNCTION_WORDS for word in words) >= 0.2 * len(words)
    )


def _add_line(text: str, paragraphs: list[list[str]]) -> None:
    """Appends a line to the last paragraph, or begins a new one where the line is an item, a field or a heading."""
    if _RULE.match(text):
        if paragraphs[-1]:
            paragraphs[-1].pop()  # the heading that it underlines
        paragraphs.append([])
    elif bullet := _BULLET.match(text):
        paragraphs.append([text[bullet.end() :]])
    elif field := _FIELD.match(text):
        # "name (type): What it means." keeps what it means; in "name : type" only the next lines can mean something.
        rest = text[field.end() :].strip()
        paragraphs.append([rest] if rest and not text.startswith("..") and " :" not in field.group() else [])
    elif not paragraphs[-1] and _SECTION.match(text) and len(text.split()) < 4:
        paragraphs.append([])
    else:
        paragraphs[-1].append(text)


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.replace("\\", "").removesuffix("::").split())
