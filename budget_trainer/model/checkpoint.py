"""What a checkpoint's folder holds, asked before it is used: config, tokenizer, and which weights were really loaded.

`scale_weights` makes another checkpoint of the same function: it moves the scale of hidden matrices into the norms before them.
A norm forgets the scale of what it reads, and its own weight can carry the scale of the matrix behind it. So a network with
norms before its sublayers has one function and many sets of weights, and AdamW, which moves every weight by about its
rate, treats them differently: matrices that Muon has trained are three to five times as large as BERT's, and the ordinary
rates of fine-tuning hardly move them. (Scale and rate: van Laarhoven 2017, arXiv 1706.05350.)
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from budget_trainer.core.errors import InputError
from budget_trainer.data.whole_words import check_not_sentencepiece

log = logging.getLogger(__name__)
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a repository on the Hub, in its top folder
# Parts that wrappers put into the names of weights: DDP, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_SAMPLE = "The Quick, naïve café's 3.14 (ABC) 你好"  # lower-casing, accents, punctuation: what tokenizers differ in
_STREAM = re.compile(r"\.layers\.\d+\.(attn|mlp)\.Wo\.(weight|bias)$")  # what is added to the residual stream
_READERS = {"attn.Wqkv.weight": "attn_norm", "mlp.Wi.weight": "mlp_norm"}  # of the stream, each through its norm


@contextmanager
def readable(what: str, fix: str) -> Iterator[None]:
    """What the library raises for a missing, torn or foreign file is an InputError in one line: `what (reason); fix`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each of the libraries beneath has classes of its own
        raise InputError(f"{what} ({' '.join(str(error).split())[:300]}); {fix}") from None


