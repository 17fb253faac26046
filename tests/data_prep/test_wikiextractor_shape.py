"""Our reading of a dump beside WikiExtractor's of the same articles.

Both samples are excerpts as published: the dump is of May 2016, WikiExtractor's output of articles as they were in 2019 or
2020 (it names both years), so nearly half of its sentences were written or changed since. Whether one is in the dump's
revision is asked of the raw wikitext, stripped by patterns of this file that share nothing with the reader; those that are
must be in ours. The other way around the paragraphs count of which both have half of the sentences, changes included.

WikiExtractor leaves out list items and headings; where a template stood it has a hole, ours may have words.
"""

import bz2
import html
import itertools
import re

import pytest

from data_prep.corpus import split_sentences
from data_prep.files import lines, members
from data_prep.mediawiki import Site, read_articles, read_pages
from tests.conftest import SHARED_DATA

pytestmark = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
DUMP = SHARED_DATA / "enwiki-2016-excerpt.xml.bz2"
REWRITTEN = {"Abraham Lincoln", "Arithmetic mean"}  # so that even the paragraphs that stayed share less than 70 %
LISTS_OF_MEANINGS = {"Alien", "Austin (disambiguation)"}  # dropped by ours
FILLED = 15  # words that ours may have where WikiExtractor has a hole


def words(text):
    return " ".join(re.findall(r"\w+", html.unescape(text).lower()))


class Text:
    """A title and paragraphs. `sentences`: by paragraph, those of four words and more as words; `flat`: all words."""

    def __init__(self, paragraphs):
        self.title, self.paragraphs = paragraphs[0], [words(text).split() for text in paragraphs]
        found = ([words(sentence) for sentence in split_sentences(text)] for text in paragraphs)
        self.sentences = [[sentence for sentence in some if sentence.count(" ") > 2] for some in found]
        self.flat = f" {' '.join(map(words, paragraphs))} "

    def has(self, sentence):
        return f" {sentence} " in self.flat

    def has_around(self, sentence):
        """Whether a stretch of a paragraph holds these words in this order, and a few more."""
        wanted = sentence.split()
        for paragraph in self.paragraphs:
            for start in (at for at, word in enumerate(paragraph) if word == wanted[0]):
                rest = iter(paragraph[start : start + len(wanted) + FILLED])
                if all(word in rest for word in wanted):
                    return True
        return False


def bare(wikitext):
    """The words of a page whose markup is taken away by patterns."""
    text = re.sub(r"<!--.*?-->|<ref[^<>]*/>|<(ref|math)\b.*?</\1>", "", wikitext, flags=re.S)
    for pattern, label in ((r"\{\{[^{}]*\}\}", ""), (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1")):
        before = None
        while before != text:  # innermost first
            before, text = text, re.sub(pattern, label, text)
    text = re.sub(r"</?[a-z][^<>]*>|\[https?:[^ ]+ ?", "", text.replace("''", ""))
    return f" {words(text)} "


@pytest.fixture(scope="module")
def shared():
    """(WikiExtractor's, ours, wikitext) of the articles that both samples have."""
    theirs = {}
    for name, stream in members(SHARED_DATA / "wikiextractor_sample.tar.xz"):
        text = "\n".join(lines(name, stream)) if "doc_format" in name else ""
        for title, body in re.findall(r'<doc id="\d+" url="[^"]*" title="([^"]*)">\n(.*?)</doc>', text, re.S):
            theirs[html.unescape(title)] = Text([line for line in body.split("\n") if line.strip()])
    with bz2.open(DUMP) as stream:
        raw = {page.title: page.text for page in read_pages("dump", stream, Site()) if page.namespace == 0}
    articles = read_articles(DUMP, "strict", 1, {}, lambda size: None)
    ours = {article[0]: Text(article) for article in articles if article[0] in theirs}
    both = theirs.keys() & raw.keys()
    assert len(both) == 37 and both - ours.keys() == LISTS_OF_MEANINGS
    return [(theirs[title], text, raw[title]) for title, text in ours.items()]


def test_what_wikiextractor_has_of_this_revision_is_in_ours(shared):
    written = in_revision = 0
    for theirs, ours, wikitext in shared:
        assert ours.title == theirs.title and ours.paragraphs[0] == theirs.paragraphs[0] != ours.paragraphs[1]
        here, sentences = bare(wikitext), list(itertools.chain(*theirs.sentences))
        same = [sentence for sentence in sentences if f" {sentence} " in here]
        written, in_revision = written + len(sentences), in_revision + len(same)
        assert [sentence for sentence in same if not ours.has(sentence) and not ours.has_around(sentence)] == []
    assert written > 7500 and in_revision > 4300, "7,574 and 4,323 were measured"


def test_what_ours_has_is_in_wikiextractor(shared):
    """In paragraphs that both have: 86 % of our sentences; the rest was changed in three years."""
    counts = {}
    for theirs, ours, _ in shared:
        found = ((len(paragraph), sum(map(theirs.has, paragraph))) for paragraph in ours.sentences)
        both = [(0, 0), *((size, same) for size, same in found if size > 1 and 2 * same >= size)]
        counts[ours.title] = [sum(column) for column in zip(*both, strict=True)]
    sentences, common = (sum(column) for column in zip(*counts.values(), strict=True))
    assert sentences > 4400 and common > 0.85 * sentences, "4,503 and 3,867 were measured"
    assert {title for title, (size, same) in counts.items() if same < 0.7 * size} <= REWRITTEN
