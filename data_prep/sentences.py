"""Where sentences end.

A sentence ends, closing quotes and brackets included, at `.`, `!`, `?` or an ellipsis where white space and then a capital
letter or a digit follow, opening quotes and brackets before it or not ("e.g. this" stays together, "Dr. Who" does not), or
where letters without case stand on both sides; and at the marks of other scripts (`。！？`, `।`, `؟`, `۔` and the like), white
space behind them or none. Thai and Lao have no mark: their sentences are cut by length, which the manifest counts.
"""

import re
import sys
from collections.abc import Iterator

# The marks of `_FULL` end a sentence with or without white space behind them: CJK, Indic dandas, Arabic, Urdu, Armenian,
# Ethiopic, Burmese, Khmer, Tibetan, Mongolian, Santali, Meitei.
_FULL = "。！？｡﹖﹗।॥؟۔։።፧။។៕།᠃᠉᱾᱿꯫"
_CLOSING = "\"'”’“‘»›«‹)\\]」』）］】〉》〕｣"
_CLOSING_CJK = re.sub("[“‘«]", "", _CLOSING)  # which open there
_OPENING = "\"'“‘„‚«»‹›(\\[¿¡「『（［【〈《〔｢"
_CJK = "\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
_END = re.compile(
    f"[.!?…．;\u037e{_FULL}](?:"
    rf"(?<=[.!?…])[{_CLOSING}]*(?:[ \u00a0\u202f]»)?(?=\s+[{_OPENING}]*(?P<next>\S))"
    rf"|(?<=[{_FULL}])[.!?…{_FULL}{_CLOSING_CJK}]*+(?=\s*[^\s,;:，、；：])(?!\s+[a-z])"
    rf"|(?<=[{_CJK}][!?．])[!?{_FULL}{_CLOSING_CJK}]*+(?=[{_CJK}「『（［【〈《〔“‘])"
    r"|(?<=[\u0370-\u03ff\u1f00-\u1fff][;\u037e])(?=\s+[\u0386-\u03ab\u1f08-\u1fff]))"  # Greek asks with a semicolon
)


def sentence_ends(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[int]:
    """Where sentences of text[start:end] end, in order."""
    return (match.end() for match in _END.finditer(text, start, end) if _is_end(text, match))


def split_sentences(text: str) -> list[str]:
    """The sentences in order, each but the first with the white space before it (byte-level tokenizers write it into the
    word that follows): joined they are the text again."""
    ends = list(sentence_ends(text))
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)] if text else []


def _is_end(text: str, match: re.Match[str]) -> bool:
    behind = match["next"]
    if behind is None:
        return True
    if "“" in match[0] and "„" not in text:  # it closes in German alone
        return False
    if behind.isupper() or behind.isdigit() or behind.istitle():
        return True
    return behind.isalpha() and _is_caseless(behind) and _is_caseless(text[max(0, match.start() - 1)])


def _is_caseless(character: str) -> bool:
    return (
        character.lower() == character.upper() or "\u10d0" <= character <= "\u10ff"
    )  # Georgian, whose capitals are for titles
