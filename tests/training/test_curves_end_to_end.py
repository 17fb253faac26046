"""Masking rate, batch and sequence length follow the schedule in a real run; the realised values are in the log."""

import pytest

from tests.conftest import TINY, launch, losses, report, train

CURVES = {
    **TINY,
    "lr_schedule": "step",
    "max_steps": 40,
    "total_training_time": "10m",
    "gradient_accumulation_steps": 4,
    "per_device_train_batch_size": 4,
    "mlm_probability_curve": "0.4@0,0.15@0.5",
    "batch_size_curve": "0.25@0,0.5@0.2,1@0.6",
    "sequence_length_curve": "0.5@0,1@0.3",
}
REALISED = ("mlm_probability", "batch_size", "sequence_length")


def test_realised_values_follow_the_curves(data_dir, tmp_path):
    train({**CURVES, "data_dir": data_dir, "output_dir": tmp_path / "one"}, ok=True)
    lines = losses(tmp_path / "one")
    by_step = {line["step"]: tuple(line[name] for name in REALISED) for line in lines}
    assert len(by_step) == 40
    assert by_step[1] == (0.4, 4, 32)
    assert by_step[8] == (0.4, 4, 32) and by_step[9] == (0.4, 8, 32), "20 % of the steps are done after step 8"
    assert by_step[12] == (0.4, 8, 32) and by_step[13] == (0.4, 8, 64)
    assert by_step[20] == (0.4, 8, 64) and by_step[21] == (0.15, 8, 64)
    assert by_step[40] == (0.15, 16, 64)
    first_full = min(step for step, values in by_step.items() if values[1] == 16)
    assert first_full in (25, 26), "a count of micro-batches that 4 divides"
    for line in lines:  # [CLS] and [SEP] are not predicted: 15 % of 62 of 64 positions
        specials = 2 / line["sequence_length"]
        expected = line["mlm_probability"] * (1 - specials)
        assert line["predicted_share"] == pytest.approx(expected, rel=0.06), line["step"]
    account = report(tmp_path / "one")
    assert account["samples"] == sum(line["batch_size"] for line in lines)
    assert account["tokens"] == 64 * account["samples"]
    assert account["mfu"] > 0 and account["model_tflops_per_second"] > 0 and 0 <= account["data_wait_share"] < 1


@pytest.mark.slow
def test_two_processes_take_the_same_stages(data_dir, tmp_path):
    """Half the accumulation on each of two processes: the same batches, so the same losses."""
    options = {**CURVES, "gradient_accumulation_steps": 2, "batch_size_curve": "0.5@0,1@0.6", "data_dir": data_dir}
    train({**options, "gradient_accumulation_steps": 4, "output_dir": tmp_path / "single"}, ok=True)
    launch({**options, "output_dir": tmp_path / "pair"}, processes=2, ok=True)
    a, b = losses(tmp_path / "single"), losses(tmp_path / "pair")
    same = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x["batch_size"] == y["batch_size"]]
    assert len(same) >= 38  # the larger batch may begin a step apart: their counts of micro-batches differ
    first = next((i for i in range(40) if i not in same), 40)
    for x, y in zip(a[:first], b[:first], strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4), x["step"]


@pytest.mark.slow
def test_resume_goes_on_in_its_stage(data_dir, tmp_path):
    """From a checkpoint in the middle of the stages: the next samples, rate, length and batch, the same losses."""
    options = {**CURVES, "per_device_train_batch_size": 8, "data_dir": data_dir, "output_dir": tmp_path / "run"}
    train({**options, "num_epochs_between_checkpoints": 1}, ok=True)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    first = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 20 < first < 40
    (tmp_path / "run" / "final").rename(tmp_path / "final-of-whole")
    train({**options, "resume_from_checkpoint": checkpoint}, ok=True)
    jobs = [{line["step"]: line for line in losses(tmp_path / "run", job)} for job in (1, 2)]
    assert list(jobs[1]) == list(range(first + 1, 41))
    for step, line in jobs[1].items():
        for name in ("loss", *REALISED, "predicted_share"):
            assert line[name] == jobs[0][step][name], (step, name)
