"""Templates that carry words of a sentence: what of them is shown, and that nothing else is."""

import pytest

from data_prep.mediawiki import Site
from data_prep.wikitext import converter


def plain(text):
    return converter(Site().invisible()).paragraphs(text)


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
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
        ("A {{nihongo|roll}}{{nihongo}}.", "A roll."),
        # the rest
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
        ("{{lang|de|" * 5 + "Brot" + "}}" * 5 + " is deeper than anybody writes", "is deeper than anybody writes"),
        # what stays out
        ("Bread {{IPA-fr|pɛ̃}} {{IPA|/pɛ̃/}} {{cn}} {{language}} {{lang-stub}} {{lang:fr|a}} {{quote}} is", "Bread is"),
        # brackets and marks around what stays out
        ("Bread ({{IPA|a}}) is", "Bread is"),
        ("Bread ( {{lang|fr}}; {{IPA|a}} ) is", "Bread is"),
        ("Bread ({{lang-fr|pain}}; {{IPA-fr|pɛ̃}}) is", "Bread (pain) is"),
        ("Bread ({{IPA|a}}, {{lang-fr|pain}}, {{IPA|a}}, old) is", "Bread (pain, old) is"),
        ("Bread, {{IPA|a}}, {{IPA|b}}, is; {{IPA|c}}; here", "Bread, is; here"),
        ("Brackets () and , , of the text ;) stay", "Brackets () and , , of the text ;) stay"),
    ],
)
def test_within_a_sentence(wikitext, expected):
    (paragraph,) = plain(wikitext)
    assert paragraph == expected


@pytest.mark.parametrize(
    "quote",
    [
        "{{quote|Bread is [[food|good]].<br />Eat it.|author=A. Baker|source=''Loaves''}}",
        "{{Quote\n| text = Bread is good. Eat it.\n| sign = A. Baker\n}}",
        "{{blockquote|1=Bread is good.\n Eat it.}}",
        "{{cquote|quote=Bread is good.\n\n{{lang|en|Eat it.}}}}",
    ],
)
def test_a_quote_is_a_paragraph(quote):
    before, *quoted, after = plain(f"He said:{quote}and left.")
    assert (before, " ".join(quoted), after) == ("He said:", "Bread is good. Eat it.", "and left.")
