"""What an expert writes with the same library: native ModernBERT in bf16, and a loop of his own that ends by the clock.

    python -m benchmarks.baselines.expert_modernbert --text train.txt --tokenizer DIR --output_dir out/expert \
        --total_training_time 5m --optimizer muon

Documents are joined by [SEP] and cut into blocks of 128, [CLS] and [SEP] included, without padding. 30 % of each block are
masked, everywhere as many, so that all shapes are static, and only these are predicted (`sparse_prediction`). No dropout;
attention over the whole block by SDPA or, on a GPU that has the package, FlashAttention 2. Encoder, head and loss are compiled
where a timing says that it pays. The loss of an accumulated batch is the mean over its targets. Fused AdamW, or Muon for the
hidden matrices and AdamW for the rest. The rates rise, then fall linearly to zero, by the share of the time since the first
step, which compiles. Training counts, compilation included; tokenising, that timing before it and the save do not.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.baselines.command import BLOCK, apart, check_blocks, needed, parse, run_parser, write_result

with needed():
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer, ModernBertConfig, set_seed
    from transformers.utils import is_flash_attn_2_available

TARGETS = round(0.30 * (BLOCK - 2))  # of a block
DECAY, WARMUP, TIMED = 0.01, 0.05, 10  # AdamW's; share of the time; steps by which it is judged whether to compile


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = run_parser(__doc__, size="256x2", batch_size=16, learning_rate="2e-3", bf16="true")
    parser.add_argument("--accumulation", type=int, default=1, help="batches of a step (1)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="(adamw)")
    parser.add_argument("--muon_learning_rate", type=float, default=6e-3, help="in AdamW's scale (6e-3)")
    parser.add_argument("--muon_weight_decay", type=float, default=0.1, help="(0.1)")
    parser.add_argument("--compile", choices=("auto", "true", "false"), default="auto", help="(auto: where it pays)")
    return parse(parser, argv)


def read_blocks(text: str, tokenizer: Any) -> torch.Tensor:
    """int32 [n, BLOCK]: [CLS], the next tokens of the documents, which are joined by [SEP], and [SEP]."""
    with open(text, encoding="utf-8") as lines:
        documents = [line.strip() for line in lines if line.strip()]
    sep, parts = tokenizer.sep_token_id, [torch.zeros(0, dtype=torch.int32)]
    for start in range(0, len(documents), 1000):
        rows = tokenizer(documents[start : start + 1000], add_special_tokens=False, verbose=False)["input_ids"]
        parts.append(torch.tensor([token for row in rows for token in (*row, sep)], dtype=torch.int32))
    tokens = torch.cat(parts)
    bodies = tokens[: len(tokens) // (BLOCK - 2) * (BLOCK - 2)].view(-1, BLOCK - 2)
    ends = torch.tensor([tokenizer.cls_token_id, sep], dtype=torch.int32).expand(len(bodies), 2)
    return torch.cat([ends[:, :1], bodies, ends[:, 1:]], dim=1)


def batches(blocks: torch.Tensor, size: int, tokenizer: Any, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels int64 [size, BLOCK], epoch after epoch: TARGETS of each block, 80/10/10."""
    place = {"generator": torch.Generator(blocks.device).manual_seed(seed), "device": blocks.device}
    special = torch.tensor(tokenizer.all_special_ids, device=blocks.device)
    while True:
        for rows in torch.randperm(len(blocks), **place)[: len(blocks) // size * size].view(-1, size):
            ids = blocks[rows].long()
            order = torch.rand(ids.shape, **place) + 2 * torch.isin(ids, special)  # special tokens come last
            chosen = order.topk(TARGETS, largest=False, sorted=False).indices
            wanted, action = ids.gather(1, chosen), torch.rand(chosen.shape, **place)
            noise = torch.randint(len(tokenizer), chosen.shape, **place)
            shown = torch.where(action < 0.9, noise, wanted).masked_fill(action < 0.8, tokenizer.mask_token_id)
            yield ids.scatter(1, chosen, shown), torch.full_like(ids, -100).scatter(1, chosen, wanted)


def build_model(a: argparse.Namespace, tokenizer: Any, device: str, compiled: bool = False) -> Any:
    """ModernBertForMaskedLM; every layer sees the whole block."""
    set_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    rope = {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in ("full_attention", "sliding_attention")}
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = {"bos_token_id": cls, "cls_token_id": cls, "eos_token_id": sep, "sep_token_id": sep}
    sizes = {"hidden_size": a.hidden_size, "num_hidden_layers": a.layers, "intermediate_size": a.hidden_size * 3 // 2}
    sizes |= {"num_attention_heads": a.hidden_size // 64, "max_position_embeddings": BLOCK}
    layers = {"layer_types": ["full_attention"] * a.layers, "rope_parameters": rope, "sparse_prediction": True}
    config = ModernBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids, **sizes, **layers)
    flash = device == "cuda" and is_flash_attn_2_available()
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="flash_attention_2" if flash else "sdpa")
    if compiled:  # in parts: the model finds its targets by a mask, a shape that no compiler knows
        model.model.compile(dynamic=False)
        model.head.compile(dynamic=False)
        model.loss_function = torch.compile(model.loss_function, dynamic=False)
    return model.to(device).train()


def build_optimizers(a: argparse.Namespace, model: Any) -> list[torch.optim.Optimizer]:
    embeddings, every = model.get_input_embeddings().weight, [*model.parameters()]
    matrices = [p for p in every if p.ndim == 2 and p is not embeddings]
    rest = [{"params": [embeddings]}, {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0}]
    adamw = {"lr": a.learning_rate, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": DECAY, "fused": True}
    if a.optimizer == "adamw":
        return [torch.optim.AdamW([{"params": matrices}, *rest], **adamw)]
    muon = {"lr": a.muon_learning_rate, "weight_decay": a.muon_weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [torch.optim.Muon(matrices, **muon), torch.optim.AdamW(rest, **adamw)]


def train(a: argparse.Namespace, model: Any, data: Iterator[Any], most: int | None = None) -> tuple[int, float]:
    """Steps until the time is over, or `most`; how many, and the seconds that they took."""
    optimizers, device = build_optimizers(a, model), model.device.type
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    targets = a.accumulation * a.batch_size * TARGETS
    begin, steps, first = time.monotonic(), 0, 0.0  # first: seconds of the first step
    while steps != most and (now := time.monotonic() - begin) + (now - first) / max(1, steps - 1) < a.seconds:
        share = (now - first) / (a.seconds - first)
        for group, peak in groups:
            group["lr"] = peak * min(share / WARMUP, (1 - share) / (1 - WARMUP))
        for _ in range(a.accumulation):
            ids, labels = next(data)
            with torch.autocast(device, torch.bfloat16, enabled=a.bf16 == "true"):
                loss = model(input_ids=ids, labels=labels, num_items_in_batch=targets).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        steps += 1
        first = first or time.monotonic() - begin
    if device == "cuda":
        torch.cuda.synchronize()
    return steps, time.monotonic() - begin


def compiling_pays(a: argparse.Namespace, tokenizer: Any, blocks: torch.Tensor, device: str) -> bool:
    """Whether more steps fit into the time, the first of which compiles, than without."""
    fit = []
    for compiled in (False, True):
        model = build_model(a, tokenizer, device, compiled)
        data = batches(blocks.to(device), a.batch_size, tokenizer, a.seed)
        first, (steps, seconds) = train(a, model, data, 1)[1], train(a, model, data, TIMED)
        fit.append((a.seconds - first) / seconds * steps)
    return fit[1] > fit[0]


def main(argv: list[str] | None = None) -> None:
    a = parse_flags(argv)
    device, tokenizer = "cuda" if torch.cuda.is_available() else "cpu", AutoTokenizer.from_pretrained(a.tokenizer)
    blocks = read_blocks(a.text, tokenizer)
    check_blocks(a, len(blocks))
    pays = a.compile == "auto" and apart(compiling_pays, a, tokenizer, blocks[: TIMED * a.batch_size].clone(), device)
    model = build_model(a, tokenizer, device, compiled := pays or a.compile == "true")
    steps, seconds = train(a, model, batches(blocks.to(device), a.batch_size, tokenizer, a.seed))
    write_result(a, model, tokenizer, steps, a.accumulation * a.batch_size, seconds, compiled=compiled)


if __name__ == "__main__":
    main()
