"""Any checkpoint of a Transformers encoder as a classifier of a task: native classes and safetensors only."""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from budget_trainer.data.whole_words import check_not_sentencepiece, vocabulary_size
from budget_trainer.glue.tasks import Task
from budget_trainer.model.attention import fuse_attention
from budget_trainer.model.build import most_tokens
from budget_trainer.model.checkpoint import (
    check_loaded,
    fit_token_types,
    has_tokenizer,
    of_tokenizer,
    other_tokens,
    read_config,
    readable,
    resolve_model,
)

log = logging.getLogger(__name__)
# How labels of published models begin, without marks and in lower case, and GLUE's word for it. Before it may stand a `not`.
_MEANINGS = {"entail": "entailment", "contradict": "contradiction", "neutral": "neutral", "equivalent": "equivalent"}
_MEANINGS |= {
    "paraphras": "equivalent",
    "duplicat": "duplicate",
    "accept": "acceptable",
    "pos": "positive",
    "neg": "negative",
}
_LABEL = re.compile(rf"(?:is)?(not|non|no|un|in)?({'|'.join(_MEANINGS)}).*")


def load_checkpoint(
    model_name_or_path: str, tokenizer_name: str | None = None
) -> tuple[Path, PreTrainedTokenizerBase, str]:
    """The folder of a checkpoint, its tokenizer (or another one's), and the digest of both; fetched from the Hub if need be.

    The digest is the SHA-256 of what a classifier is made from: config, weights and tokenizer. InputError where it is no
    checkpoint, or the tokenizer none for this.
    """
    folder = resolve_model(model_name_or_path, "model_name_or_path")
    tokenizer_folder = folder if tokenizer_name is None else resolve_model(tokenizer_name, "tokenizer_name")
    config, whole = read_config(folder), hashlib.sha256()
    tokenizer = _load_tokenizer(tokenizer_folder)
    if tokenizer_name is not None and has_tokenizer(folder):
        why = ""
        with suppress(Exception):  # one that cannot be read is what the flag is for
            why = other_tokens(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False), tokenizer)
        if why:
            raise InputError(f"tokenizer_name: {tokenizer_name} is not that of {folder} ({why}); leave it out")
    fit_token_types(tokenizer, config)
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    files += sorted(path for path in tokenizer_folder.iterdir() if of_tokenizer(path.name))
    for path in files:
        whole.update(f"{path.name} {sha256(path)}\n".encode())
    return folder, tokenizer, whole.hexdigest()


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, if it marks beginning, end, padding and masks, under whatever names (RoBERTa's <s>, ...).

    No row has a mask here; a tokenizer without one is of no masked language model, so most likely of another checkpoint.
    """
    check_not_sentencepiece(folder)
    if not has_tokenizer(folder):
        raise InputError(f"tokenizer_name: {folder} has no tokenizer (tokenizer.json, ...); give --tokenizer_name")
    with readable(f"tokenizer_name: {folder} cannot be loaded", "give --tokenizer_name"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
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
    Without `new_head` the checkpoint has to bring the head of this task; it is put into the order of the task's labels, and
    `labels_assumed` of the model says whether its own say nothing.
    """
    hf_logging.set_verbosity_error()  # that the head is new is no news
    config = _config(folder, tokenizer, max_seq_length)
    theirs = [str(name) for _, name in sorted(config.id2label.items())]
    config.id2label, config.label2id = task.id2label, {name: number for number, name in task.id2label.items()}
    config.problem_type = "regression" if task.regression else "single_label_classification"
    with (
        readable(f"model_name_or_path: {folder} gives no classifier of {task.name}", "give an encoder's checkpoint"),
        torch.random.fork_rng(devices=[]),
    ):
        torch.default_generator.manual_seed(seed)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    new = check_loaded(model, info, f"model_name_or_path: {folder}")
    if new and not new_head:
        lacks = f"has no head for {task.name} ({new[0]} is missing or of another size)"
        raise InputError(f"model_name_or_path: {folder} {lacks}; add --do_train, or give a model fine-tuned on it")
    if model.config.model_type == "megatron-bert":  # the paper's; eager only in the library
        fuse_attention(model)
    model.labels_assumed = False
    if not new_head and not task.regression:
        order = _label_order(theirs, task, folder)
        model.labels_assumed = order is None
        if order is not None and order != sorted(order):  # of a head that numbers the same labels differently
            last = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == len(order)][-1]
            with torch.no_grad():
                for parameter in last.parameters():  # [labels, ...]
                    parameter.copy_(parameter[order].clone())
    return model


def _label_order(theirs: list[str], task: Task, folder: Path) -> list[int] | None:
    """Where in `theirs` each label of the task stands; None where names such as LABEL_0 say nothing and ours are assumed."""
    meanings = [_meaning(label) for label in theirs]
    ours = [_meaning(label) for label in task.labels]
    if sorted(meanings) == sorted(ours):
        return [meanings.index(label) for label in ours]
    if len(theirs) == len(ours) and all(re.fullmatch(rf"(label|class)?{n}", name) for n, name in enumerate(meanings)):
        log.info("labels %s say nothing: taken as %s", ", ".join(theirs), ", ".join(task.labels))
        return None
    names = f"its labels {', '.join(theirs)} are not those of {task.name} ({', '.join(task.labels)})"
    raise InputError(f"model_name_or_path: {folder}: {names}; correct id2label in its config.json")


def _meaning(label: str) -> str:
    name = re.sub(r"[\W_]", "", label.lower())
    found = _LABEL.fullmatch(name)
    return name if found is None else f"{'not_' if found[1] else ''}{_MEANINGS[found[2]]}"


def _config(folder: Path, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> Any:
    config = read_config(folder)
    if (positions := most_tokens(config)) < max_seq_length:
        beyond = f"{max_seq_length} is beyond the {positions} tokens of {folder}"
        raise InputError(f"max_seq_length: {beyond}; give --max_seq_length {positions}")
    if (size := vocabulary_size(tokenizer)) > config.vocab_size:
        more = f"its {size} tokens are more than the {config.vocab_size} of {folder}"
        raise InputError(f"tokenizer_name: {more}; give the model's own tokenizer")
    return config
