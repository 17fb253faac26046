"""Wikitext to paragraphs: markup goes, prose stays, whatever is not balanced, in linear time."""

import gc
import random
import re
import time

import pytest

from data_prep.mediawiki import Site, is_disambiguation
from data_prep.wikitext import converter

PROSE = "A sentence of some words about the subject of the page."


def plain(text):
    return converter(Site().invisible()).paragraphs(text)


# What a page is made of in each case; _ stands for a space, ~ for a line end.
UNITS = """[[ {{ }} ]] ] {{{ [[a| [[a|[[ [[File:a| [[File:a|[[b]] [[en:a| <ref> <b <!-- <nowiki> '' '''a_''b __A & -{ {|~ {{!}}~
<ref>~~ ({{a}} <a_[[b]] [http:// [[a]]_ *_[[a]]~ {{disambig_ {{a_disambig _ {{a}}_ a -{a:b =_ =x {{_ |}}} {{disambig}}<!--
[http://a_ [[_ __A_ <table> </table> (; TAB~ &amp; <ref_name=a_ {{lang|fr| {{lang|fr|a_ {{lang|fr|[[a| {{convert|1|-| {{quote|~
{{lang|fr|{{lang|fr|{{lang|fr|{{lang|fr|{{lang|fr|a}}}}}}}}}} {{a}},_ ({{a}}, a_=_"""
UNITS = [
    unit.replace("__A", "\1A").replace("_", " ").replace("\1", "__").replace("TAB", "\t").replace("~", "\n")
    for unit in UNITS.split()
]


@pytest.mark.parametrize("unit", UNITS)
def test_pathological_pages_take_linear_time(unit):
    """Four times the text takes about four times as long, not sixteen times (half a second is for noise)."""
    gc.disable()  # a collection in a process of many tests takes as long

    def seconds(characters):
        text = unit * (characters // len(unit))
        start = time.process_time()
        for around in ("{}", "x {} y", "[[a]] = {}=", "[http://{}", "-{{{}", "{{{{{}", "=={}x"):
            plain(around.format(text))
            is_disambiguation("A", around.format(text))
        return time.process_time() - start

    try:
        assert seconds(100_000) < 8 * seconds(25_000) + 0.5
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "wikitext, expected",
    [
        # links
        ("See [[bus]]es and [[Ship (boat)|ships]].", "See buses and ships."),
        ("[[:Category:Towns]] and [[#Section|below]]", "Category:Towns and below"),
        ("an ''[[a|'''bold''' [b] label]]''", "an bold [b] label"),
        ("A [http://x.org/a?b=c label of ''words''] and [http://x.org] end", "A label of words and end"),
        ("see https://x.org/a", "see https://x.org/a"),
        ("The [[:de:Haus|house]] and [[wikt:word|word]]", "The house and word"),
        # what shows no prose
        ("a<!-- c -->b<!-- [[ {{ -->", "ab"),
        ("Text.<ref>{{cite|a}} [[b]]</ref> More<ref name=x/> text<ref name='a' />.", "Text. More text."),
        ("A <ref name=a>b</ref>word {{a|{{b|c}}|d={{e}}}} end", "A word end"),
        ("Born {{birth|{{{1|2}}}}} here", "Born here"),
        ("Where <math>a|b [[c]] {{d}} <ref>x</ref></math> holds", "Where holds"),
        ("x[[File:a.jpg|thumb|A [[b|c]] and [[d]] [http://e f]]]y", "x y"),
        ("[[image:a.png|{{b}}]] One [[Media:x.ogg|listen]]", "One"),
        ("One __NOTOC__two __init__ three", "One two __init__ three"),
        ("<gallery>\nFile:a.jpg|A [[b]]\n</gallery> after", "after"),
        ("-{zh-hans:one; zh-hant:two}- three", "one three"),
        # marks
        ("'''Bold''' and ''italic'' and '''''both''''' it's", "Bold and italic and both it's"),
        ("L'''Iliade'' and '''b'''", "L'Iliade and b"),
        ("caf&eacute;&nbsp;&lt;b&gt; &amp;amp; &#8211; AT&T", "café <b> &amp; – AT&T"),
        ("{{a|\n{|\n| b\n|}}} one {{a|\n|}} two", "one two"),
        ("One {{a}} [[two]] three {{b}} [[four|five]] six", "One two three five six"),
        ("a<br />b<br\\>c<BR>d", "a b c d"),
        ("one<ref name=a / > two<ref>b</ref>", "one two"),
        ("a<br />b <small>c</small> H<sub>2</sub>O <span class='x'>d</span>", "a b c H2O d"),
        ("* ''one''", "one"),
        ("#:; two", "two"),
        ("word ({{lang|fr}}; born 1), ({{a}}) and {{b}}, c.", "word (born 1), and, c."),
        # literal text
        ("<nowiki>[[a]] {{b}} ''c''</nowiki> &amp; <code>d</code>", "[[a]] {{b}} ''c'' & d"),
        ("<syntaxhighlight lang='c' inline>a[[1]]</syntaxhighlight> is", "a[[1]] is"),
        ("is <syntaxhighlight lang='c'>\na[[1]]\n</syntaxhighlight>", "is"),
        ("1 < 2 and [[a]] <3", "1 < 2 and a <3"),
    ],
)
def test_inline_markup(wikitext, expected):
    assert plain(wikitext) == [expected]


