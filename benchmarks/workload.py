"""One training job to time: its shape and its text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerFast

from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.masking import prediction_slots
from budget_trainer.data.order import BlockDataset
from budget_trainer.data.order import Rows as RowReader

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
ROWS = 16_384  # of made text


@dataclass(frozen=True)
class Workload:
    """Shape and settings of a training job; batch in blocks per process, block in tokens. Serialises with asdict."""

    model_type: str = "bert"
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    dropout: float = 0.1
    vocab_size: int = 30_522
    block_size: int = 128
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    mlm_probability: float = 0.15
    sparse: bool = True
    bf16: bool = True
    compile: bool = True
    regional_compile: bool = False
    settle: bool = False  # ours: bf16 and compile are what may be used; a probe decides
    optimizer_type: str = "adamw"
    dataloader_num_workers: int = 0
    model_config: dict[str, Any] | None = None
    use_cpu: bool = False

    @property
    def slots(self) -> int:
        """Positions of a block that the objective predicts."""
        return prediction_slots(self.mlm_probability, self.block_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def tokens_per_step(self) -> int:
        """Of one process."""
        return self.batch_size * self.gradient_accumulation_steps * self.block_size


def fit(workload: Workload, data_dir: str | None, folder: Path) -> tuple[Workload, str]:
    """The workload with the text's vocabulary and block size, and where the text lies: `data_dir`, or one made here.

    Raises InputError: the data folder's blocks or vocabulary are not those of the workload.
    """
    if data_dir is None:
        path = folder / "zipf.arrow"
        write_zipf(path, rows=ROWS, block_size=workload.block_size, vocab_size=workload.vocab_size)
        return workload, str(path)
    data = DataFolder.open(data_dir)
    if data.block_size != workload.block_size:
        raise InputError(
            f"seq_length: {workload.block_size}, but the blocks of {data_dir} have {data.block_size} tokens; "
            f"give --seq_length {data.block_size}"
        )
    train = data.manifest["splits"]["train"]
    if train["tokens"] < train["rows"] * data.block_size:
        raise InputError(f"data_dir: {data_dir} holds padding, which would count as tokens; use packed blocks")
    return replace(workload, vocab_size=data.vocab_size), str(data.path)


def write_zipf(path: Path, *, rows: int, block_size: int, vocab_size: int, seed: int = 0) -> None:
    """Blocks [CLS] ... [SEP] of independent tokens, the k-th most frequent with weight 1 / (k + 2.7), as natural text.

    Speed depends on the text only through the embedding rows that a batch touches, so no order is imitated.
    """
    if block_size < 3 or vocab_size <= len(SPECIAL_IDS):
        raise InputError(f"seq_length {block_size}, vocab_size {vocab_size}: leave no token; give 128 and 30522")
    weights = 1.0 / (np.arange(vocab_size - len(SPECIAL_IDS)) + 2.7)
    steps = np.cumsum(weights) / weights.sum()
    drawn = np.searchsorted(steps[:-1], np.random.default_rng(seed).random((rows, block_size - 2)))
    blocks = np.full((rows, block_size), SPECIAL_IDS["sep"], np.uint16 if vocab_size <= 2**16 else np.uint32)
    blocks[:, 0] = SPECIAL_IDS["cls"]
    blocks[:, 1:-1] = drawn + len(SPECIAL_IDS)
    table = pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(pa.array(blocks.ravel()), block_size)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


class Text:
    """The blocks that `fit` named, for either Trainer."""

    def __init__(self, path: str, workload: Workload) -> None:
        self.folder = DataFolder.open(path) if Path(path).is_dir() else None
        self.vocab_size = workload.vocab_size
        if self.folder is not None:
            self.blocks, self.special_ids = self.folder.train(seed=0), self.folder.special_ids
        else:
            self.blocks = BlockDataset(RowReader([Path(path)], {"input_ids": workload.block_size}, ROWS), seed=0)
            self.special_ids = SPECIAL_IDS

    def tokenizer(self) -> Any:
        """For the stock collator, which wants one."""
        if self.folder is not None:
            return self.folder.load_tokenizer()
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        names = {f"{name}_token": f"[{name.upper()}]" for name in self.special_ids}
        words = [*names.values(), *(f"w{i}" for i in range(len(names), self.vocab_size))]
        model = WordLevel({word: i for i, word in enumerate(words)}, unk_token=names["unk_token"])
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **names)

    def rows(self, multiple: int, most: int | None = ROWS) -> torch.Tensor:
        """int32 [n, L] in memory, as a stock script holds them; n a multiple, so that every batch is whole.

        Some more than `most`, or than all (None), where that is no multiple: these come twice.
        """
        count = math.ceil(min(self.blocks.rows, most or self.blocks.rows) / multiple) * multiple
        return torch.from_numpy(self.blocks.__getitems__(range(count))["input_ids"]).int()


class Rows(torch.utils.data.Dataset):
    """What a stock script feeds: one row at a time."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows_of_ids = rows

    def __len__(self) -> int:
        return len(self.rows_of_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows_of_ids[index].long()}
