"""Small models, batches and comparisons that the tests of models share."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from budget_trainer.model.build import build_model
from budget_trainer.model.sparse import HEADS

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 100
# The types with a sparse head of their own, with and without next-sentence prediction.
TYPES = ["megatron-bert", "bert", "roberta-prelayernorm", "eurobert", "modernbert"]
WITH_PAIRS = [*((name, False) for name in TYPES), ("megatron-bert", True), ("bert", True)]
# Every type with a sparse head by the library's implementations; megatron-bert's attention is fused whatever its config says.
KINDS = [(kind, how) for kind in HEADS for how in ("sdpa", "eager") if (kind, how) != ("megatron-bert", "sdpa")]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Packed documents, longer and shorter than the window of 8 on each side of a `sharp` modernbert; the block ends with padding.
DOCUMENTS, PADDING = (13, 30, 1, 22), 6
ENDS = list(itertools.accumulate(DOCUMENTS))
SPANS = [slice(end - size, end) for end, size in zip(ENDS, DOCUMENTS, strict=True)]
LENGTH = ENDS[-1] + PADDING


def tiny(model_type, **changes):
    """A model of two layers of 32 without dropout, from seed 1 where the changes name no other."""
    options = {"vocab_size": VOCAB, "special_ids": SPECIAL, "max_position_embeddings": 160, "seed": 1}
    options |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    options |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return build_model(model_type, **options | changes)


def sharp(model_type, how=None, **changes):
    """Three layers whose attention is far from uniform, with the library's implementation `how`."""
    config = {"local_attention": 16} if model_type == "modernbert" else {}
    if how is not None and model_type != "megatron-bert":
        config["attn_implementation"] = how
    options = {"num_hidden_layers": 3, "initializer_range": 0.2, "model_config": config}
    return tiny(model_type, **options | changes)


def packed(rows=2, padded=True):
    """Blocks of DOCUMENTS."""
    length = LENGTH if padded else LENGTH - PADDING
    ids = torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = SPECIAL["cls"]
    documents = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS)).repeat(rows, 1)
    out = {"input_ids": ids, "document_ids": F.pad(documents, (0, length - documents.shape[1]), value=3)}
    if padded:
        ids[:, -PADDING:] = SPECIAL["pad"]
        out["attention_mask"] = (ids != SPECIAL["pad"]).long()
    return out


def predictions(ids, slots=6):
    """Masked positions, other ones in every row, and their labels."""
    positions = torch.arange(slots) * 10 + 1 + torch.arange(len(ids))[:, None]
    return {"masked_positions": positions, "labels": ids.gather(1, positions)}


def batch(rows=3, length=40, slots=6, padded=True, seed=0):
    """Blocks with masked positions, two of them unused; in the second block 20 tokens are followed by padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB, (rows, length), generator=generator)
    ids[:, 0], ids[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    positions = torch.stack([torch.randperm(15, generator=generator)[:slots].sort().values + 1 for _ in range(rows)])
    out = {"input_ids": ids, "masked_positions": positions, "labels": ids.gather(1, positions)}
    out["labels"][0, -2:] = -100
    out["masked_positions"][0, -2:] = 0
    if padded:
        ids[1, 20:] = SPECIAL["pad"]
        out["attention_mask"] = (ids != SPECIAL["pad"]).long()
    return out


def pick(inputs, *names):
    """Those of the named tensors that a batch has."""
    return {name: inputs[name] for name in names if name in inputs}


def stock_twin(model, stock_class):
    """The library's own class with the model's weights."""
    make = stock_class.from_config if hasattr(stock_class, "from_config") else stock_class
    stock = make(model.config)
    assert type(stock) is not type(model) and type(stock).__name__ == type(model).__name__
    stock.load_state_dict(model.state_dict())
    return stock


def loss_and_gradients(model, *batches):
    """The sum of the losses of the micro-batches of one optimizer step, and its gradients by name."""
    model.zero_grad()
    total = sum(model(**inputs).loss for inputs in batches)
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found, expected, atol=1e-6, rtol=1e-5):
    """The same tensors by name, or two equal tensors, up to rounding."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol, check_dtype=False)


def check_step(trainer_class, model, inputs, micro, folder, **options):
    """Loss and gradient norm that a Trainer logs of one step in micro-batches are those of the whole batch."""
    options |= {"train_dataset": [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]}
    flags = {"max_steps": 1, "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    flags |= {"learning_rate": 0.0, "max_grad_norm": 1e9, "disable_tqdm": True}
    flags |= {"gradient_accumulation_steps": len(inputs["input_ids"]) // micro, "per_device_train_batch_size": micro}
    expected, gradients = loss_and_gradients(copy.deepcopy(model), inputs)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    trainer = trainer_class(model, TrainingArguments(output_dir=str(folder), **flags), **options)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(expected, abs=1e-4)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-4)
    return trainer
