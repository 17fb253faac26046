"""What the probe does with its time and with what it measures, without a model where none is needed."""

import math
import pickle
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
import yaml
from torch._dynamo import utils as dynamo

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.model.flops import body_parameters
from budget_trainer.plan import _ask_probe
from budget_trainer.planning import probe as probe_module
from budget_trainer.planning.probe import probe
from budget_trainer.planning.steps import Measurements, MicroStep, ProbeSteps, StepRequest, StepResult, micro_batches
from budget_trainer.training import run as run_module
from tests.conftest import TINY
from tests.model.models import tiny
from tests.planning.test_predict import REPORT


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "distilbert", "xlm"])
def test_the_body_is_all_but_embeddings_and_head(model_type):
    changes = {"initializer_range": None, "intermediate_size": None} if model_type == "xlm" else {}
    base = tiny(model_type, **changes).base_model
    outside = sum(p.numel() for name, p in base.named_parameters() if "embed" in name or name == "final_norm.weight")
    assert body_parameters(base) == base.num_parameters() - outside > 10_000


def test_micro_batches_make_up_the_batch_and_the_ladder_takes_some():
    assert micro_batches(16) == [1, 2, 4, 8, 16] and micro_batches(12) == [1, 2, 3, 4, 6, 12]
    assert micro_batches(16, lambda accumulation: accumulation % 4 == 0) == [1, 2, 4] and micro_batches(1) == [1]
    assert micro_batches(None)[:4] == [1, 2, 4, 8] and micro_batches(None)[-1] == 4096

    def sizes(allowed, tried, marked=0):
        return ProbeSteps(Measurements(), allowed, 64, tried, marked).sizes()

    assert sizes([1, 2, 3, 4, 5, 6, 8, 24], 1) == [1, 2, 3, 4, 6, 8, 24]
    assert sizes([10, 11], 32) == [11]  # too close to each other: the largest one stays
    # The first one is at most what has run, and at least a quarter of it.
    powers = [1, 2, 4, 8, 16, 32, 64]
    assert sizes(powers, 32)[0] == 8 and sizes([1, 61], 32)[0] == 1
    assert sizes(powers, 32, marked=32)[0] == 32 and sizes([1, 8, 64], 32, marked=32)[0] == 8
    assert sizes([48, 96], 32)[0] == 48 and sizes([1, 2], 1)[0] == 1


@pytest.mark.parametrize(
    ("work", "rest", "total", "chosen"),
    [
        ({4: 0.4, 8: 0.79, 16: 1.58}, 0.0, 16, 4),  # 1.3 % slower
        ({4: 0.5, 8: 0.79, 16: 1.57}, 0.0, 16, 8),
        # The optimizer comes once per step: alone, 4 would look much slower than 16.
        ({4: 0.4, 16: 1.6}, 1.0, 16, 4),
        ({4: 0.4, 16: 1.6}, 1.0, None, 16),
    ],
)
def test_the_smaller_one_within_the_noise_is_chosen_and_the_batch_counts(work, rest, total, chosen):
    measured = {size: [MicroStep(0.0, seconds, rest)] * 9 for size, seconds in work.items()}
    assert ProbeSteps(Measurements(measured=measured), list(work), total).choose() == chosen


def test_memory_is_extrapolated_along_a_line():
    found = Measurements(peaks={1: 110.0, 2: 120.0, 4: 140.0})
    assert found.predicted_memory(8) == 180.0 and found.largest_that_fits(200.0) == 10
    assert Measurements(peaks={1: 100.0, 2: 100.0}).largest_that_fits(200.0) is None
    for peaks in ({4: 100.0}, {2: 100.0, 4: 100.0}):  # no growth seen is no promise of none
        assert Measurements(peaks=peaks).predicted_memory(8) == 200.0


def play(steps, peak=float, fits=lambda size: True, seconds=lambda size: 1e-4 * size):
    """Answer the requests of `steps` as a machine would; returns the sizes in order."""
    sizes = []
    try:
        request = next(steps)
        while True:
            sizes.append(request.micro_batch)
            step = MicroStep(0.0, seconds(request.micro_batch), 0.0)
            request = steps.send(StepResult(step, peak(request.micro_batch), fits(request.micro_batch)))
    except StopIteration:
        return sizes


