"""MediaWiki `pages-articles` dumps -> documents: one per article, its title first.

The main process reads the XML; chunks of pages are converted by `num_proc` processes and come back in order, so that the
result does not depend on their number. A few chunks are under way at a time, whatever the size of the dump.
"""

import itertools
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from operator import itemgetter
from pathlib import Path

from budget_trainer.core.errors import InputError
from data_prep.disambiguation import is_disambiguation
from data_prep.dump_xml import Page, Site, read_pages
from data_prep.files import members, plain_name
from data_prep.wikitext import converter

CHUNK_CHARACTERS = 512 * 1024
_PAGE_OVERHEAD = 200  # so that a chunk of empty pages ends, too
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)
_DUMP_NAME = re.compile(r"\.xml(?:-p\d+p\d+)?$")
_Chunk = tuple[tuple[str, ...], list[tuple[str, str]]]
_Converted = list[tuple[str | None, list[str]]]


def read_articles(
    path: Path, errors: str, num_proc: int, dropped: dict[str, int], told: Callable[[int], object]
) -> Iterator[list[str]]:
    """[title, paragraph, ...] of every article in a dump or a folder of them. Counts in `dropped`, by reason, the pages
    that are none: other_namespace, redirect, disambiguation, not_wikitext (another content model), too_large (more than
    10 million characters), empty (no prose). `told` as in `members`. InputError: damaged input, a process that was killed."""
    pages = _articles(path, errors, dropped, told)
    for reason, document in itertools.chain.from_iterable(_converted(_chunks(pages), path, num_proc)):
        if reason is None:
            yield document
        else:
            dropped[reason] = dropped.get(reason, 0) + 1


def _articles(
    path: Path, errors: str, dropped: dict[str, int], told: Callable[[int], object]
) -> Iterator[tuple[Site, Page]]:
    for name, stream in members(path, told):
        if name != str(path) and not _DUMP_NAME.search(plain_name(name)):  # an index or checksums beside the dumps
            continue
        site = Site()
        for page in read_pages(name, stream, site, errors):
            reason = _no_article(page)
            if reason is None:
                yield site, page
            else:
                dropped[reason] = dropped.get(reason, 0) + 1


def _no_article(page: Page) -> str | None:
    """Why the page is dropped, as far as that can be said without looking for it in all of its text."""
    if page.namespace != 0:
        return "other_namespace"
    if page.redirect or _REDIRECT.match(page.text):
        return "redirect"
    if page.model != "wikitext":
        return "not_wikitext"
    return "too_large" if page.too_large else None


def _chunks(pages: Iterable[tuple[Site, Page]]) -> Iterator[_Chunk]:
    for _, group in itertools.groupby(pages, key=itemgetter(0)):
        chunk: list[tuple[str, str]] = []
        size = 0
        names: tuple[str, ...] = ()
        for site, page in group:
            names = names or site.invisible()
            chunk.append((page.title, page.text))
            size += len(page.text) + _PAGE_OVERHEAD
            if size >= CHUNK_CHARACTERS:
                yield names, chunk
                chunk, size = [], 0
        if chunk:
            yield names, chunk


def _convert(chunk: _Chunk) -> _Converted:
    """(reason to drop it or None, [title, paragraph, ...]) of every page."""
    names, pages = chunk
    convert = converter(names)
    converted: _Converted = []
    for title, text in pages:
        if is_disambiguation(title, text):
            converted.append(("disambiguation", []))
        else:
            paragraphs = convert.paragraphs(text)
            converted.append((None, [title, *paragraphs]) if paragraphs else ("empty", []))
    return converted


def _converted(chunks: Iterator[_Chunk], path: Path, num_proc: int) -> Iterator[_Converted]:
    if num_proc == 1:
        yield from map(_convert, chunks)
        return
    waiting: deque[Future[_Converted]] = deque()
    pool = ProcessPoolExecutor(num_proc, initializer=_watch_parent)
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_convert, chunk))
            if len(waiting) > 2 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            f"input {path}: a process that converts pages was killed (out of memory?); give a smaller --num_proc"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _watch_parent() -> None:
    threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()


def _end_without(parent: int) -> None:
    """Ends this process when the one that started it is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
