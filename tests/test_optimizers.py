"""Every optimizer against its reference, and the groups of real models."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM
from transformers.optimization import Adafactor

from budget_trainer.errors import InputError
from budget_trainer.optimizers import OPTIMIZERS, build_optimizer, parameter_groups

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


class RMSNorm(nn.Module):
    """A norm of somebody else, with a gain that is not called weight."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class Small(nn.Module):
    """An embedding tied to its projection, a norm and two matrices."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.up = nn.Linear(8, 12)
        self.norm = RMSNorm(12)
        self.down = nn.Linear(12, 8)
        self.decoder = nn.Linear(8, 20)
        self.decoder.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.decoder

    def forward(self, ids):
        return self.decoder(self.down(self.norm(self.up(self.embed(ids)))))


def small():
    torch.manual_seed(0)
    return Small()


def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SIZES))


def modernbert():
    torch.manual_seed(0)
    ids = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    return ModernBertForMaskedLM(ModernBertConfig(**SIZES, **ids))


def train(model, optimizer, steps=5, start=0):
    for step in range(start, start + steps):
        ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def split(model):
    """The reference's groups, written out by hand."""
    decay = [model.embed.weight, model.up.weight, model.down.weight]
    vectors = [model.up.bias, model.norm.scale, model.down.bias, model.decoder.bias]
    return decay, vectors


def close(a, b, tolerance=1e-6):
    return all(torch.allclose(x, y, atol=tolerance, rtol=0) for x, y in zip(a, b, strict=True))


