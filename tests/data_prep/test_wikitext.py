"""Wikitext to paragraphs: markup goes, prose stays, whatever is not balanced, in linear time."""

import gc
import itertools
import random
import re
import time

import pytest

from budget_trainer.core.errors import InputError
from data_prep.mediawiki import _is_disambiguation, _Site
from data_prep.templates import Lost, check_pattern, languages
from data_prep.wikitext import converter

PROSE = "A sentence of some words about the subject of the page."


def plain(text, language="", **options):
    return converter(_Site().invisible(), language, **options).paragraphs(text, "Title")


# What a page is made of in each case; _ stands for a space, ~ for a line end.
UNITS = """[[ {{ }} ]] ] {{{ [[a| [[a|[[ [[File:a| [[File:a|[[b]] [[en:a| <ref> <b <!-- <nowiki> '' '''a_''b __A & -{ {|~ {{!}}~
<ref>~~ ({{a}} <a_[[b]] [http:// [[a]]_ *_[[a]]~ {{disambig_ {{a_disambig _ {{a}}_ a -{a:b =_ =x {{_ |}}} {{disambig}}<!--
[http://a_ [[_ [[a:.jpg <rt>a <math>a </math> {{subst: {{R}}一 -{a=>
__A_ <table> </table> (; TAB~ &amp; <ref_name=a_ {{lang|fr| {{lang|fr|a_ {{lang|fr|[[a| {{convert|1|-| {{quote|~
{{lang|fr|{{lang|fr|{{lang|fr|{{lang|fr|{{lang|fr|a}}}}}}}}}} {{a}},_ ({{a}}, a_=_"""
UNITS = [
    unit.replace("__A", "\1A").replace("_", " ").replace("\1", "__").replace("TAB", "\t").replace("~", "\n")
    for unit in UNITS.split()
]


