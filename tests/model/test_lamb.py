"""LAMB against an independent float64 reading of the paper's algorithm 2 (arXiv 1904.00962)."""

import math

import numpy as np
import pytest
import torch

from budget_trainer.model.optimizers import Lamb

SHAPES = ((5, 3), (3,), (4, 2), (6,))
BETA1, BETA2, EPSILON, RATE = 0.9, 0.98, 1e-6, 0.05


def numbers(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return [scale * generator.standard_normal(shape) for shape in SHAPES]


def paper(weights, steps, *, decay, correct, low, high):
    """The algorithm, one tensor after the other, in numpy; the last two tensors have no weight decay."""
    weights = [w.copy() for w in weights]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    ratios = []
    for t in range(1, steps + 1):
        for i, gradient in enumerate(numbers(t)):
            first[i] = BETA1 * first[i] + (1 - BETA1) * gradient
            second[i] = BETA2 * second[i] + (1 - BETA2) * gradient**2
            m, v = first[i], second[i]
            if correct:
                m, v = m / (1 - BETA1**t), v / (1 - BETA2**t)
            r = m / (np.sqrt(v) + EPSILON) + (decay if i < 2 else 0.0) * weights[i]
            x_norm, r_norm = np.linalg.norm(weights[i]), np.linalg.norm(r)
            ratio = min(max(x_norm / r_norm, low), high) if x_norm > 0 and r_norm > 0 else 1.0
            ratios.append(ratio)
            weights[i] = weights[i] - RATE * ratio * r
    return weights, ratios


def ours(weights, steps, *, decay, correct, low, high, dtype=torch.float64):
    params = [torch.nn.Parameter(torch.tensor(w, dtype=dtype)) for w in weights]
    groups = [{"params": params[:2], "weight_decay": decay}, {"params": params[2:], "weight_decay": 0.0}]
    coefficients = {"bias_correction": correct, "min_coeff": low, "max_coeff": high}
    optimizer = Lamb(groups, lr=RATE, betas=(BETA1, BETA2), eps=EPSILON, **coefficients)
    for t in range(1, steps + 1):
        for parameter, gradient in zip(params, numbers(t), strict=True):
            parameter.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.step()
    return [p.detach().numpy() for p in params]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(
    ("low", "high", "scale", "clamped"),
    [
        (0.0, math.inf, 1.0, ""),  # the paper's phi: the identity
        (0.01, 0.3, 1.0, "high"),  # the original project's bounds
        (0.01, 0.3, 1e-3, "low"),
        (0.2, 0.4, 0.3, "both"),
    ],
)
def test_equals_the_paper(decay, correct, low, high, scale, clamped):
    start = numbers(0, scale)
    options = {"decay": decay, "correct": correct, "low": low, "high": high}
    expected, ratios = paper(start, 5, **options)
    if clamped:
        assert low in ratios or high in ratios, "the case does not reach the bound that it is about"
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        for mine, theirs in zip(ours(start, 5, dtype=dtype, **options), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * scale)


def test_a_zero_norm_has_the_ratio_one():
    """Without momentum and decay the direction of a gradient of ones is one everywhere, that of zeros is zero."""
    zero, one = torch.zeros(3), torch.ones(3)
    for weights, gradient, moved in ((zero, one, 1.0), (one, zero, 0.0), (one, one, 0.3), (zero, zero, 0.0)):
        parameter = torch.nn.Parameter(weights.clone())
        parameter.grad = gradient.clone()
        Lamb([parameter], lr=0.5, betas=(0.0, 0.0), eps=1e-12, min_coeff=0.01, max_coeff=0.3).step()
        assert (weights - parameter).tolist() == pytest.approx([0.5 * moved] * 3)


def test_it_reads_nothing_back_to_the_host(monkeypatch):
    """Every way from a tensor to a Python number is closed for one step; a parameter without gradient stays."""
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    params[0].grad = torch.ones_like(params[0])
    optimizer = Lamb(params, lr=0.1, weight_decay=0.1, bias_correction=True)

    def refuse(*args):
        raise AssertionError("a value was read back")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    optimizer.step()
    monkeypatch.undo()
    assert (params[0] != 1).all() and (params[1] == 1).all() and params[1] not in optimizer.state