def test_tables_and_lines_of_interlanguage_links_are_dropped():
    text = f"""{PROSE}
{{| class="a"
! head !! head
|-
| cell {{{{t|
{{| inner
|}}
}}}} || [[a|b]]
|
{{|
| nested
|}}
| last
|}}
After.
<table><tr><td>cell<table><td>inner</td></table></td></tr></table>
:{{|
|indented
|}}
{{{{(!}}}}"""
    assert plain(text) == [PROSE, "After."]
    text = f"{PROSE}\n[[Category:A|b]]\n[[de:Haus]] [[zh-yue:X]]\n[[simple:House]]\n[[mw:Help]]"
    assert plain(text) == [PROSE, "mw:Help"]


def test_headings_stay_where_text_follows():
    text = f"""{PROSE}
== Empty ==
{{{{a}}}}
== Outer ''one'' == <!-- c -->
=== Inner ===
* Item with words
== Holds a deeper one ==
=== Deeper ===
=== Last ===
{PROSE}
== See also ==
* [[One]]
* [[Two]] – a few words
== Further reading ==
* A long title of a book that somebody wrote, with a publisher, 2001. ISBN 1-2345
== External links ==
* [http://a b]
{{{{navbox}}}}
[[Category:A]]"""
    kept = [PROSE, "Outer one", "Inner", "Item with words", "Holds a deeper one", "Last", PROSE]
    assert plain(text) == kept
    prose_last = text.replace("{{navbox}}", PROSE)  # then nothing at the end is only a list
    assert plain("* [[One]]\n* [[Two]]") == ["One", "Two"]  # before the first heading
    assert plain(prose_last)[-3:] == ["External links", "b", PROSE] and "Two – a few words" in plain(prose_last)


LEFT = re.compile(r"\{\{|\[\[|\|-|<ref|\{\||\]\]|\}\}|\|\}")


@pytest.mark.parametrize(
    "wikitext, kept",
    [
        ("{{Infobox\n| a = [[b]]\n| c\n\n" + PROSE, [PROSE]),  # never closed
        (PROSE + "\n{| class=a\n! head\n|-\n| cell\n" + PROSE, [PROSE, PROSE]),
        ("Open [[link|label and " + PROSE, ["Open label and " + PROSE]),
        ("Open [[link and [[a|b]] " + PROSE, ["Open link and b " + PROSE]),
        ("Closed link]] and }} " + PROSE, ["Closed link and " + PROSE]),
        ("[[File:a.jpg|thumb|[[b]] caption\n" + PROSE, [PROSE]),
        ("Text <ref name=a>open\n\n" + PROSE + "<ref>b</ref>", ["Text open", PROSE]),
        ("Text <ref name=a " + PROSE + "\n" + PROSE, ["Text", PROSE]),
        ("Text {{cite|a\n" + PROSE, ["Text", PROSE]),
        ("A [http://a b and [[c]]\n" + PROSE, ["A [http://a b and c", PROSE]),
        ("|}\n|-\n" + PROSE, [PROSE]),
        ("! Kung\n" + PROSE, ["! Kung", PROSE]),  # a mark only in a table
        ("</ref> " + PROSE + "{{a}}}}", [PROSE]),
        ("{{a|{{b}} [[c]]\n" + PROSE + "{{d}}", [PROSE]),
        ("[[a|[[b|c]]\n" + PROSE, ["c", PROSE]),
    ],
)
def test_markup_that_is_not_balanced(wikitext, kept):
    paragraphs = plain(wikitext)
    assert not LEFT.search("\n".join(paragraphs))
    assert paragraphs == kept


TOKENS = """[[ ]] {{ }} {| |} |- | a [http://x ] <ref> <ref <ref/> </ref> '' \'\'\' == * File: [[File: -{ }- <b> { } <!-- -->
<table> </table> ( ) . {{{ }}} ! = [[a|b]] {{t}} : < - <gallery> __A__ &amp; <math> </math> en: b"""


def test_no_markup_is_left_of_anything():
    chance = random.Random(0)
    tokens = [*TOKENS.split(), "\n", "\n\n", " "]
    for _ in range(5000):
        text = "".join(chance.choices(tokens, k=chance.randint(3, 25)))
        assert not LEFT.search("".join(f"{line} " for line in plain(text))), text
