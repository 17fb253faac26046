"""The chunked cross entropy equals the plain one, in value and gradients, and never holds all logits; the sampled one does on
average."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from budget_trainer.core.errors import InputError
from budget_trainer.model import cross_entropy
from budget_trainer.model.cross_entropy import SampledSoftmax, linear_cross_entropy, logits_loss, loss_per_label
from tests.model.models import GPU, VOCAB, batch, tiny

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


COUNTS = np.random.default_rng(0).permutation(10_000 // (np.arange(V) + 1) ** 1.2).astype(int)


def draws(sampler, seeds):
    """How often entries are sampled in the first call after each seed [seeds, V], over their probability to be."""
    out = torch.zeros(len(seeds), V)
    for row, seed in zip(out, seeds, strict=True):
        torch.manual_seed(seed)
        sampled, share = sampler._draw()
        assert (sampled.diff() > 0).all() and sampled.shape == share.shape == (sampler.samples,)
        row[sampled] = 1 / share
    return out


def by_hand(hidden, weight, bias, labels, inverse):
    """The definition, row by row."""
    total = 0.0
    for state, label in zip(hidden, labels.tolist(), strict=True):
        if label != -100:
            scores = F.linear(weight, state) + (0 if bias is None else bias)
            share = inverse.index_fill(0, torch.tensor(label), 1)
            total = total + (scores.exp() * share).sum().log() - scores[label]
    return total


@pytest.mark.parametrize("samples", [1, 2, 60, V - 1, V])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sampled_softmax_is_its_definition(samples, bias):
    """A label in the sample counts once, as one outside of it does; of all entries the loss is the plain one."""
    sampler = SampledSoftmax(COUNTS, samples)
    (inverse,), (tensors, labels) = draws(sampler, [5]), inputs(bias)
    if samples < V:
        reference = lambda *given: by_hand(*given, inverse)  # noqa: E731
        outside, inside = (np.flatnonzero((inverse > 0) == used)[:2] for used in (False, True))
        labels[1:3], labels[3:4] = torch.from_numpy(outside[[0, -1]]), torch.from_numpy(inside[:1])
    else:
        reference = plain
    expected, wanted = value_and_gradients(reference, tensors, labels)
    torch.manual_seed(5)
    loss, gradients = value_and_gradients(sampler, tensors, labels)
    assert loss.dtype == torch.float32 and loss.shape == () and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-5)


def test_a_sample_is_right_on_average_and_frequent_entries_are_always_in_it():
    sampler = SampledSoftmax(COUNTS, 60)
    found = draws(sampler, range(500))
    shares = sampler._sums.diff().double() / 2**40
    assert shares.sum() == 60 and shares.min() > 0 and shares.max() == 1
    always = shares == 1
    assert 10 < always.sum() < 60 and COUNTS[always].min() > COUNTS[~always].max() and (found[:, always] == 1).all()
    bends = ((COUNTS + 0.5) ** 0.75)[~always] / shares[~always].numpy()
    assert bends.max() == pytest.approx(bends.min(), rel=1e-4)
    error = (1 / shares - 1).sqrt() / 500**0.5  # of the mean of each entry's draws
    assert ((found.mean(0) - 1).abs() <= 5 * error).all()
    (hidden, weight, bias), _ = inputs()
    terms = F.linear(hidden, weight, bias).exp().T.detach()
    assert torch.allclose((found @ terms).mean(0), terms.sum(0), rtol=0.04)
    assert ((found @ terms).std(0) / terms.sum(0)).max() > 0.1, "one draw is not that near"


def test_ranks_draw_samples_that_complement_each_other():
    ranks = [SampledSoftmax(COUNTS, 60, rank, 3) for rank in range(3)]
    first, second, third = (draws(sampler, [1])[0] for sampler in ranks)
    twice = ((first > 0) & (second > 0)) | ((second > 0) & (third > 0))
    rare = ranks[0]._sums.diff() / 2**40 < 1 / 3
    assert rare.sum() > 50 and not (twice & rare).any()


@pytest.mark.parametrize("autocast", [True, False])
def test_a_sampled_softmax_in_bfloat16(autocast):
    sampler, (tensors, labels) = SampledSoftmax(COUNTS, 60), inputs()
    torch.manual_seed(5)
    expected, wanted = value_and_gradients(sampler, tensors, labels)
    if not autocast:
        tensors = [t.detach().bfloat16().requires_grad_() for t in tensors]
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, gradients = value_and_gradients(sampler.to(torch.bfloat16), tensors, labels)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for tensor, got, want in zip(tensors, gradients, wanted, strict=True):
        assert got.dtype == tensor.dtype and close(got, want, 0.02)


def test_limits_of_a_sampled_softmax():
    """Nothing to predict; labels that are the whole sample; no logits of all entries."""
    (tensors, labels), sampler = inputs(), SampledSoftmax(COUNTS, 1)
    loss, gradients = value_and_gradients(sampler, tensors, torch.full_like(labels, -100))
    assert loss.item() == 0 and all((gradient == 0).all() for gradient in gradients)
    torch.manual_seed(5)
    (only,), _ = sampler._draw()
    torch.manual_seed(5)
    loss, gradients = value_and_gradients(sampler, tensors, torch.full_like(labels, only))
    assert loss.item() == 0 and all((gradient == 0).all() for gradient in gradients)
    with Largest() as made:
        SampledSoftmax(COUNTS, 20)(*tensors, labels).backward()
    assert made.bytes <= 4 * V * H < 4 * N * V


def test_a_model_trains_on_a_sample_and_is_evaluated_on_all():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, given = tiny("bert"), batch() | {"num_items_in_batch": 16}
    state, exact = model.state_dict(), model(**given).loss.item()
    model.sample_softmax(np.arange(VOCAB) ** 2, 40)
    assert model.state_dict().keys() == state.keys() and copy.deepcopy(model).sampled_softmax.samples == 40
    losses = [seeded(model, given, seed) for seed in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1] and exact not in losses
    assert model(**given, return_logits=True).loss.item() == pytest.approx(exact, rel=1e-6)
    assert model.eval()(**given).loss.item() == exact
    model.train().compile(backend="eager", dynamic=False, fullgraph=True)
    assert [seeded(model, given, seed) for seed in (1, 2, 1)] == pytest.approx(losses, abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert model.to("meta").sampled_softmax._sums.is_meta


def seeded(model, given, seed):
    torch.manual_seed(seed)
    return model(**given).loss.item()


@pytest.mark.parametrize(
    ("model_type", "sparse", "samples", "message"),
    [
        (
            "bert",
            True,
            VOCAB,
            f"^softmax_samples: {VOCAB} must be from 1 to below the vocabulary, which has {VOCAB} tokens",
        ),
        ("bert", True, 0, "^softmax_samples: 0 must be from 1"),
        ("bert", False, 40, "^cross_entropy: sampled needs sparse_mask_prediction"),
        ("distilbert", True, 40, "^cross_entropy: sampled needs .* one of bert, .*, not model_type='distilbert'"),
    ],
)
def test_what_cannot_be_sampled(model_type, sparse, samples, message):
    model = tiny(model_type, sparse_mask_prediction=sparse)
    with pytest.raises(InputError, match=message):
        model.sample_softmax(np.ones(VOCAB), samples)


def test_a_sample_learns_what_the_whole_vocabulary_teaches():
    """A bigram table with a skewed vocabulary: the exact loss of what each of them has learned."""
    chance, reached = np.random.default_rng(0), {}
    next_of = torch.from_numpy(chance.choice(V, (V, 4), p=(COUNTS + 1) / (COUNTS + 1).sum()))
    for loss in (SampledSoftmax(COUNTS, 80), linear_cross_entropy):
        torch.manual_seed(0)
        table, weight = (torch.nn.Parameter(torch.randn(V, H) * 0.1) for _ in range(2))
        optimizer = torch.optim.Adam([table, weight], lr=0.02)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 200)
        generator = torch.Generator().manual_seed(1)
        for _ in range(200):
            words = torch.randint(V, (256,), generator=generator)
            after = next_of[words, torch.randint(4, (256,), generator=generator)]
            optimizer.zero_grad()
            (loss(table[words], weight, None, after) / 256).backward()
            optimizer.step()
            schedule.step()
        exact = linear_cross_entropy(table.repeat_interleave(4, 0), weight, None, next_of.flatten())
        reached[type(loss)] = exact.item() / (4 * V)
    sampled, whole = reached.values()
    assert sampled == pytest.approx(whole, rel=0.05) and whole < 2 < np.log(V)
