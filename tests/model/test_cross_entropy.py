"""The chunked cross entropy equals the plain one, in value and gradients, and never holds all logits."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from budget_trainer.model import cross_entropy
from budget_trainer.model.cross_entropy import linear_cross_entropy, logits_loss, loss_per_label
from tests.model.models import GPU, batch, tiny

N, H, V = 37, 16, 211


def inputs(bias=True, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=generator)
    weight = torch.randn(V, H, generator=generator) * 0.3
    offset = torch.randn(V, generator=generator)
    labels = torch.randint(V, (N,), generator=generator)
    labels[::5] = -100
    tensors = [hidden, weight, offset] if bias else [hidden, weight]
    return [t.to(device).requires_grad_() for t in tensors], labels.to(device)


def plain(hidden, weight, bias, labels):
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")


def value_and_gradients(function, tensors, labels, scale=0.25):
    loss = function(tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None, labels)
    return loss, torch.autograd.grad(loss * scale, tensors)


def close(a, b, tolerance):
    return (a.float() - b.float()).norm() <= tolerance * b.float().norm().clamp(min=1e-6)


@pytest.mark.parametrize(("device", "in_place"), [("cpu", ("cpu",)), ("cpu", ()), pytest.param("cuda", (), marks=GPU)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 8, 36, 37, 1000])
def test_equals_the_plain_loss_in_float32(chunk_size, bias, device, in_place, monkeypatch):
    monkeypatch.setattr(cross_entropy, "IN_PLACE", in_place)
    tensors, labels = inputs(bias, device)
    expected, wanted = value_and_gradients(plain, tensors, labels)
    loss, gradients = value_and_gradients(lambda *x: linear_cross_entropy(*x, chunk_size), tensors, labels)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for got, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-5)


def float32_bias(hidden, weight, bias, labels):
    """In place the scores of bf16 products are rounded once, before the bias, not twice."""
    scores = F.linear(hidden, weight).float() + bias.float()
    return F.cross_entropy(scores, labels, reduction="sum")


@pytest.mark.parametrize("reference,in_place", [(float32_bias, ("cpu",)), (plain, ())])
@pytest.mark.parametrize("chunk_size", [8, 1000])
@pytest.mark.parametrize("autocast", [True, False])
def test_equals_the_plain_loss_in_bfloat16(autocast, chunk_size, reference, in_place, monkeypatch):
    monkeypatch.setattr(cross_entropy, "IN_PLACE", in_place)
    tensors, labels = inputs()
    exact, exact_gradients = value_and_gradients(plain, tensors, labels)
    if not autocast:
        tensors = [t.detach().bfloat16().requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, wanted = value_and_gradients(reference, tensors, labels)
        loss, gradients = value_and_gradients(lambda *x: linear_cross_entropy(*x, chunk_size), tensors, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for tensor, got, want, true in zip(tensors, gradients, wanted, exact_gradients, strict=True):
        assert got.dtype == tensor.dtype
        # As close to the truth as the plain path, give or take a rounding of bfloat16.
        assert (got.float() - true).norm() <= (want.float() - true).norm() + 2**-8 * true.norm()
        assert close(got, want, 2**-6)


def test_gradients_stay_in_the_range_of_fp16_whatever_the_loss_scale():
    tensors, labels = inputs()
    halves = [t.detach().half().requires_grad_() for t in tensors]
    loss = linear_cross_entropy(*halves, labels, 8)
    loss.backward(torch.tensor(4.0))
    _, wanted = value_and_gradients(plain, tensors, labels, scale=4.0)
    for half, want in zip(halves, wanted, strict=True):
        assert close(half.grad, want, 0.02)
    with torch.no_grad():
        assert torch.isfinite(linear_cross_entropy(halves[0] * 300, halves[1], halves[2], labels, 8))


def test_limits_of_the_labels():
    tensors, labels = inputs()
    loss, gradients = value_and_gradients(linear_cross_entropy, tensors, torch.full_like(labels, -100))
    assert loss.item() == 0 and all((gradient == 0).all() for gradient in gradients), "nothing to predict"
    assert logits_loss(torch.zeros(3, 5), torch.full((3,), -100), None).item() == 0
    total = torch.tensor(6.0)
    assert loss_per_label(total, labels, 3).item() == loss_per_label(total, labels, torch.tensor(3)).item()
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[400.0], [0.0]])
    improbable = linear_cross_entropy(hidden, weight, None, torch.tensor([1]), 4)
    assert improbable.item() == pytest.approx(400)


def test_only_what_needs_a_gradient_gets_one():
    tensors, labels = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(*tensors, labels, 8)
    assert not loss.requires_grad and loss.item() == pytest.approx(plain(*tensors, labels).item(), rel=1e-6)
    tensors[1].requires_grad_(False)
    linear_cross_entropy(*tensors, labels, 8).backward()
    assert tensors[1].grad is None and tensors[0].grad is not None and tensors[2].grad is not None


def test_backward_twice_through_a_retained_graph_gives_the_same():
    tensors, labels = inputs()
    loss = linear_cross_entropy(*tensors, labels, 8)
    first = torch.autograd.grad(loss * 3, tensors, retain_graph=True)
    second = torch.autograd.grad(loss * 3, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Largest(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that an operation has returned."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.bytes = max(self.bytes, getattr(tensor, "nbytes", 0))
        return out


def test_the_logits_of_all_rows_never_exist():
    tensors, labels = inputs()
    with Largest() as made:
        linear_cross_entropy(*tensors, labels, 8).backward()
    assert made.bytes <= 4 * max(8 * V, V * H) < 4 * N * V
    states, weight = torch.randn(1000, 2), torch.randn(30_528, 2)
    with torch.no_grad(), Largest() as made:
        linear_cross_entropy(states, weight, None, torch.zeros(1000, dtype=torch.long))
    assert 16 * 30_528 * 4 < made.bytes <= 32 * 2**20, "chunks of a real vocabulary have a bounded size"


def test_a_projection_of_another_kind_is_called_not_read():
    class Doubled(torch.nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    model = tiny("bert")
    before = model(**batch()).loss.item()
    model.cls.predictions.decoder.__class__ = Doubled
    assert model(**batch()).loss.item() != pytest.approx(before, abs=1e-6)