def test_a_cpu_never_tries_what_would_not_fit():
    steps = ProbeSteps(Measurements(peaks={0: 100.0}), [1, 2, 4, 8, 16, 32], 32, limit_bytes=200.0)
    sizes = play(steps.ladder(math.inf), lambda size: 100 + 10 * size)
    assert max(sizes) == 8 and steps.results.refused == 16  # 180 fits, 260 would not


@pytest.mark.parametrize(("total", "sizes"), [(None, [8, 16, 32, 64]), (120, [8, 24, 30, 40, 60, 120])])
def test_a_gpu_bisects_between_what_fits_and_what_does_not(total, sizes):
    steps = ProbeSteps(Measurements(), sizes, total, gpu=True)
    play(steps.ladder(math.inf), fits=lambda size: size <= 50)
    largest, refused = max(steps.results.measured), steps.results.refused
    assert largest <= 50 < refused and (refused - largest <= largest // 8 or (largest, refused) == (40, 60))


def test_a_size_that_fails_after_it_fitted_is_not_chosen():
    """In its second step, and in the turns."""
    steps, taken = ProbeSteps(Measurements(), [16, 32, 64], 64, gpu=True), iter(range(100))
    play(steps.ladder(math.inf), fits=lambda size: size < 64 or next(taken) == 0)
    found = steps.results
    assert next(taken) == 2 and found.refused == 64 and max(found.peaks) == max(found.measured) == 32
    measured = {size: [MicroStep(0.0, 0.1, 0.0)] for size in (32, 64)}
    steps = ProbeSteps(Measurements(measured=measured, peaks={32: 1.0, 64: 2.0}), [32, 64], 64)
    play(steps.turns(0.0), fits=lambda size: size < 64)
    found = steps.results
    assert found.micro_batch == 32 and found.refused == 64 and set(found.peaks) == {32}
    with pytest.raises(RunError, match="plan a smaller model"):
        play(steps.turns(0.0), fits=lambda size: False)


def test_the_rest_of_the_time_goes_to_steps_as_the_run_takes_them(monkeypatch):
    """What the compiler did for graphs that were not in its cache the run behind the probe finds there."""
    monkeypatch.setitem(dynamo.compilation_time_metrics, "fx_codegen_and_compile", [1.0, 2.0])
    monkeypatch.setitem(dynamo.counters, "inductor", Counter())
    found, reported, begin = Measurements(micro_batch=8), [], time.monotonic()
    steps = ProbeSteps(found, [8], 8, compiles=True, report=lambda: reported.append(len(found.steady)))
    assert play(steps.compilation(), seconds=lambda size: 5.0) == [8] and found.compile_seconds() is None
    play(steps.steady(begin + 0.2), seconds=lambda size: 5e-4)
    assert begin + 0.19 <= time.monotonic() and len(found.steady) > 2 and reported == [1]  # and not at every step
    assert found.compile_seconds() == pytest.approx(4.9995)
    dynamo.counters["inductor"]["fxgraph_cache_miss"] += 2
    play(steps.compilation(), seconds=lambda size: 5.0)
    assert found.compile_seconds() == pytest.approx(1.9995)
    with pytest.raises(RunError, match="compiled it does not"):
        play(steps.steady(begin), fits=lambda size: False)


def test_stages_are_measured_as_far_as_the_time_goes():
    shapes = {(0.15, 1): list, (0.15, 2): list}
    steps = ProbeSteps(Measurements(micro_batch=8), [8], 8, collators=shapes)
    play(steps.stages(time.monotonic() - 1))
    assert steps.results.unmeasured == list(shapes) and not steps.results.relative
    play(steps.stages(time.monotonic() + 60))
    assert steps.results.relative == {shape: pytest.approx(1.0) for shape in shapes}


def test_the_mean_over_slow_and_fast_minutes_counts():
    slow, fast = MicroStep(0.0, 1.6, 0.4), MicroStep(0.0, 0.8, 0.2)
    state = Measurements(steady=[fast] * 8 + [slow] * 4).steady_state()
    assert state["step"]["work"] == pytest.approx(12.8 / 12) and state["seconds"] == pytest.approx(16.0)
    assert state["fastest"] == pytest.approx(4 / 3) and state["slowest"] == pytest.approx(2 / 3)
    assert Measurements(steady=[fast]).steady_state()["slowest"] is None  # one window tells of no difference


def test_want_of_memory_anywhere_is_said_in_one_line(tmp_path, monkeypatch):
    from_run = RunError("per_device_train_batch_size: 8 does not fit; go on with --resume_from_checkpoint auto")
    from_run.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    no_room, known, bad = "none fits into this machine's memory", RunError("known"), InputError("x: y")
    for error, line in ((from_run.__cause__, no_room), (from_run, no_room), (known, "known"), (bad, "x: y")):
        monkeypatch.setattr(probe_module, "parse_recipe", Mock(side_effect=error))
        with pytest.raises(RunError if isinstance(error, RuntimeError) else InputError, match=line):
            probe([], tmp_path)


def tiny_words(folder, data_dir, **changes):
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"use_cpu": True, **changes}))
    return [str(folder / "tiny.yaml"), "--data_dir", str(data_dir), "--total_training_time", "1h"]


