"""Which parts of a docstring are English sentences, and those parts without their markup."""

import inspect
import re

# A sixth of running English is made of these; signatures, tables and lists of values have hardly any.
_FUNCTION_WORDS = frozenset(
    "a about after all also an and any are as at be because been before but by can could do does each either else for "
    "from given has have how if in into is it its like may more most must no not of on one only or other over same "
    "should so some such than that the their them then there these they this those to under until up use used uses "
    "using was we were what when where which while will with without would you your".split()
)
MIN_WORDS = 8
MIN_LETTERS = 0.75  # share of ASCII letters among the characters that are not spaces
MIN_FUNCTION_WORDS = 0.2
MAX_MEAN_WORD = 9.0  # letters: longer ones are identifiers

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
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def paragraphs_of(docstring: str) -> list[str]:
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
    return [paragraph for paragraph in cleaned if is_english(paragraph)]


def is_english(text: str) -> bool:
    """Whether the text reads like English sentences: enough words, mostly letters, a share of function words as in
    prose, words of ordinary length, no control characters."""
    words = _WORD.findall(text)
    if len(words) < MIN_WORDS or not text[0].isalpha() or not text.isprintable():
        return False
    letters = sum(map(len, words))
    return (
        letters >= MIN_LETTERS * len(text.replace(" ", ""))
        and letters <= MAX_MEAN_WORD * len(words)
        and sum(word.lower() in _FUNCTION_WORDS for word in words) >= MIN_FUNCTION_WORDS * len(words)
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