@pytest.mark.parametrize("unit", UNITS)
def test_pathological_pages_take_linear_time(unit):
    """Eight times the text takes about eight times as long, not sixty-four times (0.15 seconds are for noise)."""
    gc.disable()  # a collection in a process of many tests takes as long

    def seconds(characters):
        text = unit * (characters // len(unit))
        start = time.process_time()
        for around in ("{}", "x {} y", "[[a]] = {}=", "[http://{}", "-{{{}", "{{{{{}", "=={}x"):
            plain(around.format(text))
            _is_disambiguation("A", around.format(text))
        return time.process_time() - start

    try:
        assert seconds(40_000) < 24 * seconds(5_000) + 0.15
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
        ("A <ref name=a>b</ref>word {{cite|{{b|c}}|d={{e}}}} end", "A word end"),
        ("Born {{cn|{{{1|2}}}}} here", "Born here"),
        ("Where <math>a = f(x) + 1</math> holds<math>.</math>", "Where a = f(x) + 1 holds."),
        ("x[[File:a.jpg|thumb|A [[b|c]] and [[d]] [http://e f]]]y", "x y"),
        ("[[image:a.png|{{b}}]] One [[Media:x.ogg|listen]]", "One"),
        ("One __NOTOC__two __init__ three", "One two __init__ three"),
        ("<gallery>\nFile:a.jpg|A [[b]]\n</gallery> after", "after"),
        (
            "-{zh-hans:one; zh-hant:two}- -{H|zh-cn:a;zh-tw:b}-three-{T|d}-, -{A|zh-cn:c;zh-tw:d}- -{R|e}-",
            "one three, c e",
        ),
        # marks
        ("'''Bold''' and ''italic'' and '''''both''''' it's", "Bold and italic and both it's"),
        ("L'''Iliade'' and '''b'''", "L'Iliade and b"),
        ("caf&eacute;&nbsp;&lt;b&gt; &amp;amp; &#8211; AT&T", "café <b> &amp; – AT&T"),
        ("{{a|\n{|\n| b\n|}}} one {{cn|\n|}} two".replace(" one", "One"), "One two"),
        ("a<br />b<br\\>c<BR>d", "a b c d"),
        ("one<ref name=a / > two<ref>b</ref>", "one two"),
        ("a<br />b <small>c</small> H<sub>2</sub>O <span class='x'>d</span>", "a b c H2O d"),
        ("* ''one''", "one"),
        ("#:; two", "two"),
        # literal text
        ("<nowiki>[[a]] {{b}} ''c''</nowiki> &amp; <code>d</code>", "[[a]] {{b}} ''c'' & d"),
        ("<syntaxhighlight lang='c' inline>a[[1]]</syntaxhighlight> is", "a[[1]] is"),
        ("is <syntaxhighlight lang='c'>\na[[1]]\n</syntaxhighlight>", "is"),
        ("1 < 2 and [[a]] <3", "1 < 2 and a <3"),
        # measures, as they are written
        ("The road is {{convert|5|km|mi}} long.", "The road is 5 km long."),
        ("It covers {{Convert | 1,200.5 | km2 | sqmi | abbr=on}}.", "It covers 1,200.5 km²."),
        ("It covers {{cvt|40|sqmi|km2|-1}}.", "It covers 40 sq mi."),
        ("From {{convert|5|-|10|km|mi}} on", "From 5–10 km on"),
        ("From {{convert|5|to|10|km|mi|0}} on", "From 5 to 10 km on"),
        ("A field of {{convert|10|x|20|x|30|m}}", "A field of 10 × 20 × 30 m"),
        ("Between {{convert|-19|and(-)|22|C|F|sigfig=2}}", "Between -19 and 22 °C"),
        ("He was {{convert|6|ft|2+1/2|in|m|2}} tall", "He was 6 ft 2+1/2 in tall"),
        ("A rod of {{convert|5+1/2|in|mm|2}} or {{convert|3|ft|m|1}}", "A rod of 5 1/2 in or 3 ft"),
        ("It has {{convert|2.5|e6acre|km2}} and {{convert|3|Moilbbl}}", "It has 2.5 million acre and 3 Mbbl"),
        ("Density: {{convert|7|PD/sqmi}}", "Density: 7 per sq mi"),
        ("Dài {{convert|7,2|m|ft|0|abbr=on}}.", "Dài 7,2 m."),
        ("Height {{convert|{{nowrap|7}}|m|ft}}", "Height 7 m"),
        ("From {{formatnum: 1234 }} or {{formatnum:5.5|R}}", "From 1234 or 5.5"),
        ("A {{convert}}, {{convert|km}} and {{convert|{{x}}|km}} hole", "A, and hole"),
        ("{{convert|1" + "|-|1" * 30 + "|km}}", "1–1–1–1–1 -"),  # more than the template takes
        # words of other languages
        ("The {{lang|fr|''pain'' de [[Maison (bois)|maison]]}} is", "The pain de maison is"),
        ("In French {{lang-fr|du pain|lit=bread}} is", "In French du pain is"),
        ("In {{lang-sr-Cyrl|хлеб}} and {{lang|text=brot|code=de}}", "In хлеб and brot"),
        ("Named {{transl|ar|DIN|ḫubz}} or {{transl|ru|khleb}}", "Named ḫubz or khleb"),
        ("A {{nihongo|'''bread roll'''|丸パン|marupan}} is", "A bread roll (丸パン, marupan) is"),
        ("A {{Nihongo||丸パン|marupan|extra=lit. round bread}}", "A 丸パン (marupan, lit. round bread)"),
        # other templates
        ("It is {{nowrap|1=10 & more}} of {{abbr|approx.|approximately}} five", "It is 10 & more of approx. five"),
        ("Add {{frac|1|2}}, {{frac|3|1|4}} or {{frac|8}} to it", "Add 1/2, 3 1/4 or 1/8 to it"),
        ("Born {{circa|1900}}, died {{c.|1950|1960}}, {{circa}} 50", "Born c. 1900, died c. 1950 – c. 1960, c. 50"),
        ("{{As of|2016}}, so; {{as_of|2016|06|7|lc=y}}", "As of 2016, so; as of 7 June 2016"),
        ("{{As of|2016|June|7|df=US}}, so; {{as of|2016|alt=lately}}", "As of June 7, 2016, so; lately"),
        ("{{as of|2016|7|since=y|lc=on}}", "since July 2016"),
        # nesting, what is cut in them
        ("A {{nowrap|{{lang|de|{{abbr|Brot|Brot}}}} {{icon}}}} B", "A Brot B"),
        ("A {{icon|{{lang|de|Brot}}}} B", "A B"),
        ("A {{lang|de|[[File:a.png|thumb|b]] Brot<ref>c</ref><!-- d -->}} B", "A Brot B"),
        ("A {{lang|de|<nowiki>{{Brot}}</nowiki>}} B", "A {{Brot}} B"),
        ("{{lang|de|" * 4 + "Brot" + "}}" * 4 + " is as deep as anybody writes", "Brot is as deep as anybody writes"),
        # what stays out
        (
            "Bread {{IPA-fr|pɛ̃}} {{IPA|fr|pɛ̃}} {{cn}} {{language}} {{lang-stub}} {{#tag:ref|a}} {{quote}} is",
            "Bread is",
        ),
        # brackets and marks around what stays out
        ("Bread ( {{lang|fr}}; {{IPA-fr|a}} ) is", "Bread is"),
        ("Bread ({{lang-fr|pain}}; {{IPA-fr|pɛ̃}}) is", "Bread (pain) is"),
        ("Bread ({{IPA-fr|a}}, {{lang-fr|pain}}, {{IPA-fr|a}}, old) is", "Bread (pain, old) is"),
        ("Bread, {{IPA-fr|a}}, {{IPA-fr|b}}, is; {{IPA-fr|c}}; here", "Bread, is; here"),
        ("麦包（{{R|a}}）是{{R|a}}，好{{R|a}}吃{{R|b}}。ขนม{{r}}ปัง", "麦包是，好吃。ขนมปัง"),
        ("Brackets () and , , of the text ;) stay", "Brackets () and , , of the text ;) stay"),
    ],
)
def test_inline_markup(wikitext, expected):
    assert plain(wikitext) == [expected]


