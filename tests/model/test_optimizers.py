"""Every optimizer against its reference, and the groups of real models."""

import copy
import itertools
import math
import sys
import types
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers.optimization import Adafactor

from budget_trainer.core.errors import InputError
from budget_trainer.model import engine_optimizers as engine
from budget_trainer.model import optimizers
from budget_trainer.model.optimizers import OPTIMIZERS, Lamb, build_optimizer
from tests.model.models import GPU, WITH_PAIRS, tiny


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


def loss_of(model, ids):
    return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())


def ids_of(step):
    return torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(step))


def train(model, optimizer, steps=5, start=0, device="cpu"):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, ids_of(step).to(device)).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def close(a, b, tolerance=1e-6):
    return all(torch.allclose(x, y, atol=tolerance, rtol=0) for x, y in zip(a, b, strict=True))


def reference_groups(model, matrices=True):
    """The groups, written out by hand."""
    members = [model.embed.weight] + [model.up.weight, model.down.weight] * matrices
    vectors = [model.up.bias, model.norm.scale, model.down.bias, model.decoder.bias]
    return [{"params": members, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def muon_and_adamw(model):
    options = {"weight_decay": 0.05, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw", "nesterov": True}
    hidden = torch.optim.Muon([model.up.weight, model.down.weight], lr=0.02, **options)
    rest = torch.optim.AdamW(reference_groups(model, matrices=False), **ADAM)
    rest.register_step_post_hook(lambda *step: (hidden.step(), hidden.zero_grad()))
    return rest


ADAM = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6}
MUON = {"muon_learning_rate": 0.02, "muon_weight_decay": 0.05}
REFERENCES = {
    "adam": lambda model: torch.optim.Adam(reference_groups(model), **ADAM),
    "adamw": lambda model: torch.optim.AdamW(reference_groups(model), **ADAM),
    "adafactor": lambda m: Adafactor(reference_groups(m), lr=0.01, scale_parameter=False, relative_step=False),
    "muon": muon_and_adamw,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_its_reference(name):
    ours, theirs = small(), small()
    options = {**MUON, "muon_momentum": 0.9} if name == "muon" else {}
    optimizer = build_optimizer(name, ours, learning_rate=0.01, weight_decay=0.1, **options)
    assert close(train(ours, optimizer), train(theirs, REFERENCES[name](theirs)))
    if name in ("adam", "adamw"):
        assert all(group["fused"] for group in optimizer.param_groups)


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


@pytest.mark.parametrize("model", [nn.Linear(4, 4, bias=False), nn.LayerNorm(4)])
def test_muon_of_a_model_without_matrices_of_one_kind(model):
    optimizer = build_optimizer("muon", model, learning_rate=0.01)
    model(torch.ones(2, 4)).pow(2).sum().backward()
    optimizer.step()


def test_a_scheduler_drives_both_parts_of_muon():
    model = small()
    optimizer = build_optimizer("muon", model, learning_rate=0.01, muon_learning_rate=0.02)
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
    scaler.scale(loss_of(scaled, ids_of(0))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert close([p.detach() for p in scaled.parameters()], expected, 1e-5)
    for parameter in scaled.parameters():
        parameter.grad.fill_(float("inf"))
    scaler.step(optimizer)
    assert close([p.detach() for p in scaled.parameters()], expected, 1e-5), "a step on an overflow was not skipped"


@pytest.mark.parametrize("name", ["muon", "lamb"])
def test_ours_take_a_closure_and_can_be_copied(name):
    model = small()
    optimizer = build_optimizer(name, model, learning_rate=0.01)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, torch.arange(6)[None])
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    twin = copy.deepcopy(optimizer)
    twin.step()
    assert [g["lr"] for g in twin.param_groups] == [g["lr"] for g in optimizer.param_groups]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(("model_type", "add_nsp"), WITH_PAIRS)
def test_groups_of_real_models(model_type, add_nsp, name, tied):
    """B18: the original matched names, so RMSNorm decayed; its pooler was computed but in no group."""
    model = tiny(model_type, add_nsp=add_nsp, model_config={"tie_word_embeddings": tied})
    frozen = next(parameter for parameter in model.parameters() if parameter.ndim == 1).requires_grad_(False)
    options = {"learning_rate": 1e-3, "embedding_learning_rate": 2e-3, "weight_decay": 0.1}
    groups = build_optimizer(name, model, **options).param_groups
    group_of = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(group_of), "none twice"
    assert group_of.keys() == {id(p) for p in model.parameters() if p is not frozen}, "none missing"
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables.add(id(model.get_output_embeddings().weight))
    matrices = tables | {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for path, parameter in ((path, p) for path, p in model.named_parameters() if p is not frozen):
        group, table, matrix = group_of[id(parameter)], id(parameter) in tables, id(parameter) in matrices
        assert group["lr"] == (2e-3 if table else 1e-3), path
        assert group["weight_decay"] == (0.1 if matrix else 0.0), path
        if name == "muon":  # heads are no hidden matrices
            assert group["use_muon"] is (matrix and not table and "seq_relationship" not in path), path
    assert any("pooler" in path for path, _ in model.named_parameters()) is add_nsp


BOUNDS = ({"min_coeff": 0.5}, {"min_coeff": 2.0, "max_coeff": 1.0}, {"max_coeff": 0.001})
RATES = ("learning_rate", "weight_decay", "muon_learning_rate", "embedding_learning_rate")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((unknown, {}, "adam, adamw, adafactor, lamb, muon") for unknown in ("fusedlamb", "sgd", "")),
        *(("muon", {rate: value}, f"{rate}: {value}") for rate in RATES for value in (-1.0, math.nan)),
        ("adamw", {"adam_beta1": 1.0}, r"adam_beta1: 1.0 is not in \[0, 1\)"),
        ("adamw", {"adam_beta2": -0.1}, r"adam_beta2: -0.1 is not in \[0, 1\)"),
        ("adamw", {"muon_momentum": 1.5}, r"muon_momentum: 1.5 is not in \[0, 1\)"),
        ("adamw", {"max_coeff": 0.3}, "max_coeff: 0.3 belongs to optimizer_type lamb, not adamw; leave it out"),
        ("adamw", {"bias_correction": True}, "bias_correction: True belongs to optimizer_type lamb"),
        ("adamw", {"optimizer_impl": "triton"}, "optimizer_impl: 'triton' is unknown; choose one of auto, torch"),
        *(("lamb", bounds, "min_coeff: .* is above max_coeff") for bounds in BOUNDS),
    ],
)
def test_bad_options_name_the_field(name, options, message):
    with pytest.raises(InputError, match=message):
        build_optimizer(name, small(), **{"learning_rate": 0.01, **options})


def test_lamb_has_the_options_of_the_original():
    optimizer = build_optimizer("lamb", small(), learning_rate=0.01, weight_decay=0.1)
    assert isinstance(optimizer, Lamb)
    for group in optimizer.param_groups:
        assert (group["bias_correction"], group["max_coeff"], group["min_coeff"]) == (False, 0.3, 0.01)
        assert group["weight_decay"] == (0.0 if group["name"] == "no_decay" else 0.1)
    given = {"bias_correction": True, "max_coeff": 10.0, "min_coeff": 0.0}
    changed = build_optimizer("lamb", small(), learning_rate=0.01, **given)
    assert all(changed.param_groups[0][name] == value for name, value in given.items())


@pytest.mark.parametrize(
    ("name", "impl", "options", "message"),
    [
        ("lamb", "auto", {"zero_stage": 2}, "optimizer_type: lamb needs the norm of whole tensors, and ZeRO cuts"),
        ("adafactor", "auto", {"zero_stage": 1}, "optimizer_type: adafactor factors whole matrices, and ZeRO cuts"),
        ("muon", "torch", {"zero_stage": 2}, "optimizer_impl: torch's Muon needs whole matrices"),
        ("muon", "auto", {"zero_stage": 2, "max_grad_norm": 1.0}, "max_grad_norm: 1 under ZeRO-2 would clip Muon's"),
        ("muon", "apex", {}, "optimizer_impl: apex has adam, adamw, lamb here, and optimizer_type is muon; use"),
        ("adamw", "deepspeed", {}, "optimizer_impl: deepspeed has lamb here, and optimizer_type is adamw; use"),
        ("adamw", "apex", {}, "optimizer_impl: apex runs on NVIDIA GPUs, this run is on 'cpu'; use optimizer_impl a"),
        ("lamb", "deepspeed", {}, "optimizer_impl: deepspeed runs on NVIDIA GPUs, this run is on 'cpu'"),
        ("adafactor", "auto", {"device": "cuda", "fsdp": True}, "optimizer_type: adafactor cannot work on FSDP's"),
        ("adamw", "apex", {"device": "cuda", "fsdp": True}, "optimizer_impl: apex's kernels cannot work on FSDP's"),
    ],
)
def test_what_cannot_run_is_refused(name, impl, options, message):
    with pytest.raises(InputError) as refused:
        engine.check_engine(name, impl, **{"device": "cpu", **options})
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("installed", "refused"), [("0.19.7", True), ("0.19.8", False), ("0.20.0+git", False)])
def test_muon_under_zero_needs_a_deepspeed_that_steps_it_once(installed, refused, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
    message = (
        f"optimizer_type: muon under ZeRO-3 needs DeepSpeed 0.19.8: that of the installed {installed} takes wrong"
    )
    with pytest.raises(InputError, match=message) if refused else nullcontext():
        engine.check_engine("muon", "auto", device="cpu", zero_stage=3)
    engine.check_engine("muon", "auto", device="cpu", zero_stage=0)
    engine.check_engine("adamw", "auto", device="cpu", zero_stage=3)


def test_what_every_engine_runs():
    for name, stage in itertools.product(("adam", "adamw"), (None, 0, 1, 2, 3)):
        engine.check_engine(name, "auto", device="cpu", zero_stage=stage, max_grad_norm=1.0)
    engine.check_engine("muon", "auto", device="cuda", fsdp=True)


@pytest.mark.parametrize(
    ("impl", "fix"), [("apex", "build NVIDIA's from source"), ("deepspeed", "pip install 'deepspeed>=0.19.8'")]
)
def test_a_missing_package_is_named_with_its_installation(monkeypatch, impl, fix):
    zero = "deepspeed.runtime.zero.muon.muon_optimizer"
    for module in ("apex", "apex.optimizers", "deepspeed", "deepspeed.ops", "deepspeed.ops.lamb", zero):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(InputError, match=f"optimizer_impl: {impl} is not installed") as refused:
        engine.check_engine("lamb", impl, device="cuda")
    assert fix in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(InputError, match="optimizer_type: muon under ZeRO is DeepSpeed's"):
        engine.zero_muon([])
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.delitem(sys.modules, "apex.optimizers")
    with pytest.raises(InputError, match="the package named apex on the public index is another one"):
        engine.check_engine("adamw", "apex", device="cuda")


class Recorded(torch.optim.Optimizer):
    """Stands for a fused optimizer: keeps what it was given."""

    def __init__(self, groups, **options):
        self.options = options
        super().__init__(groups, {"lr": 0.1})

    def step(self, closure=None):
        return None


@pytest.fixture
def kernels(monkeypatch):
    classes = {"apex": {}, "amp_C": {}, "apex.optimizers": {"FusedAdam": Recorded, "FusedLAMB": Recorded}}
    for name, members in {**classes, "deepspeed.ops.lamb": {"FusedLamb": Recorded}}.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))


