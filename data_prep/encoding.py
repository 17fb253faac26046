"""Text -> token ids, fast: BERT's tokenizers work word by word, and most words have been seen before."""

import functools
import json
from collections.abc import Sequence
from itertools import chain

from tokenizers import Tokenizer

# Of BERT's parts each treats the text between two spaces on its own; another tokenizer's may not.
_WORDWISE = (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer"), ("model", "WordPiece"))
MAX_WORDS = 400_000  # about 100 MB for each process


class Encoder:
    """Token ids of whole documents, without special tokens, truncation or padding: exactly those of the tokenizer.

    For a BERT tokenizer the ids of each space-separated word are kept, which spares most of the
    work (46 MB of Wikipedia: 7.5 million words, 0.46 million distinct ones)."""

    def __init__(self, tokenizer_file: str) -> None:
        self.backend = load_backend(tokenizer_file)
        self._words: dict[str, tuple[int, ...]] | None = {} if _is_wordwise(self.backend) else None

    def encode(self, documents: Sequence[str]) -> list[list[int]]:
        """One list of ids per document."""
        if self._words is None:
            return self._backend_ids(documents)
        split = [document.split(" ") for document in documents]
        if len(self._words) > MAX_WORDS:
            self._words.clear()
        new = [word for word in set(chain.from_iterable(split)) if word not in self._words]
        self._words.update(zip(new, map(tuple, self._backend_ids(new)), strict=True))
        ids_of = self._words.__getitem__
        return [list(chain.from_iterable(map(ids_of, words))) for words in split]

    def _backend_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]


@functools.cache
def load_backend(tokenizer_file: str) -> Tokenizer:
    """The Rust tokenizer of a tokenizer.json, without truncation and padding."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _is_wordwise(tokenizer: Tokenizer) -> bool:
    content = json.loads(tokenizer.to_str())
    plain = all((content[part] or {}).get("type", "WordPiece") == name for part, name in _WORDWISE)
    spaced = (
        token for token in content["added_tokens"] if " " in token["content"] or token["lstrip"] or token["rstrip"]
    )
    return plain and not any(spaced)
