"""Defects of the original (IntelLabs/academic-budget-bert) that must not come back. B7 is in test_nsp."""

import pytest
import torch
from torch import nn

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.scheduler import get_time_budget_schedule
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.model.build import build_model, output_bias
from budget_trainer.model.optimizers import build_optimizer
from tests.conftest import TINY, words

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 100
TYPES = ["megatron-bert", "bert", "roberta-prelayernorm", "eurobert", "modernbert"]
WITH_PAIRS = [*((name, False) for name in TYPES), ("megatron-bert", True), ("bert", True)]
BUDGETS = {"10m": 600, "30m": 1800, "1h": 3600, "24h": 86400}
# modernbert divides the range of what writes into the residual stream, and of its head, by sqrt(2 * layers).
NARROWER = {"modernbert": ("Wo", "head.dense")}
TRUNCATED = {"modernbert": 0.88}  # the standard deviation of a normal cut at 2


def model_of(model_type, **changes):
    options = {
        "vocab_size": VOCAB,
        "special_ids": SPECIAL,
        "max_position_embeddings": 64,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return build_model(model_type, **options | changes)


def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, (8, 32), generator=generator)
    positions = torch.arange(1, 7).expand(8, 6)
    return {"input_ids": ids, "masked_positions": positions, "labels": ids.gather(1, positions)}


def pair_batch(add_nsp):
    kinds = (torch.arange(32) >= 16).long().expand(8, 32)
    return batch() | ({"token_type_ids": kinds, "next_sentence_label": torch.arange(8) % 2} if add_nsp else {})


# ---- B3, B4: the curve of short budgets ----


def rates(budget, curve, shares, **options):
    """The learning rate at these shares of a budget, with a peak of 1, through the schedule for a loop of one's own."""
    now = [0.0]
    clock = BudgetClock(budget, time_fn=lambda: now[0])
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=1.0)
    schedule = get_time_budget_schedule(optimizer, clock, curve=curve, warmup_proportion=0.06, **options)
    found = []
    for share in shares:
        now[0] = share * BUDGETS[budget]
        optimizer.step()
        schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("budget", BUDGETS)
def test_linear_decay_is_right_for_any_budget(budget):
    """B3: the original's clamp of a denominator in hours left 0.157 of the peak for 10 minutes."""
    shares = [0.0, 0.03, 0.06, 0.06 + 1e-6, 0.53, 1.0]
    assert rates(budget, "linear", shares) == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0], abs=1e-5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_exp_on_time_decays_as_documented(budget):
    """B4: the original's decay per 1,000 *hours* left 0.9998 of the peak after a day."""
    shares = [0.06, 0.06 + 0.94 / 4, 0.53, 1.0]
    assert rates(budget, "exp", shares) == pytest.approx([1.0, 0.01**0.25, 0.1, 0.01])
    halves = rates(budget, "exp", shares, decay_rate=0.5, decay_step=0.25)
    assert halves == pytest.approx([1.0, 0.5, 0.25, 0.0625])


@pytest.mark.parametrize("lr_schedule", ["step", "constant_step"])
def test_steps_need_a_last_one(lr_schedule, tmp_path):
    """B4: without max_steps the original warmed up over 6 % of 2**63 steps."""
    flags = {**TINY, "data_dir": "d", "output_dir": tmp_path, "total_training_time": "1h", "lr_schedule": lr_schedule}
    with pytest.raises(
        InputError, match=f"^max_steps: missing, and lr_schedule {lr_schedule} needs it; add --max_steps"
    ):
        parse_recipe(words(flags))


# ---- B16: initialisation ----


@pytest.mark.parametrize(("model_type", "add_nsp"), WITH_PAIRS)
def test_every_weight_starts_at_the_initializer_range(model_type, add_nsp):
    """B16: FFN-in, MLM transform and pooler of the original kept kaiming-uniform weights and non-zero biases."""
    model = model_of(model_type, add_nsp=add_nsp, hidden_size=256, intermediate_size=512)
    seen = set()
    for name, module in model.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            narrower = any(name.endswith(part) for part in NARROWER.get(model_type, ()))
            expected = 0.02 * TRUNCATED.get(model_type, 1.0) / (4**0.5 if narrower else 1.0)
            tolerance = 0.05 if weight.numel() > 2000 else 0.3
            # modernbert gives the tied output projection one of its two ranges, whichever comes last.
            if model_type != "modernbert" or weight is not model.get_output_embeddings().weight:
                assert weight.std().item() == pytest.approx(expected, rel=tolerance), name
            assert weight.mean().abs() < 3e-3, name
            assert weight.abs().max() <= 0.02 * 6, name
            seen.add(name)
        elif weight is not None:
            assert (weight == 1).all(), name
        if isinstance(bias, torch.Tensor):
            assert (bias[:VOCAB] == 0).all(), name
    parts = {"bert": "intermediate", "modernbert": "mlp.Wi", "eurobert": "up_proj"}
    assert any(parts.get(model_type, "intermediate") in name for name in seen)  # FFN-in
    assert any("transform" in n or "lm_head" in n or "head.dense" in n for n in seen)
    assert any("pooler" in name for name in seen) is add_nsp


# ---- B17: the output bias ----


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("model_type", "add_nsp"), WITH_PAIRS)
def test_the_output_bias_is_in_the_logits_and_learns(model_type, add_nsp, sparse):
    """B17: with sparse prediction the original's output bias never entered the logits. And nothing is left out."""
    model = model_of(model_type, add_nsp=add_nsp, sparse_mask_prediction=sparse)
    inputs = pair_batch(add_nsp)
    model(**inputs).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    bias = output_bias(model)
    if model_type == "eurobert":
        assert bias is None
        return
    assert bias.grad[:VOCAB].abs().min() > 0 and (bias.grad[VOCAB:] == 0).all()
    given = (inputs["input_ids"], None, inputs["masked_positions"])
    with torch.no_grad():
        before = model.masked_logits(*given)
        bias[7] += 1.5
        after = model.masked_logits(*given)
    assert torch.allclose((after - before)[:, 7], torch.tensor(1.5), atol=1e-5)
    assert torch.allclose(after[:, 8:], before[:, 8:], atol=1e-5)


# ---- B18: who decays ----


@pytest.mark.parametrize("optimizer_type", ["adamw", "muon"])
@pytest.mark.parametrize(("model_type", "add_nsp"), WITH_PAIRS)
def test_norms_and_biases_do_not_decay_and_everything_else_does(model_type, add_nsp, optimizer_type):
    """B18: the original matched names, so RMSNorm decayed; its pooler was computed but in no group."""
    model = model_of(model_type, add_nsp=add_nsp)
    optimizer = build_optimizer(optimizer_type, model, learning_rate=1e-3, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay), "none twice"
    assert decay.keys() == {id(parameter) for parameter in model.parameters()}, "none missing"
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Embedding))}
    norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    assert norms and not norms & matrices
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.1 if id(parameter) in matrices else 0.0), name
    assert all(decay[norm] == 0.0 for norm in norms)
    assert any("pooler" in name for name, _ in model.named_parameters()) is add_nsp
