"""Which pages only list the meanings of their title, in English and the languages of other large Wikipedias."""

import re

from data_prep.wikitext_cuts import cut_extensions

# Templates that mark such a page, lower-case. Lists of people by name ({{surname}}) are articles.
_TEMPLATES = frozenset(
    """dab disamb disam dmbox hndis geodis numberdis letterdis mathdab mathdis callsigndis schooldis hospitaldis roaddis
    shipdis portaldis placedis tvshowdis biodis mil-unit-dis taxondis begriffsklärung bks homonymie homonymes paronymie
    desambiguación desambiguacion desambiguação disambigua dp doorverwijspagina неоднозначность багатозначність
    ujednoznacznienie aimai 曖昧さ回避 人名の曖昧さ回避 消歧义 消歧義 消歧义页 消歧義頁 동음이의 توضيح ابهام‌زدایی förgrening
    gren flertydig peker täsmennyssivu rozcestník egyért dezambiguizare disambiguasi αποσαφήνιση פירושונים desambiguació
    argipen razločitev пояснение""".split()
) | {"định hướng", "trang định hướng", "anlam ayrımı", "višeznačna odrednica"}
_TEMPLATE = re.compile(r"\{\{([^{}|<\[\n]{2,120}+)(?:\||\}\}|\n)")
_NAME = re.compile(r"(?:.+[ -])?disambig(?:uation)?(?: page)?(?:[ -]cleanup)?")  # not "disambiguation needed"
_TITLE = re.compile(
    r"\((?:disambiguation|định hướng|begriffsklärung|homonymie|desambiguación|desambiguação|disambigua|doorverwijspagina"
    r"|значения|значення|ujednoznacznienie|曖昧さ回避|消歧[义義]|동음이의|توضيح|ابهام‌زدایی|olika betydelser|flertydig"
    r"|rozcestník|egyértelműsítő lap|anlam ayrımı|dezambiguizare|disambiguasi|αποσαφήνιση|desambiguació)\)$",
    re.IGNORECASE,
)


def is_disambiguation(title: str, wikitext: str) -> bool:
    """By a template, the magic word __DISAMBIG__ or the end of the title."""
    return bool(_TITLE.search(title)) or (_is_marked(wikitext) and _is_marked(cut_extensions(wikitext)[0]))


def _is_marked(wikitext: str) -> bool:
    if "__DISAMBIG__" in wikitext:
        return True
    for found in _TEMPLATE.finditer(wikitext):
        namespace, _, name = found[1].rpartition(":")
        name = name.replace("_", " ").strip().lower()
        if (name in _TEMPLATES or _NAME.fullmatch(name)) and not _is_function(namespace):
            return True
    return False


def _is_function(prefix: str) -> bool:
    """{{DEFAULTSORT:...}}, {{#if:...}}"""
    return prefix.isupper() or prefix.startswith("#")
