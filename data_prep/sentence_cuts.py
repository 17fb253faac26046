"""Where blocks of whole sentences end."""

import hashlib
import struct
from bisect import bisect_right

import numpy as np


class Cuts:
    """Blocks of up to `body` tokens, each as many whole sentences of one document as fit. A longer sentence is cut.

    A share `short_seq_prob` of the blocks has a random length to fill instead (but holds a sentence at least), as in BERT's
    preparation: fine-tuning sees short inputs. Which ones is a hash of the block's number: the same for any number of
    processes.
    """

    def __init__(self, body: int, short_seq_prob: float) -> None:
        self.body, self.short_seq_prob = body, short_seq_prob
        self.cut = 0  # sentences
        self._number = 0  # of blocks so far

    def sizes(self, lengths: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        """lengths [documents] and sentences, in tokens and in order -> the sizes of the blocks [n], which sum up to theirs."""
        ends = np.cumsum(sentences).tolist()
        sizes, start = [], 0
        for border in np.cumsum(lengths).tolist():
            while start < border:
                end = min(self._end(ends, start), border)
                sizes.append(end - start)
                start = end
        return np.array(sizes, np.int64)

    def _end(self, ends: list[int], start: int) -> int:
        """Where the block that begins at `start` ends."""
        behind = bisect_right(ends, start)
        fitting = bisect_right(ends, start + self._room(), lo=behind)
        end = ends[max(fitting - 1, behind)]
        if end - start <= self.body:
            return end
        self.cut += 1
        return start + self.body

    def _room(self) -> int:
        self._number += 1
        digest = hashlib.blake2b(f"short {self._number}".encode(), digest_size=16).digest()
        chance, length = struct.unpack("<2Q", digest)
        return 2 + length % (self.body - 1) if chance < self.short_seq_prob * 2.0**64 else self.body