SHOWN = """
{{langx|fr|eau}} eau | {{ill|Jean Petit|fr}} Jean Petit | {{ill|A|fr|B|lt=C}} C | {{sub|2}} 2 | {{sup|2}} 2
{{chem|H|2|O}} H2O
{{chem2|H2O}} H2O | {{val|5|u=km}} 5 km | {{val|1.6|0.1|e=-19}} 1.6 ± 0.1 × 10-19 | {{HMS|Victory}} HMS Victory
{{ship|HMS|Hood|51}} HMS Hood | {{small|a}} a | {{em|a b}} a b | {{US$|5 million}} US$5 million
{{flag|France}} France
{{tooltip|a|b}} a | {{birth date|1950|1|2}} January 2, 1950 | {{birth date|1950|1|2|df=y}} 2 January 1950
{{nihongo2|丸}} 丸 | {{zh|t=中|p=a}} 中, a | {{mvar|n}} n | {{math|1=x=2}} x=2 | {{1/2}} 1/2 | it{{'}}s it's
a{{snd}}b a – b
a{{shy}}b a\u00adb | 5{{nbsp}}km 5 km | {{IPA|/a/}} /a/ | {{angbr|c}} ⟨c⟩
{{sclass|Nimitz|carrier}} Nimitz-class carrier
5{{frac|1|2}} 5 1/2 | 5{{1/2}} 5 1/2 | {{USA}} United States | {{ill|de|Ort A|lt=}} Ort A | {{ill|de|fr}} de
{{nobreak|a}} a | {{Lang_ |fr|eau}} eau | {{ LANG |fr| eau }} eau | {{\u200eLang|fr|eau}} eau
{{Template:lang|fr|eau}} eau
{{template: Lang|fr|eau}} eau | {{subst:lang|fr|eau}} eau | {{PAGENAME}} Title | {{subst:PAGENAME}} Title
{{#if:x|yes|no}} yes
{{#if: |yes|no}} no | {{#ifeq:a|a|yes|no}} yes | {{uc:a}} A | {{nowrap|{{val|5|u={{abbr|km|b}}}}}} 5 km
{{OCLC|1}} OCLC 1 | {{height|ft=6|in=2}} 6 ft 2 in
<ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby> 漢字 | <math>f(x)</math> f(x) | {{convert|5|km|lk=on}} 5 km
fr: {{unité|2000|m}} 2000 m | {{s|XIX}} XIXe siècle | {{date|1|janvier|2000}} 1 janvier 2000
fr: {{lien|Jean|texte=J.}} J.
fr: {{langue|en|word}} word | {{nombre|1000|habitants}} 1000 habitants | {{1er}} 1er
fr: {{conversion|5|km|mi}} 5 km | {{n°|5}} no 5
fr: {{citation|mot}} « mot » | {{Modèle:lang|en|a}} a | {{japonais|Pain|パン|pan}} Pain (パン, pan)
fr: {{-s|III}} IIIe siècle av. J.-C.
de: {{enS|word}} englisch word | {{Höhe|500|DE-NN}} 500 m | {{Vorlage:Lang|en|a}} a | {{convert|5|km|mi}} 5 km
de: {{"|Wort}} „Wort“
es: {{siglo|XX}} siglo XX | {{unidad|5|km}} 5 km | {{enlace interwiki|en|A|B}} B | {{Plantilla:lang|en|a}} a
it: {{M|5|km}} 5 km | {{nihongo|a|b|c}} a (b, c) | {{citazione necessaria|a}} a
pt: {{fmtn|1000|km}} 1000 km | {{séc|XX}} século XX
ru: {{нп5|А|Б}} Б | {{s|5 км}} 5 км | {{Шаблон:num|1000}} 1000
ru: {{OldStyleDate|2 мая|1900|20 апреля}} 2 мая (20 апреля) 1900
ja: {{仮リンク|東京|en|Tokyo|label=都}} 都 | {{読み仮名|漢字|かんじ}} 漢字（かんじ） | {{ruby|漢字|かんじ}} 漢字
ja: {{要出典範囲|甲}} 甲
zh: {{link-en|中文|English}} 中文 | {{le|中文|English|文}} 文 | {{tsl|en|English|中文}} 中文 | {{僻字|龘|a}} 龘
pl: {{ułamek|1|2}} 1/2
vi: {{nhật|a|b|c}} a (b, c) | {{cờ|Pháp}} Pháp | {{bản mẫu:lang|en|a}} a
ko: {{llang|en|word}} word | {{임시링크|가|en|A}} 가
ar: {{إنج|word}} بالإنجليزية: word | {{وإو|عر=أ|تر=A|لغ=en}} أ
fa: {{به انگلیسی|word}} به انگلیسی: word | {{الگو:عدد|۵}} ۵
hi: {{IAST|a}} a | {{साँचा:lang|en|a}} a | {{जन्म तिथि|1950|1|2}} 2 जनवरी 1950 | {{val|5|u=km}} 5 km
{{ship||Bounty}} Bounty | {{INS|Vikrant}} INS Vikrant | {{gaps|1|234|567}} 1234567 | {{linktext|日|本}} 日本
{{keypress|Ctrl|C}} Ctrl+C | {{slink|Bread|History}} Bread § History
fr: {{s|I|er}} Ier siècle | {{s-|XIX|e}} XIXe siècle | {{s mini|XX}} XXe | {{-s|V|e}} Ve siècle av. J.-C. | {{IIe}} IIe
fr: {{s2|XIX|e|XX|e}} XIXe et XXe siècles | {{sp|XIX|e|et|XX|e|s}} XIXe et XXe siècles | {{sp-|IV|ou|V}} IVe ou Ve siècle
fr: {{-sp|I|er|et|II|e}} Ier et IIe siècles av. J.-C. | {{unité|5|km|2}} 5 km2 | {{unité|10|m||s|-1}} 10 m s-1
fr: {{date|1|1|2000}} 1 janvier 2000 | {{fchim|H|2|O}} H2O
es: {{siglo|V|a}} siglo V a. C. | {{siglo|XX||s}} siglo XX | {{fecha|1|1|2000}} 1 de enero de 2000
es: {{unidad|5|km|2}} 5 km2
it: {{M|5||km}} 5 km | {{nave|HMS|Hood}} HMS Hood | {{russo|хлеб|chleb}} in russo хлеб, chleb
pt: {{dtlink|1|1|2000}} 1 de janeiro de 2000 | {{dtlink|25|04}} 25 de abril | {{fmtn|1000}} 1000
ru: {{num|1000|км}} 1000 км | {{дата|1|5|2000}} 1 мая 2000 | {{ударение|а}} а́ | а{{ударение}} а́
pl: {{data|2000-01-02}} 2 stycznia 2000 | {{data|2000-01}} 2000-01 | {{liczba|1000}} 1000
ja: {{Val|5|u=km}} 5 km | {{Chem|H|2|O}} H2O | {{傍点|文章=東京}} 東京 | {{start date|2000}} 2000年
zh: {{start date|2000|1|2}} 2000年1月2日 | -{{{lang|en|a}}}- a | -{zh-hans:a{{lang|en|b}};zh-hant:c}- ab
ko: {{출생일|1950|1|2}} 1950년 1월 2일 | {{출생일|1950}} 1950년"""