def resolve_model(name_or_path: str, field: str) -> Path:
    """The folder of a checkpoint, fetched from the Hub where it is no folder; InputError names the flag `field`."""
    path = Path(name_or_path)
    if path.is_file():
        raise InputError(f"{field}: {name_or_path} is a file; give the folder of the whole checkpoint")
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        with readable(f"{field}: {name_or_path} is no folder and cannot be fetched from the Hub", "give one"):
            path = Path(snapshot_download(name_or_path, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
    if not (path / "config.json").is_file():
        better = path / "final"
        fix = f"give {better}" if (better / "config.json").is_file() else "give the folder that has one"
        raise InputError(f"{field}: {name_or_path} has no config.json; {fix}")
    if field == "model_name_or_path" and not list(path.glob("*.safetensors")):
        why = "has no *.safetensors, and other weights are not loaded"
        raise InputError(f"{field}: {name_or_path} {why}; convert it with save_pretrained")
    return path


def read_config(path: str | Path, field: str = "model_name_or_path") -> Any:
    """The native config of a checkpoint; of xmod with the language that it has to choose."""
    with readable(f"{field}: the config.json of {path} cannot be read", "correct it"):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    choose_language(config, f"{field}: {path}", "set it in config.json")
    return config


def choose_language(config: PretrainedConfig, what: str, fix: str) -> None:
    """An xmod model has adapters by language and takes the only one; InputError where there are several and none is named."""
    if config.model_type != "xmod" or config.default_language is not None:
        return
    languages = list(config.languages)
    if len(languages) != 1:
        raise InputError(
            f"{what} has {len(languages)} languages ({', '.join(languages[:3])}, ...) and no default_language; {fix}"
        )
    config.default_language = languages[0]


def of_tokenizer(name: str) -> bool:
    """Whether a file of this name belongs to a tokenizer."""
    words = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece")
    return name.startswith(words) and os.path.splitext(name)[1] in (".json", ".txt", ".model")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds more of a tokenizer than its config: of nothing the library makes one with no vocabulary."""
    return any(of_tokenizer(path.name) and "config" not in path.name for path in folder.iterdir())


def other_tokens(own: Any, tokenizer: Any) -> str:
    """The first id that is another token in `tokenizer` than in the model's own, in words; empty where there is none."""
    theirs, ours = ({number: token for token, number in t.get_vocab().items()} for t in (own, tokenizer))
    differs = next((number for number in sorted(theirs) if theirs[number] != ours.get(number)), None)
    if differs is None:
        return ""
    there = f"{ours[differs]!r}" if differs in ours else f"missing, of {len(ours):,} tokens,"
    return f"token {differs} is {theirs[differs]!r} in the model's and {there} in the other"


def own_tokens(folder: Path, tokenizer: Any) -> int | None:
    """How many of the first ids of `tokenizer`, the data folder's, are the model's own: all, or all but words added behind.

    None where no tokenizer lies beside the model. InputError where the model was trained with another one.
    """
    if not has_tokenizer(folder):
        return None
    check_not_sentencepiece(folder)
    with readable(f"model_name_or_path: the tokenizer of {folder} cannot be read", "correct it"):
        own = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    cut = tokenizer.tokenize(_SAMPLE)
    if not (why := other_tokens(own, tokenizer)) and cut != own.tokenize(_SAMPLE) and {*cut} <= own.get_vocab().keys():
        why = f"the same tokens, but they cut {_SAMPLE!r} in other places"
    if why:
        fix = f"prepare the data with --tokenizer {folder}"
        raise InputError(f"model_name_or_path: {folder} has another tokenizer than the data folder ({why}); {fix}")
    return len(own)


def fit_token_types(tokenizer: Any, config: PretrainedConfig) -> None:
    """A tokenizer that marks more types of tokens than the model has gives none from here on, nor where it is saved."""
    types = getattr(config, "type_vocab_size", None)
    if types and max(tokenizer("a", "a").get("token_type_ids", [0])) >= types:
        log.info("token types: the model has %d and its tokenizer marks more: left out", types)
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def check_loaded(model: Any, info: Mapping[str, Any], checkpoint: str) -> list[str]:
    """Refuse a checkpoint that has not filled the encoder of `model`; only a head, and a pooler, may be new.

    Args:
        info: what `from_pretrained` gave with `output_loading_info` and `ignore_mismatched_sizes`.
        checkpoint: its field and value, as `model_name_or_path: out/final`.

    Returns:
        The names of the weights that are new, sorted.
    """
    sizes = {name: (tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"]}
    new = sorted({*info["missing_keys"], *sizes})
    of_encoder = [name for name in new if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name]
    for name in of_encoder:
        if name in sizes:
            there, here = sizes[name]
            raise InputError(
                f"{checkpoint}: {name} has the shape {there}, by its config.json {here}; correct config.json"
            )
    if not of_encoder:
        return new
    lacks, fix = f"lacks {len(of_encoder)} weights of its encoder ({of_encoder[0]}, ...)", "give a whole checkpoint"
    for name in sorted(info["unexpected_keys"]):
        parts = name.split(".")
        if _WRAPPERS & {*parts} or any(name.endswith(f".{key}") for key in of_encoder):
            lacks += f" and has names such as {name}, those of a wrapped model"
            fix = "save it with accelerator.unwrap_model(model).save_pretrained"
            break
    raise InputError(f"{checkpoint} {lacks}; {fix}")


def check_scalable(config: Any) -> None:
    """Raise InputError where a model of this config has no norm before each sublayer that this module knows."""
    if config.model_type != "modernbert":
        raise InputError(
            f"final_weight_rms: model_type {config.model_type} cannot have its scales moved into norms; use modernbert, "
            "or leave it out"
        )


def scale_weights(weights: Mapping[str, Tensor], rms: float, norm_eps: float) -> tuple[dict[str, Tensor], float]:
    """Return the weights of a modernbert with the same outputs, whose hidden matrices and embeddings have the root mean square
    `rms`, and the `norm_eps` that belongs to them.

    Wqkv and Wi of each layer get it exactly, by the weight of the norm before them. The two Wo get it on average over all
    layers, by the scale of the whole residual stream, which is that of the norm behind the embeddings and is lost at the next
    norm (but for its epsilon). The first layer's Wqkv, which has no norm of its own, takes the stream's scale in. The scale of
    the embeddings is lost at the norm behind them, whose epsilon takes its square in, since rare tokens have rows that are as
    small as it; where the embeddings are the decoder, too, the norm of the head takes their scale in.

    Args:
        weights: by the names of the library's state dict; the head's matrix stays as it is.
        rms: above 0, such as 0.02, the standard deviation of BERT's initial weights.
        norm_eps: of the config.
    """
    out = {name: tensor.float() for name, tensor in weights.items()}
    stream = [name for name in out if _STREAM.search(name)]
    matrices = [out[name] for name in stream if name.endswith("weight")]
    shrink = float(torch.stack([matrix.square().mean() for matrix in matrices]).mean().sqrt()) / rms or 1.0
    for name in stream:
        out[name] /= shrink
    base = stream[0].split("layers.")[0]
    for name in (f"{base}embeddings.norm.weight", f"{base}embeddings.norm.bias"):
        if name in out:
            out[name] /= shrink
    for name in list(out):
        reader = next((reader for reader in _READERS if name.endswith(reader)), None)
        if reader is None:
            continue
        norm = name.removesuffix(reader) + _READERS[reader]
        if f"{norm}.weight" not in out:  # the first layer reads the embeddings' norm
            out[name] *= shrink
            continue
        scale = float(out[name].square().mean().sqrt()) / rms or 1.0  # zeros have no scale to move
        out[name] /= scale
        for part in (f"{norm}.weight", f"{norm}.bias"):
            if part in out:
                out[part] *= scale

    table = f"{base}embeddings.tok_embeddings.weight"
    scale = float(out[table].square().mean().sqrt()) / rms or 1.0
    out[table] /= scale
    norm_eps /= scale**2
    if "decoder.weight" not in out:  # the embeddings are tied to it
        for part in ("head.norm.weight", "head.norm.bias"):
            if part in out:
                out[part] *= scale
    return {name: tensor.to(weights[name].dtype) for name, tensor in out.items()}, norm_eps
