"""MediaWiki dumps: which pages become documents, what their text is, what is refused."""

import bz2
import collections
import gzip
import html
import io
import itertools
import json
import lzma
import os
import re
import signal
import sys
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import escape

import psutil
import pytest

from budget_trainer.core.errors import InputError
from data_prep import blocks, losses, mediawiki
from data_prep.files import lines, members
from data_prep.mediawiki import _read_pages, _Site, read_articles
from data_prep.recipe import DataRecipe
from data_prep.sentences import split_sentences
from data_prep.sources import Source
from tests.conftest import SHARED_DATA, alive, children, spawn, wait_for, words

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-{}/" version="{}" xml:lang="en">\n'
PROSE = "A sentence of some words about the subject of the page."


def page(title, text, ns=0, extra="", model="wikitext"):
    name = "" if ns is None else f"<ns>{ns}</ns>"
    return (
        f"<page>\n<title>{escape(title)}</title>\n{name}<id>1</id>\n{extra}<revision><id>2</id><contributor><username>U"
        f"</username></contributor><comment>text</comment><model>{model}</model><format>text/x-wiki</format>"
        f'<text bytes="9" xml:space="preserve">{escape(text)}</text><sha1>x</sha1></revision></page>\n'
    )


def dump(*pages, version="0.10", siteinfo=""):
    return HEAD.format(version, version) + siteinfo + "".join(pages) + "</mediawiki>\n"


def siteinfo(**names):
    listed = "".join(f'<namespace key="{key[1:].replace("_", "-")}">{name}</namespace>' for key, name in names.items())
    return f"<siteinfo><sitename>W</sitename><namespaces>{listed}</namespaces></siteinfo>\n"


@pytest.fixture
def read(tmp_path):
    """The documents of a dump, given as text, and what was dropped."""

    def read(text, **options):
        file = tmp_path / "dump.xml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        source = Source(str(file), **{"kind": "mediawiki", **options})
        return list(source.documents()), source.dropped

    return read