@pytest.mark.parametrize("line", SHOWN.strip().split("\n"))
def test_words_of_templates_stay(line):
    """What stands behind a template is what it shows in the wiki of the language before it."""
    found = re.match(r"(?:(\w\w): )?(.*)", line)
    for row in found[2].split(" | "):
        used, shown = re.fullmatch(r"(.*(?:\}\}\w*|>|\}-)) (.*)", row).groups()
        assert plain(f"Start {used} end of it.", found[1] or "en") == [f"Start {shown} end of it."]


@pytest.mark.parametrize(
    "text, whole, count",
    [
        ("One is {{x}} here. Two are here. Three.", ["Two are here. Three."], 1),
        ("A book by {{x}}. Next. Where <math>\\sum x</math> holds.", ["Next."], 2),
        ("One. {{x}} is two. Three. It is {{x}}. Four {{x}}, {{y}}.", ["One. Three."], 4),
        ("{{x}} is a town. He came.{{x}} Then he went.{{x}}", ["He came. Then he went."], 2),
        ("{{x}}Paris is. {{x}}\n{{x}} {{y}}\n* {{x}} Item\n* Item{{x}}", ["Paris is.", "Item", "Item"], 0),
        ("* {{x}} (1990)\n* {{x}} – one\n* Written by {{x}}\n* {{x}}, two. Three", ["Three"], 4),
        ("Paris ({{x}}; {{y}}), {{x}}, is (or {{cn}}was).", ["Paris, is (or was)."], 3),
        ("Paris ({{x}} in 1900) is. It is: {{x}}, and. See{{x}}. Two.", ["See. Two."], 3),
        ("A {{lang|de|b {{x}} c}} d. E {{cn|{{x}}}} f.", ["E f."], 1),
        ("{{lang|de|" * 5 + "Brot" + "}}" * 5 + " is deep. Two.", ["Two."], 1),
        ("== A {{x}} b ==\nText.\n== C ==\n* One {{x}} two\n== D ==\nText", ["Text.", "D", "Text"], 2),
        ("日本の{{x}}東京は都市。次の文です。{{x}}は三。", ["次の文です。"], 2),
        ("نعم هنا.{{x}} ثم هناك. {{x}} ثم لا.", ["نعم هنا. ثم هناك."], 2),
        ("A [[b|{{x}}]] c. D [[{{x}}]] e. [[File:a.jpg|thumb|{{x}} f]] G.", ["G."], 2),
    ],
)
def test_a_sentence_with_a_hole_is_dropped_and_counted(text, whole, count):
    lost = Lost()
    assert converter().paragraphs(text, "", lost) == whole
    assert lost.templates.total() == count and set(lost.templates) <= {"x", "y", "<math>", "lang"}
    assert (lost.holed > 0) == (lost.account(True)["sentences_dropped"] > 0) and lost.account(False)[
        "left_out"
    ] == count
    kept = converter(drop_holes=False).paragraphs(text, "", less := Lost())
    assert (
        less == lost
        and len(" ".join(kept)) >= len(" ".join(whole))
        and not re.search("[\3\5\ud800-\udfff]", str(kept))
    )


