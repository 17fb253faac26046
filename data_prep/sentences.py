"""A simple sentence splitter, for the segments of next-sentence prediction.

A sentence ends at `.`, `!`, `?` or an ellipsis, with any closing quotes and brackets after it, where white space and then a
capital letter or a digit follow, opening quotes and brackets before it or not. "e.g. this" stays together, "Dr. Who" does
not, and a script without capitals is not split: its documents are cut by length.
"""

import re

_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019\u00bb)\]]*(?=\s+[\"'\u201c\u2018\u00ab(\[]*(?P<next>\S))")


def split_sentences(text: str) -> list[str]:
    """The sentences in order, each but the first with the white space before it: joined they are the text again.

    The space belongs to the sentence because byte-level tokenizers write it into the word that follows."""
    ends = [
        match.end()
        for match in _END.finditer(text)
        if match["next"].isupper() or match["next"].isdigit() or match["next"].istitle()
    ]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)] if text else []