PACKERS = {"": bytes, ".bz2": bz2.compress, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("version", ["0.10", "0.11"])
def test_forms_are_found_by_looking(tmp_path, suffix, version):
    info = siteinfo(k6="File") if version == "0.11" else ""
    text = dump(page("A & B", PROSE), page("C", PROSE), version=version, siteinfo=info)
    (tmp_path / f"dump.xml{suffix}").write_bytes(PACKERS[suffix](text.encode()))
    source = Source(str(tmp_path / f"dump.xml{suffix}"))
    assert source.kind == "mediawiki"
    assert list(source.documents()) == [f"A & B {PROSE}", f"C {PROSE}"]


def test_a_folder_of_parts_beside_an_index(tmp_path):
    """Multistream files as they are published: many bz2 streams in one, a part per range of page ids."""
    for number, first in enumerate(["A", "B"]):
        streams = [HEAD.format("0.11", "0.11"), page(first, PROSE), page(first * 2, PROSE), "</mediawiki>"]
        name = f"wiki-pages-articles-multistream{number}.xml-p{number}p9.bz2"
        (tmp_path / name).write_bytes(b"".join(bz2.compress(stream.encode()) for stream in streams))
    (tmp_path / "wiki-index.txt.bz2").write_bytes(bz2.compress(b"616:10:A\n616:12:AA\n"))
    source = Source(str(tmp_path))
    assert source.kind == "mediawiki"
    assert list(source.documents()) == [f"{title} {PROSE}" for title in ("A", "AA", "B", "BB")]


def test_only_articles_become_documents_and_the_others_are_counted(read):
    pages = [page("Talk:Kept", PROSE, ns=1), page("Template:Kept", PROSE, ns=10), page("Kept", PROSE)]
    pages += [page("Moved", "#REDIRECT [[Kept]]", extra='<redirect title="Kept" />')]
    pages += [page("Moved in words", "\n #redirect: [[Kept]]"), page("Module data", "{}", model="json")]
    pages += [
        page("Numbered", f"#Redirects are named below.\n{PROSE}"),
        page("Nothing", "{{Infobox|a=b}}\n[[Category:X]]"),
    ]
    pages += [page("Ace", f"{PROSE}\n{{{{Disambiguation|geo}}}}")]
    pages += [page(title, PROSE) for title in ("Ace (disambiguation)", "Huế (định hướng)")]
    documents, dropped = read(dump(*pages))
    assert documents == [f"Kept {PROSE}", f"Numbered Redirects are named below. {PROSE}"]
    assert dropped == {"other_namespace": 2, "redirect": 2, "disambiguation": 3, "not_wikitext": 1, "empty": 1}


MARKED = """{{disambig}} | {{ Dab }} | {{hndis#Smith, John}} | {{Geodis}} | {{Human name disambiguation\n#x}} |
{{Disambiguation_cleanup}} | {{định hướng}} | {{Bản mẫu:Trang định hướng}} | {{Begriffsklärung}} | text __DISAMBIG__"""
OTHERS = """{{disambiguation needed#date=May}} | {{surname}} | {{DEFAULTSORT:Dab}} | <!-- {{disambig}} --> |
<nowiki>{{disambig}}</nowiki> | {{About#x#y#Z (disambiguation)}}"""


@pytest.mark.parametrize("texts, expected", [(MARKED, (1, {"disambiguation": 1})), (OTHERS, (2, {}))])
def test_disambiguation_pages(read, texts, expected):
    for text in texts.split(" |"):
        about = page("Disambiguation", f"{PROSE}\n{text.strip().replace('#', '|')}\nafter")
        documents, dropped = read(dump(page("Kept", PROSE), about))
        assert (len(documents), dropped) == expected, text


def test_dumps_without_ns_go_by_the_title(read):
    info = siteinfo(k14="Thể loại")
    pages = (page("Thể loại:A", PROSE, None), page("User talk:B", PROSE, None), page("2001: A film", PROSE, None))
    documents, dropped = read(dump(*pages, version="0.4", siteinfo=info))
    assert documents == [f"2001: A film {PROSE}"] and dropped == {"other_namespace": 2}


def test_the_last_revision_and_only_its_main_text(read):
    revisions = "".join(f"<revision><text>{word} {PROSE}</text></revision>" for word in ("Old", "New"))
    slot = "<content><role>media</role><model>json</model><text>slot</text></content></revision>"
    text = f"<page><title>A</title><ns>0</ns>{revisions.removesuffix('</revision>')}{slot}</page>"
    assert read(dump(text))[0] == [f"A New {PROSE}"]


@pytest.mark.parametrize(
    "text, message",
    [
        (dump(page("A", PROSE))[:-13], r"broken XML at line \d+, column \d+ \(no element found\)"),
        (dump(page("A", PROSE)).replace("</title>", "</titel>"), r"line 3, column \d+ \(mismatched tag\)"),
        (dump(page("A", PROSE)).encode().replace(b"sentence", b"sent\xffence"), r"not well-formed"),
        (dump(page("A", PROSE).replace("<ns>0", "<ns>zero")), r"<ns> 'zero' is not a number \(line 4"),
        ("<html><body>x</body></html>", r"the root element is <html> \(line 1, column 0\)"),
        ("", "broken XML at line 1, column 0"),
    ],
)
def test_bad_xml_is_refused_in_one_line(read, text, message):
    with pytest.raises(InputError, match=message) as error:
        read(text)
    assert "dump.xml: " in str(error.value) and "\n" not in str(error.value)
    if isinstance(text, bytes):  # what is not UTF-8 can be replaced
        assert read(text, errors="replace")[0] == ["A " + PROSE.replace("sentence", "sent\ufffdence")]


def test_an_entity_bomb_is_refused_before_it_is_expanded(tmp_path):
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    file = tmp_path / "bomb.xml"
    file.write_text(f'<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY e0 "ha">{bomb}]>\n<mediawiki>&e11;</mediawiki>')
    source = Source(str(file))  # found to be a dump, so that it is not read as text
    with pytest.raises(InputError, match="DOCTYPE or entity declaration.*line 2,"):
        list(source.documents())


def test_a_huge_page_is_counted_and_not_kept(read, monkeypatch):
    monkeypatch.setattr(mediawiki, "MAX_PAGE_CHARACTERS", 10_000)
    documents, dropped = read(dump(page("Huge", "word " * 200_000), page("A", PROSE)))
    assert documents == [f"A {PROSE}"] and dropped == {"too_large": 1}


class Endless(io.RawIOBase):
    """`head`, then `piece` for ever; fails when more than `limit` bytes are asked for."""

    def __init__(self, head, piece, limit):
        self._rest, self._piece, self._left = head, piece, limit

    def read(self, size=-1):
        self._left -= size
        assert self._left > 0, "read on without end"
        while len(self._rest) < size:
            self._rest += self._piece * (size // len(self._piece) + 1)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def test_reading_is_lazy():
    """Pages come while the rest of an endless dump is still unread."""
    stream = Endless(HEAD.format("0.10", "0.10").encode(), page("A", PROSE).encode(), 2_000_000)
    pages = _read_pages("dump", stream, _Site())
    assert [next(pages).title for _ in range(1000)] == ["A"] * 1000
    with pytest.raises(InputError, match="one tag or comment of more than 16777216 bytes from byte 0"):
        list(_read_pages("dump", Endless(b"<mediawiki a='", b"xxxxxxxx", 30_000_000), _Site()))


def test_names_of_the_dumps_language_and_one_line(read):
    info = siteinfo(k6="Tập tin", k14="Thể loại", k_2="Phương tiện", k4="Wikipedia")
    text = f"[[Tập_tin:a.jpg|nhỏ|[[b]]]] {PROSE} [[Hình:x]]\n[[thể loại:C]] [[File:d.jpg]] [[Image:e]]"
    text += " [[Phương tiện:f]]"
    lines = page("A\n title", "One.\r\n\r\nTwo<nowiki>\n</nowiki>three.\n \n* Four&#10;five")
    documents = read(dump(page("A", text), lines, siteinfo=info))[0]
    assert documents == [f"A {PROSE}", "A title One. Two three. Four five"]
    assert "Tập tin:a.jpg" not in read(dump(page("A", text.replace("_", " "))))[0][0].partition(PROSE)[2]


@pytest.mark.parametrize(
    "head, info",
    [
        ("en", "<siteinfo><dbname>frwiki</dbname></siteinfo>\n"),
        ("en", "<siteinfo><dbname>frwiktionary</dbname></siteinfo>\n"),
        ("xx", "<siteinfo><dbname>mine</dbname><base>https://fr.wikipedia.org/wiki/A</base></siteinfo>\n"),
        ("fr", "<siteinfo><dbname>mine</dbname><base>http://localhost/wiki/A</base></siteinfo>\n"),
        ("fr-CA", ""),
    ],
)
def test_templates_are_those_of_the_dumps_language(read, head, info):
    """{{s|XIX}} is a century in French; {{en}} shows the language of a source."""
    text = dump(page("A", f"{PROSE} Au {{{{s|XIX}}}} on {{{{en}}}} dit."), siteinfo=info).replace(
        'lang="en"', f'lang="{head}"'
    )
    assert read(text)[0] == [f"A {PROSE} Au XIXe siècle on dit."]


REDIRECTS = """REDIRECT WEITERLEITUNG REDIRECTION REDIRECCIÓN RINVIA ПЕРЕНАПРАВЛЕНИЕ 転送 重定向 PATRZ REDIRECIONAMENTO đổi
تحويل تغییر_مسیر 넘겨주기 अनुप्रेषित"""


def test_redirects_in_words_of_every_language(read):
    pages = [page(f"R{word}", f"#{word} [[A]]\n{PROSE}") for word in REDIRECTS.split()]
    pages += [
        page("One", f"＃转送 {PROSE}"),
        page("Two", "＃転送:[[A]]"),
        page("Three", f"# Patrz is a word. [[A]] {PROSE}"),
    ]
    documents, dropped = read(dump(*pages))
    assert [text.partition(" ")[0] for text in documents] == ["One", "Three"]
    assert dropped == {"redirect": len(REDIRECTS.split()) + 1}


def test_what_templates_lost_is_counted_and_said(read, tmp_path, capsys):
    text = dump(page("A", f"{PROSE} It is by {{{{who|x}}}} {{{{y|b|n=c}}}} of it. {PROSE}"), page("B", PROSE))
    assert read(text)[0] == [f"A {PROSE} {PROSE}", f"B {PROSE}"]
    source = Source(str(tmp_path / "dump.xml"), num_proc=2)
    for _ in range(2):  # of the last reading
        entries = []
        list(source.counted(entries))
    facts = {"left_out": 1, "sentences": 4, "with_a_hole": 1, "sentences_dropped": 1, "most": {"y": 1}}
    assert entries[0]["account"] == {"templates": facts}
    said = losses.lines({"sources": entries})[1]
    assert (
        "1 in 25.0% of the sentences (dropped); most: y 1" in said
        and "warning: give what they show as templates:" in said
    )

    def one(**options):
        source, entries = Source(str(tmp_path / "dump.xml"), **options), []
        return next(iter(list(source.counted(entries)))), "".join(losses.lines({"sources": entries}))

    document, said = one(drop_holes=False)
    assert document == f"A {PROSE} It is by of it. {PROSE}" and "(kept, with a hole)" in said
    assert one(templates={"Y": "{1}[ in {n}]"}) == (f"A {PROSE} It is by b in c of it. {PROSE}", "")
    assert "left out of prose: 1 in 33.3%" in one(max_documents=1)[1]
    recipe = tmp_path / "r.yaml"
    for templates, message in (
        ('{y: "{1"}', "templates: y: .{4} is no pattern"),
        ("{y: 5}", "templates: y: 5 is no"),
        ("y", "not a dict"),
    ):
        recipe.write_text(
            f"output_dir: o\ntokenizer: t\nsources: [{{input: {tmp_path}/dump.xml, templates: {templates}, drop_holes: false}}]"
        )
        with pytest.raises(InputError, match=message):
            DataRecipe.read(recipe)
    with pytest.raises(InputError, match="^templates: only for kind mediawiki, and .*r.yaml is text; leave it out"):
        Source(str(recipe), "text", templates={"y": "{1}"})
    recipe.write_text(recipe.read_text().replace(" y,", ' {y: "{1}"},'))
    (source,) = DataRecipe.read(recipe).sources
    assert (source.templates, source.drop_holes) == ({"y": "{1}"}, False)


def many(count=60):
    words = [f"{PROSE} Page {n} has its own words, [[number]] {n * n}." for n in range(count)]
    return dump(*(page(f"P{n}", "\n".join([text] * 5)) for n, text in enumerate(words)), page("R", "#REDIRECT [[P1]]"))


def test_the_result_does_not_depend_on_the_processes(read, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mediawiki, "CHUNK_CHARACTERS", 1000)
    one, two = read(many()), read(many(), num_proc=2)
    assert one == two and len(one[0]) == 60 and one[1] == {"redirect": 1}
    (tmp_path / "a.xml").write_text(many())
    flags = {"input": tmp_path / "a.xml", "tokenizer": tokenizer, "num_proc": 2, "num_shards": 1, "max_unknown": 1}
    assert blocks.main(words({**flags, "output_dir": tmp_path / "out", "validation_fraction": 0})) == 0
    assert "a.xml: read as mediawiki" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"]
    assert (entry["kind"], entry["documents"], entry["dropped"]) == ("mediawiki", 60, {"redirect": 1})
    source = Source(str(tmp_path / "a.xml"))
    assert len(list(source.documents())) == len(list(source.documents())) == 60
    assert source.dropped == {"redirect": 1}, "of the last reading"


def forked():
    """Process ids of the workers: other processes that tests start have another command line than this one."""
    mine = psutil.Process().cmdline()
    return [pid for pid in children(os.getpid()) if psutil.Process(pid).cmdline() == mine]


def test_an_error_behind_good_pages_comes_through_the_processes(read, monkeypatch):
    monkeypatch.setattr(mediawiki, "CHUNK_CHARACTERS", 1000)
    with pytest.raises(InputError, match="broken XML"):
        read(many()[:-30], num_proc=2)
    assert not forked()


def test_a_killed_process_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(mediawiki, "CHUNK_CHARACTERS", 1000)
    (tmp_path / "dump.xml").write_text(many(400))
    documents = Source(str(tmp_path / "dump.xml"), num_proc=2).documents()
    next(documents)
    os.kill(forked()[0], signal.SIGKILL)
    with pytest.raises(InputError, match=r"dump.xml: a process that converts pages was killed.*--num_proc"):
        list(documents)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "dump.xml").write_text(many(400))
    code = """import sys, time\nfrom data_prep import mediawiki\nfrom data_prep.sources import Source
mediawiki.CHUNK_CHARACTERS = 1000
documents = Source(sys.argv[1], num_proc=2).documents()
print('ready' if next(documents) else '', flush=True)
time.sleep(100)"""
    parent = spawn([sys.executable, "-c", code, str(tmp_path / "dump.xml")])
    assert parent.stdout.readline() == "ready\n"
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.kill()
    try:
        wait_for(lambda: not any(map(alive, workers)), 20)
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)