def test_fused_kernels_get_the_options_of_ours(kernels):
    adam, clamp = {"betas": (0.9, 0.98), "eps": 1e-6}, {"max_coeff": 0.3, "min_coeff": 0.01}
    free = {"max_coeff": math.inf, "min_coeff": 0.0}
    for impl, name, given, expected in (
        ("apex", "adam", {}, {"adam_w_mode": False}),
        ("apex", "adamw", {}, {"adam_w_mode": True}),
        ("deepspeed", "lamb", {"bias_correction": False, **clamp}, {"bias_correction": False, **clamp}),
        ("apex", "lamb", {"bias_correction": True, **free}, {"bias_correction": True, "max_grad_norm": math.inf}),
    ):
        groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.1, "weight_decay": 0.0}]
        made = engine.fused_optimizer(impl, name, groups, **given, **adam).options
        assert made.pop("use_nvlamb", False) is ((impl, name) == ("apex", "lamb"))
        assert made == {**expected, **adam}
    for impl, message in (
        ("apex", r"FusedLAMB does not clamp its trust ratio to \[0.01, 0.3\]; give max_coeff inf"),
        ("deepspeed", "bias_correction: DeepSpeed's FusedLamb corrects behind the trust ratio"),
    ):
        with pytest.raises(InputError, match=message):
            engine.check_engine("lamb", impl, device="cuda", lamb={"bias_correction": True, **clamp})


