"""Any checkpoint of a Transformers encoder as a classifier of a task: native classes and safetensors only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from budget_trainer.glue.tasks import Task
from budget_trainer.model.attention import fuse_attention
from budget_trainer.model.build import position_offset

_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a repository on the Hub, in its top folder
# What from_pretrained raises.
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError, SafetensorError)


def load_checkpoint(
    model_name_or_path: str, tokenizer_name: str | None = None
) -> tuple[Path, PreTrainedTokenizerBase, str]:
    """The folder of a checkpoint, its tokenizer (or another one's), and the digest of both; fetched from the Hub if need be.

    The digest is the SHA-256 of what a classifier is made from: config, weights and tokenizer. InputError where it is no
    checkpoint, or the tokenizer none for this.
    """
    folder = _resolve_model(model_name_or_path, "model_name_or_path")
    tokenizer_folder = folder if tokenizer_name is None else _resolve_model(tokenizer_name, "tokenizer_name")
    tokenizer, whole = _load_tokenizer(tokenizer_folder), hashlib.sha256()
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    files += sorted(path for path in tokenizer_folder.iterdir() if _of_tokenizer(path.name))
    for path in files:
        whole.update(f"{path.name} {sha256(path)}\n".encode())
    return folder, tokenizer, whole.hexdigest()


def _resolve_model(name_or_path: str, field: str) -> Path:
    """The folder of a checkpoint, fetched from the Hub where it is no folder."""
    path = Path(name_or_path)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(name_or_path, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
        except (OSError, ValueError) as error:  # those of the Hub are of these
            raise InputError(
                f"{field}: {name_or_path} is no folder and cannot be fetched from the Hub ({_reason(error)}); give one"
            ) from None
    if not (path / "config.json").is_file():
        better = path / "final"
        fix = f"give {better}" if (better / "config.json").is_file() else "give the folder that has one"
        raise InputError(f"{field}: {name_or_path} has no config.json; {fix}")
    if field == "model_name_or_path" and not list(path.glob("*.safetensors")):
        why = "has no *.safetensors, and other weights are not loaded"
        raise InputError(f"{field}: {name_or_path} {why}; convert it with save_pretrained")
    return path


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _of_tokenizer(name: str) -> bool:
    words = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece")
    return name.startswith(words) and os.path.splitext(name)[1] in (".json", ".txt", ".model")


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, if it marks beginning, end, padding and masks, under whatever names (RoBERTa's <s>, ...).

    No row has a mask here; a tokenizer without one is of no masked language model, so most likely of another checkpoint.
    """
    if not any(_of_tokenizer(path.name) and "config" not in path.name for path in folder.iterdir()):
        # without these files the library would make one with an empty vocabulary
        raise InputError(f"tokenizer_name: {folder} has no tokenizer (tokenizer.json, ...); give --tokenizer_name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except UNREADABLE as error:
        reason = f"cannot be loaded ({_reason(error)})"
        raise InputError(f"tokenizer_name: {folder} {reason}; give --tokenizer_name") from None
    names = ("cls", "sep", "pad", "mask")
    missing = [f"[{name.upper()}]" for name in names if getattr(tokenizer, f"{name}_token") is None]
    if missing:
        raise InputError(
            f"tokenizer_name: {folder} ({type(tokenizer).__name__}) has no {', '.join(missing)} token; give the tokenizer of a "
            "BERT-like model (RoBERTa's are the same under other names), or name them in its tokenizer_config.json"
        )
    ids: Any = tokenizer("a", "a")["input_ids"]
    if not {tokenizer.cls_token_id, tokenizer.sep_token_id} <= set(ids):
        raise InputError(
            f"tokenizer_name: {folder} puts no {tokenizer.cls_token} and {tokenizer.sep_token} around a text; give it the "
            "post-processor of a BERT-like tokenizer"
        )
    return tokenizer


def load_classifier(
    folder: Path, task: Task, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, seed: int, new_head: bool = True
) -> Any:
    """A classifier of `task` in float32 on the CPU, with the labels of the task in its config.

    Weights that the checkpoint lacks (the head, a pooler) are drawn from `seed`; a head of another size is replaced.
    Without `new_head` the checkpoint has to bring the head of this task.
    """
    hf_logging.set_verbosity_error()  # that the head is new is no news
    config = _config(folder, tokenizer, max_seq_length)
    theirs = [str(name).lower() for _, name in sorted(config.id2label.items())]
    config.id2label, config.label2id = task.id2label, {name: number for number, name in task.id2label.items()}
    config.problem_type = "regression" if task.regression else "single_label_classification"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=new_head,
                output_loading_info=True,
            )
    except UNREADABLE as error:
        why = f"gives no classifier of {task.name} ({_reason(error)})"
        raise InputError(f"model_name_or_path: {folder} {why}; give an encoder's checkpoint") from None
    _check_loaded(model, set(info["missing_keys"]), folder, task, new_head)
    if model.config.model_type == "megatron-bert":  # the paper's; eager only in the library
        fuse_attention(model)
    ours = [label.lower() for label in task.labels]
    if not new_head and theirs != ours and sorted(theirs) == sorted(ours):
        order = [theirs.index(label) for label in ours]  # of a head that numbers the same labels differently
        last = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == len(order)][-1]
        with torch.no_grad():
            for parameter in last.parameters():  # [labels, ...]
                parameter.copy_(parameter[order].clone())
    return model


def _config(folder: Path, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> Any:
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except UNREADABLE as error:
        path = folder / "config.json"
        raise InputError(f"model_name_or_path: {path} cannot be read ({_reason(error)}); correct it") from None
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        positions -= position_offset(config.model_type, config.pad_token_id)
        if positions < max_seq_length:
            beyond = f"{max_seq_length} is beyond the {positions} tokens of {folder}"
            raise InputError(f"max_seq_length: {beyond}; give --max_seq_length {positions}")
    if len(tokenizer) > config.vocab_size:
        more = f"its {len(tokenizer)} tokens are more than the {config.vocab_size} of {folder}"
        raise InputError(f"tokenizer_name: {more}; give the model's own tokenizer")
    return config


def _check_loaded(model: Any, missing: set[str], folder: Path, task: Task, new_head: bool) -> None:
    """Only the head, and a pooler, may be new."""
    of_encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if of_encoder:
        lacks = f"lacks {len(of_encoder)} weights of its encoder ({min(of_encoder)}, ...)"
        raise InputError(f"model_name_or_path: {folder} {lacks}; give a whole checkpoint")
    if missing and not new_head:
        lacks = f"has no head for {task.name} ({min(missing)} is not there)"
        raise InputError(f"model_name_or_path: {folder} {lacks}; add --do_train, or give a model fine-tuned on it")