REFERENCES = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-6),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-6),
    "adafactor": lambda groups: Adafactor(groups, lr=0.01, scale_parameter=False, relative_step=False),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_its_reference(name):
    ours, theirs = small(), small()
    decay, vectors = split(theirs)
    reference = REFERENCES[name](
        [{"params": decay, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
    )
    optimizer = build_optimizer(name, ours, learning_rate=0.01, weight_decay=0.1)
    assert close(train(ours, optimizer), train(theirs, reference))
    if name != "adafactor":
        assert all(group["fused"] for group in optimizer.param_groups)


def muon(model, **changes):
    options = {"learning_rate": 0.01, "weight_decay": 0.1, "muon_learning_rate": 0.02, "muon_weight_decay": 0.05}
    return build_optimizer("muon", model, **options | changes)


def test_muon_equals_torchs_muon_and_adamw():
    ours, theirs = small(), small()
    decay, vectors = split(theirs)
    hidden = torch.optim.Muon(
        decay[1:], lr=0.02, weight_decay=0.05, momentum=0.9, adjust_lr_fn="match_rms_adamw", nesterov=True
    )
    rest = torch.optim.AdamW(
        [{"params": decay[:1], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.98),
        eps=1e-6,
    )

    class Both:
        def zero_grad(self):
            hidden.zero_grad()
            rest.zero_grad()

        def step(self):
            hidden.step()
            rest.step()

    assert close(train(ours, muon(ours, muon_momentum=0.9)), train(theirs, Both()))


def test_muon_takes_the_common_learning_rate_by_default():
    optimizer = build_optimizer("muon", small(), learning_rate=0.03, weight_decay=0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.03}
    hidden = next(group for group in optimizer.param_groups if group["use_muon"])
    assert hidden["weight_decay"] == 0.2 and hidden["momentum"] == 0.95


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("wrap", [False, True])
def test_state_round_trip_is_exact(name, wrap, tmp_path):
    def fresh(model):
        optimizer = build_optimizer(name, model, learning_rate=0.01, embedding_learning_rate=0.005)
        return Accelerator(cpu=True).prepare_optimizer(optimizer) if wrap else optimizer

    model = small()
    optimizer = fresh(model)
    train(model, optimizer, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    expected = train(model, optimizer, 3, start=3)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other = small()
    other.load_state_dict(saved["model"])
    again = fresh(other)
    again.load_state_dict(saved["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(train(other, again, 3, start=3), expected, strict=True))


def test_a_scheduler_drives_both_parts_of_muon():
    model = small()
    optimizer = muon(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert close(train(model, optimizer, 1), before, 0)
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.01, 0.02}
    assert scheduler.get_last_lr() == [0.0] * len(optimizer.param_groups)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    assert not close(train(model, optimizer, 1), before, 0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_gradient_scaler(name):
    plain, scaled = small(), small()
    expected = train(plain, build_optimizer(name, plain, learning_rate=0.01), 1)
    optimizer = build_optimizer(name, scaled, learning_rate=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    scaler.scale(nn.functional.cross_entropy(scaled(ids).flatten(0, 1), ids.flatten())).backward()
    scaler.step(optimizer)
    scaler.update()
    assert close([p.detach() for p in scaled.parameters()], expected, 1e-5)
    for parameter in scaled.parameters():
        parameter.grad.fill_(float("inf"))
    scaler.step(optimizer)
    assert close([p.detach() for p in scaled.parameters()], expected, 1e-5), "a step on an overflow was not skipped"


def test_muon_takes_a_closure_and_can_be_copied():
    model = small()
    optimizer = muon(model)
    ids = torch.arange(6)[None]

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    twin = copy.deepcopy(optimizer)
    twin.step()
    assert [g["lr"] for g in twin.param_groups] == [g["lr"] for g in optimizer.param_groups]


@pytest.mark.parametrize("make", [small, bert, modernbert])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_trainable_parameter_is_in_one_group(make, name):
    model = make()
    frozen = next(p for p in model.parameters() if p.ndim == 1)
    frozen.requires_grad_(False)
    optimizer = build_optimizer(name, model, learning_rate=0.01, embedding_learning_rate=0.02)
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("make", [bert, modernbert])
def test_groups_of_real_models(make):
    model = make()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, lr=0.1, weight_decay=0.01, embedding_lr=0.2, split_hidden=True)
    by_kind = {g["name"]: {names[id(p)] for p in g["params"]} for g in groups}
    assert "decay" not in by_kind
    for name in by_kind["hidden"]:
        assert name.endswith("weight") and "embed" not in name and "norm" not in name.lower()
    for name in by_kind["no_decay"]:
        assert "bias" in name or "norm" in name.lower()
    tables = (
        ["word_embeddings", "position_embeddings", "token_type_embeddings"] if make is bert else ["tok_embeddings"]
    )
    assert sorted(n.split(".")[-2] for n in by_kind["embeddings"]) == sorted(tables)  # the decoder is tied to one
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "hidden": (0.1, 0.01),
        "embeddings": (0.2, 0.01),
        "no_decay": (0.1, 0.0),
    }


def test_an_untied_decoder_is_no_hidden_matrix():
    model = BertForMaskedLM(BertConfig(**SIZES, tie_word_embeddings=False))
    optimizer = muon(model)
    hidden = next(group for group in optimizer.param_groups if group["use_muon"])
    decoder = model.get_output_embeddings().weight
    assert all(p is not decoder for p in hidden["params"])
    assert sum(p is decoder for group in optimizer.param_groups for p in group["params"]) == 1


def test_a_model_without_matrices_of_one_kind():
    for model in (nn.Linear(4, 4, bias=False), nn.LayerNorm(4)):
        optimizer = build_optimizer("muon", model, learning_rate=0.01)
        model(torch.ones(2, 4)).pow(2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["fusedlamb", "sgd", ""])
def test_unknown_names_list_the_known(name):
    with pytest.raises(InputError, match="adam, adamw, adafactor, lamb, muon"):
        build_optimizer(name, small(), learning_rate=0.01)


@pytest.mark.parametrize("option", ["learning_rate", "weight_decay", "muon_learning_rate", "embedding_learning_rate"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_bad_numbers_name_the_field(option, value):
    with pytest.raises(InputError, match=f"{option}: {value}"):
        build_optimizer("muon", small(), **{"learning_rate": 0.01, option: value})