# Titles of documents in which markup may be left: it stands in <nowiki> there.
LITERAL = {"viwiki-20240701-excerpt": {"Tôn Hồng Lôi"}}
NO_MARKUP = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|\|-|''|</?ref|\[(?:https?:)?//|\b(?:thumb|px)\||__[A-Z]+__|<!--"
)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
@pytest.mark.parametrize(
    "name, articles", [("enwiki-2016-excerpt", 106), ("enwiki-2017-table-markup", 5), ("viwiki-20240701-excerpt", 129)]
)
def test_real_dumps(name, articles):
    with bz2.open(SHARED_DATA / f"{name}.xml.bz2") as stream:
        root = ElementTree.parse(stream).getroot()
    space = root.tag.partition("}")[0] + "}"
    pages = [(p.findtext(f"{space}title"), p.findtext(f"{space}ns"), p) for p in root.iter(f"{space}page")]
    titles = [title for title, ns, p in pages if ns == "0" and p.find(f"{space}redirect") is None]
    assert len(titles) == articles
    source = Source(str(SHARED_DATA / f"{name}.xml.bz2"))
    documents = list(source.documents())
    assert len(documents) + sum(source.dropped.values()) == len(pages)
    assert source.dropped.get("redirect", 0) + source.dropped.get("other_namespace", 0) == len(pages) - articles
    assert set(source.dropped) <= {"redirect", "other_namespace", "disambiguation"}
    expected = iter(titles)  # each once and in order, but for the disambiguation pages
    found = [next(title for title in expected if document.startswith(f"{title} ")) for document in documents]
    marked = collections.Counter(titles) - collections.Counter(found)
    assert sum(marked.values()) == source.dropped.get("disambiguation", 0)
    left = {title for title, text in zip(found, documents, strict=True) if NO_MARKUP.search(text)}
    assert left <= LITERAL.get(name, set())
    assert not any("\n" in text for text in documents)