def test_a_step_whose_optimizer_does_not_fit_is_refused_and_the_next_one_is_taken(data_dir, tmp_path, monkeypatch):
    """The run's own Trainer takes the steps; its optimizer asks for too much memory in its second step."""

    class Greedy(torch.optim.SGD):
        taken = 0

        def step(self, closure=None):
            self.taken += 1
            if self.taken == 2:
                self.state[self.param_groups[0]["params"][0]] = {"half": "made"}
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step(closure)

    results, reports, optimizers, samples = [], [], [], []

    def build(_, model, **options):
        samples.append(model.sampled_softmax.samples)
        optimizers.append(Greedy(model.parameters(), lr=0.1, momentum=0.9))
        return optimizers[0]

    def four_steps(steps):
        for size in (2, 4, 2, 4):
            results.append((yield StepRequest(size)))

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # the probe sets it
    monkeypatch.setattr(run_module, "build_optimizer", build)
    flags = {"embedding_init": "cooccurrence", "cross_entropy": "sampled", "softmax_samples": 100}
    words = tiny_words(tmp_path, data_dir, **flags)
    probe(words, tmp_path, send=reports.append, take_steps=four_steps)
    assert [result.fits for result in results] == [True, False, True, True]
    assert all(result.step.work > 0 and result.peak_bytes > 2**20 for result in results)
    assert "half" not in str(optimizers[0].state) and len(optimizers) == 1
    report = reports[-1]
    assert report.costs.save > 0 and report.setup["imports"] > 0 and report.setup["counted embeddings"] > 0
    assert flags.items() <= report.flags.items() and samples == [100]  # what a run is compared with
    assert pickle.loads(pickle.dumps(report)) == report


def test_on_a_cpu_weights_that_cannot_fit_are_not_made(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    huge = tiny_words(tmp_path, data_dir, hidden_size=2**16, num_hidden_layers=100)
    with pytest.raises(RunError, match="none fits into this machine's memory"):
        probe(huge, tmp_path)


@pytest.mark.parametrize("chosen", [None, 8])
def test_a_probe_that_crashes_is_not_taken_for_one_without_time(chosen, tmp_path, monkeypatch):
    """A stand-in for the interpreter reports a choice, or none, and crashes."""
    report = replace(REPORT, results=Measurements(micro_batch=chosen))
    (tmp_path / "python").write_text(
        f"#!{sys.executable}\nimport sys\nopen(sys.argv[3] + '/report.pickle', 'wb').write({pickle.dumps(report)!r})\n"
        "print('no compiler here')\nsys.exit(3)\n"
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    ask = partial(_ask_probe, ["r.yaml"], tmp_path, time.monotonic() + 20)
    message = "it ended with exit code 3; its last words: no compiler here"
    if chosen is None:
        with pytest.raises(RunError, match=message):
            ask()
    else:
        assert ask() == (report, message)