def test_a_users_patterns_go_first():
    more = (("X y", "{1}[ of {b}]"), ("Template:lang", ""), ("z", "=convert"))
    assert plain("A {{x_y|a|b=c}}, {{X y|a}} {{lang|fr|b}}d {{z|5|km}}.", more=more) == ["A a of c, a d 5 km."]
    assert converter(more=(("x", "{1} of {2}"),)).paragraphs(
        "A {{x|a|b}}. A {{x|a}} c. A {{x}}.", "", lost := Lost()
    ) == ["A a of b. A."]
    assert lost.templates == {"x": 1}  # what {1} holds is not shown
    for pattern in ("{1", "[{1}", "]{1}[", "{}", "=nothing", 5):
        with pytest.raises(InputError, match="^templates: x: .* is no pattern; give"):
            check_pattern("x", pattern)
    for name in ("", " ", "{{x}}", "x|y"):
        with pytest.raises(InputError, match="^templates: '.*' is no name of a template; give"):
            check_pattern(name, "{1}")
    check_pattern("x", "{1|text}[ ({2})]")


def test_a_wiki_borrows_parameters_alone():
    """{{prk}} is a country in Korean letters in the Korean Wikipedia, {{unité}} is known there alone."""
    text = "A {{unité|5|km}} b. A {{prk}} c. {{siècle|XX}}, d."
    assert plain(text, "de") == ["A 5 km b."] and plain(text, "xx") == ["A 5 km b. XXe siècle, d."]
    assert plain("{{prk}}은 나라다.", "ko") == ["조선민주주의인민공화국은 나라다."]