def only_words(text):
    return " ".join(re.findall(r"\w+", html.unescape(text).lower()))


def bare(wikitext):
    """The words of a page whose markup is taken away by patterns, which share nothing with the reader."""
    text = re.sub(r"<!--.*?-->|<ref[^<>]*/>|<(ref|math)\b.*?</\1>", "", wikitext, flags=re.S)
    for pattern, label in ((r"\{\{[^{}]*\}\}", ""), (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1")):
        before = None
        while before != text:  # innermost first
            before, text = text, re.sub(pattern, label, text)
    return only_words(re.sub(r"</?[a-z][^<>]*>|\[https?:[^ ]+ ?", "", text.replace("''", "")))


def has_around(text, sentence):
    """Whether a stretch of the text holds these words in this order, and up to 15 more."""
    text, wanted = text.split(), sentence.split()
    stretches = (iter(text[at : at + len(wanted) + 15]) for at, word in enumerate(text) if word == wanted[0])
    return any(all(word in rest for word in wanted) for rest in stretches)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_what_wikiextractor_has_of_the_same_revision_is_in_ours():
    """Its articles are years younger, so its sentences count that stand in the wikitext; for a template it has a hole."""
    theirs = {}
    for name, stream in members(SHARED_DATA / "wikiextractor_sample.tar.xz"):
        text = "\n".join(lines(name, stream)) if "doc_format" in name else ""
        theirs |= dict(re.findall(r'<doc id="\d+" url="[^"]*" title="([^"]*)">\n(.*?)</doc>', text, re.S))
    theirs = {html.unescape(title): text.strip().split("\n") for title, text in theirs.items()}
    dump = SHARED_DATA / "enwiki-2016-excerpt.xml.bz2"
    with bz2.open(dump) as stream:
        raw = {page.title: page.text for page in _read_pages("dump", stream, _Site()) if page.title in theirs}
    articles = read_articles(dump, "strict", 1, {}, lambda size: None, drop_holes=False)
    ours = {article[0]: article for article in articles}
    assert len(raw) == 37 and raw.keys() - ours.keys() == {"Alien", "Austin (disambiguation)"}, "lists of meanings"
    found, lost = 0, []
    for title in raw.keys() & ours.keys():
        assert title == theirs[title][0] != ours[title][1]
        here, text = f" {bare(raw[title])} ", " ".join(map(only_words, ours[title]))
        for sentence in map(only_words, itertools.chain(*map(split_sentences, theirs[title]))):
            if sentence.count(" ") > 2 and f" {sentence} " in here:
                found += 1
                lost += [] if f" {sentence} " in f" {text} " or has_around(text, sentence) else [sentence]
    assert found > 4300 and not lost, "4,323 were measured"
