"""The simple sentence rule, and nothing lost between sentences."""

import pytest

from data_prep.sentences import split_sentences


@pytest.mark.parametrize(
    "text, count",
    [
        ("", 0),
        ("No end", 1),
        ("One. Two. Three.", 3),
        ("One! Two? Three\u2026 Four... Five?! Six.", 6),
        ("It costs 3.5 pounds. 20 were sold.", 2),
        ("See e.g. this one, i.e. that.", 1),
        ('He said "Go." "No." (She left.) Then he went.', 4),
        ("\u201cOne.\u201d \u201cTwo.\u201d \u00abTrois.\u00bb \u00c9t\u00e9.", 4),
        ("One.Two is not split.", 1),
        ("One.\u00a0Two is.", 2),
        ("Spaces.   Many  of them.  ", 2),
        ("all lower case. no capitals. none", 1),
    ],
)
def test_sentences(text, count):
    sentences = split_sentences(text)
    assert len(sentences) == count
    assert "".join(sentences) == text
    assert all(sentence.strip() for sentence in sentences)