@GPU
@pytest.mark.parametrize(
    ("impl", "name"), [("apex", "adam"), ("apex", "adamw"), ("apex", "lamb"), ("deepspeed", "lamb")]
)
def test_fused_kernels_equal_ours(impl, name):
    pytest.importorskip("amp_C" if impl == "apex" else "deepspeed")
    clamp = {"max_coeff": math.inf, "min_coeff": 0.0} if name == "lamb" and impl == "apex" else {}
    models = [small().cuda(), small().cuda()]
    for model, chosen in zip(models, (impl, "torch"), strict=True):
        options = {"learning_rate": 0.01, "weight_decay": 0.1, "optimizer_impl": chosen, **clamp}
        train(model, build_optimizer(name, model, **options), device="cuda")
    assert close([p.cpu() for p in models[0].parameters()], [p.cpu() for p in models[1].parameters()], 1e-5)


def test_zero_stage_of_accelerates_plugin():
    assert engine.zero_stage(None) is None
    plugin = types.SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3}})
    assert engine.zero_stage(plugin) == 3
    assert not engine.let_deepspeed_step(plugin, "muon")
    zero = {"stage": 3, "reduce_scatter": False}
    allowed = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    assert plugin.deepspeed_config == {"zero_optimization": zero, **allowed}


def test_groups_know_the_shapes_that_zero_3_has_taken_away(monkeypatch):
    model = small()
    expected = {g["name"]: len(g["params"]) for g in build_optimizer("muon", model, learning_rate=0.1).param_groups}
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    monkeypatch.setattr(optimizers, "zero_muon", lambda groups: groups)
    groups = build_optimizer("muon", model, learning_rate=0.1, zero_stage=3)
    assert {g["name"]: len(g["params"]) for g in groups} == expected


def test_muon_under_zero_takes_the_steps_of_ours(monkeypatch):
    """The rescaled rates of DeepSpeed's Muon, on whole matrices without an engine, for matrices of both shapes."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    ours, theirs = small(), small()
    options = {"learning_rate": 0.01, "weight_decay": 0.1, **MUON}
    optimizer = build_optimizer("muon", theirs, **options, zero_stage=2)
    assert type(optimizer).__name__ == "MuonWithAuxAdam"
    assert [p.use_muon for p in (theirs.up.weight, theirs.down.weight, theirs.embed.weight)] == [True, True, False]
    first, second = train(ours, build_optimizer("muon", ours, **options)), train(theirs, optimizer)
    start = list(small().parameters())
    for (name, _), a, b, s in zip(theirs.named_parameters(), first, second, start, strict=True):
        # Newton-Schulz runs in bfloat16 in both, in another order of operations.
        assert (a - b).norm() < 0.05 * (a - s).norm(), name
