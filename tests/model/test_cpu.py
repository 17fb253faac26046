"""Dropout from few bits: rate, scale, gradient, independence, generator. And glibc keeps what is freed."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from budget_trainer.model import attention
from budget_trainer.model.attention import attend_by_head
from budget_trainer.model.patches import dropout, use_few_bit_dropout
from tests.conftest import ROOT


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_scale(p):
    torch.manual_seed(0)
    x = torch.ones(1_000_003)  # no multiple of the four elements of a draw
    y = dropout(x, p)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / len(x)) ** 0.5)
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p)), rtol=2e-4)
    realised = round(p * 2**16) / 2**16
    assert y.max().item() == pytest.approx(1 / (1 - realised), rel=1e-6), "unbiased for the rounded rate"


def test_the_four_elements_of_a_draw_are_independent():
    torch.manual_seed(1)
    kept = (dropout(torch.ones(400_000), 0.3) != 0).double().view(-1, 4)
    correlation = torch.corrcoef(kept.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.02
    assert (kept.mean(0) - 0.7).abs().max() < 0.01


def test_gradient_goes_where_the_value_went_and_the_generator_decides():
    x = torch.randn(3, 5, 70, requires_grad=True)
    torch.manual_seed(5)
    first, second = dropout(x, 0.4), dropout(x, 0.4)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.4), first) and not torch.equal(first, second)
    first.sum().backward()
    assert torch.equal(x.grad * x.detach(), first.detach())


def test_off_is_off():
    x = torch.randn(10)
    assert torch.equal(dropout(x, 0.0), x) and torch.equal(dropout(x, 0.5, training=False), x)
    assert (dropout(x, 1.0) == 0).all()
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    use_few_bit_dropout(model)
    assert type(model[1]) is not nn.Dropout and isinstance(model[1], nn.Dropout) and model[1].p == 0.5
    y = model.eval()(x[:4])
    assert torch.equal(y, model[0](x[:4])) and (model.train()(torch.randn(100, 4)) == 0).any()


@pytest.mark.parametrize("masked", ["no", "bool", "additive"])
def test_attention_drops_weights(masked, monkeypatch):
    """By this module; with a rate near 0 it is SDPA's; the mean over many draws is the context without dropout."""
    calls = []
    monkeypatch.setattr(attention, "few_bit_dropout", lambda x, p: calls.append(p) or dropout(x, p))
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 8, dtype=torch.float64) for length in (4, 6, 6))
    mask = torch.rand(2, 1, 1, 6) > 0.3
    mask[..., 0] = True
    given = {"no": None, "bool": mask, "additive": torch.zeros(mask.shape).masked_fill(~mask, -1e30)}[masked]
    exact = F.scaled_dot_product_attention(query, key, value, attn_mask=None if masked == "no" else mask)
    exact = exact.transpose(1, 2).flatten(2)
    tiny_rate = attend_by_head(query, key, value, given, 1e-9)
    torch.testing.assert_close(tiny_rate, exact)
    assert calls == [1e-9]
    many = torch.stack([attend_by_head(query, key, value, given, 0.3) for _ in range(500)])
    assert many.std(0).min() > 0.01
    assert ((many.mean(0) - exact).abs() / many.std(0) * 500**0.5).max() < 5.5


# A block of 64 MiB, freed and taken again: page faults come back where it went to the kernel.
CODE = """
import resource, sys, torch
from budget_trainer.core.machine import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()  # the heap grows to its size
print(int(kept), faults())
"""


def child(how, **environ):
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run([sys.executable, "-c", CODE, how], env=env, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_used_again_unless_the_user_has_settings():
    kept, faults = child("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert faults * 10 < child("leave")[1]
    assert child("keep", MALLOC_ARENA_MAX="2")[0] == 0