def test_the_languages_are_well_formed():
    """Every pattern is one; a large wiki has all kinds of names, each once."""
    for code, language in languages().items():
        for pattern, names in language.get("words", {}).items():
            check_pattern(names[0], pattern)
        names = [*itertools.chain(*language.get("words", {}).values()), *language.get("silent", ())]
        assert len(names) == len(set(names)) and not any(name != name.lower() or "_" in name for name in names), code
    for code in "* de fr es it ru ja zh pl pt vi ar fa ko hi".split():
        kinds = ("words", "silent", "file", "category", "template", "redirect", "caption", "references")
        assert all(languages()[code][kind] for kind in kinds)


FILES = """Bild:A.jpg|mini|b | Image:A.jpg|vignette|b | Archivo:A.jpg|miniaturadeimagen|b
Immagine:A.jpg|miniatura|b | Файл:A.jpg|мини|b | 画像:A.jpg|thumb|b | 档案:A.jpg|缩略图|b
Grafika:A.jpg|mały|b | Imagem:A.jpg|miniaturadaimagem|b | Hình:A.jpg|nhỏ|b | صورة:A.jpg|تصغير|b
تصویر:A.jpg|بندانگشتی|b | 그림:A.jpg|섬네일|b | चित्र:A.jpg|अंगूठाकार|b | Kategorie:A | К:A | 분류:A
\u200fپرونده:A | Datei : A.svg | Any:A.webm | Any:A b.PNG|thumb|b | Any:A|mini|b
Файл:A|[[b]] {{x}} c"""


def test_files_and_categories_of_every_language_show_nothing():
    for name in re.split(r" \| |\n", FILES):
        assert plain(f"One [[{name}]] two") == ["One two"], name
    assert plain("One [[Bild:A.jpg|mini|[[b]] c\nTwo") == ["One", "Two"]
    assert plain("See [[:Bild:A.jpg]], [[CSI: Miami]] and [[A: b.c|d]]") == ["See Bild:A.jpg, CSI: Miami and d"]


@pytest.mark.parametrize(
    "quote",
    [
        "{{quote|text=Bread is [[food|good]].<br />Eat it.|A. Baker|source=''Loaves''}}",
        "{{Quote\n| text = Bread is good. Eat it.\n| sign = A. Baker\n}}",
        "{{blockquote|1=Bread is good.\n Eat it.}}",
        "{{cquote|quote=Bread is good.\n\n{{lang|en|Eat it.}}}}",
    ],
)
def test_a_quote_is_a_paragraph(quote):
    before, *quoted, after = plain(f"He said:{quote}and left.")
    assert (before, " ".join(quoted), after) == ("He said:", "Bread is good. Eat it.", "and left.")


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


TOKENS = [
    *UNITS,
    *"]] }} |} |- | <ref/> </ref> == * </math> ) . }}} ! [[a|b]] }- > < - <gallery> en: b \n \n\n".split(" "),
    " ",
]


def test_no_markup_is_left_of_anything():
    chance = random.Random(0)
    for _ in range(5000):
        text = "".join(chance.choices(TOKENS, k=chance.randint(3, 25)))
        assert not LEFT.search("".join(f"{line} " for line in plain(text))), text
