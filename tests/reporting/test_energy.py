"""Energy: counters from trees and libraries that the test makes, on clocks that it turns."""

import json
import threading

import psutil
import pytest
from huggingface_hub import ModelCard

from budget_trainer.budget.clock import PHASES, BudgetClock, keep_clock, read_clock
from budget_trainer.core.errors import InputError
from budget_trainer.core.jobs import BESIDE
from budget_trainer.reporting import energy
from budget_trainer.reporting.card import card_text
from budget_trainer.reporting.energy import (
    EnergyMeter,
    account,
    add_up,
    check_country,
    energy_words,
    kept_energy,
)
from budget_trainer.reporting.report import _draw_report, print_summary
from tests.conftest import wait_for
from tests.reporting.test_report import report

KWH = 3.6e6  # joules


class Machine:
    """A clock, RAPL's folder with two packages, their memory and what is counted twice, and the seconds of busy cores."""

    wrap = 1_000_000_000  # microjoules

    def __init__(self, folder):
        self.now, self.folder = 0.0, folder
        self.clock = BudgetClock(100.0, time_fn=lambda: self.now)
        self.joules = dict.fromkeys(("0", "1", "0:1"), 990.0)
        names = {"0": "package-0", "1": "package-1", "0:0": "core", "0:1": "dram", "2": "psys"}
        for number, name in names.items():
            domain = folder / f"intel-rapl:{number}"
            domain.mkdir(parents=True)
            (domain / "name").write_text(f"{name}\n")
            (domain / "max_energy_range_uj").write_text(f"{self.wrap}\n")
        self.write()

    def write(self):
        for domain in self.folder.iterdir():
            joules = self.joules.get(domain.name.partition(":")[2], self.now * 77)
            (domain / "energy_uj").write_text(f"{round(1e6 * joules) % self.wrap}\n")

    def spend(self, phase, seconds, **joules):
        """So many seconds in a phase; joules by the number of the domain, with `_` for the colon."""
        self.clock.enter(phase)
        self.now += seconds
        for name, value in joules.items():
            self.joules[name.removeprefix("d").replace("_", ":")] += value
        self.write()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(BESIDE, raising=False)
    monkeypatch.setattr(energy, "_EVERY_SECONDS", 3600.0)  # the tests read
    return Machine(tmp_path / "powercap")


def joules(record):
    """By source and by phase, those that are not zero."""
    parts = (record["sources"], record["phases"])
    return tuple({name: pytest.approx(KWH * kwh) for name, kwh in part.items() if kwh} for part in parts)


def test_packages_and_their_memory_count_and_wrap(machine):
    meter = EnergyMeter(machine.clock, machine.folder)
    machine.spend("train", 2.0, d0=6.0, d1=3.0, d0_1=1.0)
    assert joules(meter.record()) == ({"cpu": 10.0}, {"train": 10.0})
    machine.spend("train", 2.0, d0=14.0, d1=16.0)  # both begin anew
    record = meter.record()
    assert joules(record) == ({"cpu": 40.0}, {"train": 40.0})
    assert record["kwh"] == pytest.approx(40 / KWH) and record["seconds"] == 4.0 and not record["estimated"]


def test_what_was_counted_goes_to_the_phases_by_their_seconds(machine):
    meter = EnergyMeter(machine.clock, machine.folder)
    machine.spend("setup", 1.0, d0=4.0)
    machine.spend("train", 3.0, d0=4.0)
    assert joules(meter.record())[1] == {"setup": 2.0, "train": 6.0}
    machine.joules["0"] += 1.0  # and no time: the next reading has it
    machine.write()
    assert meter.record()["kwh"] == pytest.approx(8.0 / KWH)
    machine.spend("save", 1.0, d0=4.0)
    machine.clock.stop()
    assert joules(meter.record())[1] == {"setup": 2.0, "train": 6.0, "save": 5.0}
    machine.spend("evaluate", 9.0, d0=50.0)
    assert joules(meter.record())[0] == {"cpu": 13.0}, "what follows the stop is not the run's"


def test_without_readable_counters_busy_cores_are_an_estimate(machine, monkeypatch):
    busy = [3.0, 1.0, 0.5, 0.5, 99.0]
    monkeypatch.setattr(energy.os, "times", lambda: busy)
    for unreadable in (machine.folder / "nowhere", machine.folder):
        for domain in machine.folder.glob("intel-rapl:*"):
            (domain / "energy_uj").write_text("\n")
        meter = EnergyMeter(machine.clock, unreadable)
        machine.clock.enter("train")
        machine.now += 5.0
        busy[0] += 10.0
        record = meter.record()
        assert joules(record) == ({"cpu_estimate": 40.0}, {"train": 40.0}) and record["estimated"]
        assert "estimate" in account(record, 5.0, None, None)["how"]["cpu_estimate"]
        assert "CPU, estimated" in energy_words(record)[0]


@pytest.mark.parametrize(("rank", "counted"), [("1", {}), ("0", {"cpu": 8.0})])
@pytest.mark.parametrize("readable", [True, False])
def test_a_machine_is_counted_once(machine, monkeypatch, rank, counted, readable):
    """By the first of its processes."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    meter = EnergyMeter(machine.clock, machine.folder if readable else machine.folder / "nowhere")
    machine.spend("train", 1.0, d1=8.0)
    sources = meter.record()["sources"]
    if readable:
        assert joules(meter.record())[0] == counted
    else:
        assert sources.keys() == ({"cpu_estimate"} if counted else set())


def test_the_estimate_has_all_processes_of_the_run(machine, monkeypatch):
    """Those of other ranks from their start on; one that has ended stays as it was at the last look."""
    seconds = {7: [2.0, 1.0, 0.0, 0.0, 9.0], 8: [5.0, 0.0, 0.0, 0.0, 0.0]}

    class Process:
        def __init__(self, pid):
            if pid not in seconds:
                raise psutil.NoSuchProcess(pid)
            self.pid = pid

        def cpu_times(self):
            if self.pid not in seconds:
                raise psutil.NoSuchProcess(self.pid)
            return seconds[self.pid]

    monkeypatch.setattr(energy.os, "times", lambda: [1.0, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(energy.psutil, "Process", Process)
    meter = EnergyMeter(machine.clock, machine.folder / "nowhere")
    for pid in (7, 8, 9):
        meter.add_process(pid)
    machine.spend("train", 1.0)
    assert joules(meter.record())[0] == {"cpu_estimate": 4.0 * 8}
    del seconds[8]
    seconds[7][0] += 1.0
    machine.spend("train", 1.0)
    assert joules(meter.record())[0] == {"cpu_estimate": 4.0 * 9}


class Nvml:
    """NVIDIA's library with one GPU; `millijoules` None: it has no counter."""

    def __init__(self, millijoules):
        self.millijoules = millijoules

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, name, device):
        return 0 if name == b"GPU-1234" else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, device, answer):
        if self.millijoules is None:
            return 3
        answer._obj.value = self.millijoules
        return 0


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
def test_a_gpu_is_read_by_its_uuid(machine, monkeypatch, uuid):
    library = Nvml(5_000_000)
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: library)
    meter = EnergyMeter(machine.clock, machine.folder)
    meter.add_gpu(uuid, "H200")
    library.millijoules += 70_000
    machine.spend("train", 1.0, d0=5.0)
    record = meter.record()
    assert joules(record) == ({"cpu": 5.0, "gpu": 70.0}, {"train": 75.0}) and record["not_measured"] == []
    library.millijoules = None  # once unreadable, the next reading has it
    assert joules(meter.record())[0] == {"cpu": 5.0, "gpu": 70.0}


def test_runs_beside_each_other_share_machine_and_gpu(machine, monkeypatch, tmp_path):
    """Each takes its part for as long as they are so many: together they have what was counted."""
    library, beside = Nvml(0), tmp_path / "beside"
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: library)
    monkeypatch.setenv(BESIDE, json.dumps([str(beside)]))
    meter = EnergyMeter(machine.clock, machine.folder)
    meter.add_gpu("1234", "H200")
    parts = []
    # Three runs, two of them on this GPU; an unreadable file, as before; then this one alone.
    for content in ("3 2\n", "", "1 1\n"):
        beside.write_text(content)
        library.millijoules += 60_000
        machine.spend("train", 1.0, d0=6.0)
        before = sum(parts)
        parts.append(meter.record()["kwh"] * KWH - before)
    assert parts == pytest.approx([32.0, 32.0, 66.0])
    assert joules(meter.record())[0] == {"cpu": 2.0 + 2.0 + 6.0, "gpu": 30.0 + 30.0 + 60.0}


def test_a_thread_reads_so_that_no_counter_begins_anew_unnoticed(machine, monkeypatch):
    """Where nobody else reads: three times 600 J of the 1,000 after which the counter begins anew."""
    monkeypatch.setattr(energy, "_EVERY_SECONDS", 0.005)
    reads, read, threads = set(), EnergyMeter.read, set(threading.enumerate())

    def noted(meter):
        now = machine.now
        read(meter)
        reads.add(now)

    monkeypatch.setattr(EnergyMeter, "read", noted)
    meter = EnergyMeter(machine.clock, machine.folder)
    meter.restore({})
    meter.keep_reading()
    (thread,) = set(threading.enumerate()) - threads
    for second in (1.0, 2.0, 3.0):
        machine.joules["0"] += 600.0
        machine.write()  # before its time has come, so that no reading takes one without the other
        machine.now = second
        wait_for(lambda second=second: second in reads, seconds=20)
    assert joules(meter.record())[0] == {"cpu": 1800.0}
    del meter
    wait_for(lambda: not thread.is_alive(), seconds=20)


def test_a_meter_that_counts_nothing_has_no_thread(machine, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    threads = set(threading.enumerate())
    EnergyMeter(machine.clock, machine.folder).keep_reading()
    assert set(threading.enumerate()) <= threads


def no_library(name):
    raise OSError(f"{name}: not there")


@pytest.mark.parametrize("library", [no_library, lambda name: Nvml(None), lambda name: object()])
def test_a_gpu_without_counter_is_named(machine, monkeypatch, library):
    monkeypatch.setattr(energy.ctypes, "CDLL", library)
    meter = EnergyMeter(machine.clock, machine.folder)
    meter.add_gpu("1234", "old GPU")
    record = meter.record()
    assert record["not_measured"] == ["old GPU"] and "gpu" not in record["sources"]
    assert "not measured: old GPU" in energy_words(record)


def test_jobs_and_ranks_add_up(machine, tmp_path):
    path = tmp_path / "clock.json"
    meter = EnergyMeter(machine.clock, machine.folder)
    with keep_clock(path, machine.clock, more=lambda: {"energy": meter.record()}):
        machine.spend("train", 4.0, d0=8.0)
    assert read_clock(path) == machine.clock.seconds_by_phase(), "the clock's own keys are as they were"
    later = BudgetClock(100.0, time_fn=lambda: machine.now)
    again = EnergyMeter(later, machine.folder)
    machine.now += 1.0
    again.read()
    later.restore(read_clock(path))
    again.restore(kept_energy(path))
    machine.joules["0"] += 2.0
    machine.now += 1.0
    machine.write()
    record = again.record()
    assert joules(record) == ({"cpu": 10.0}, {"train": 8.0, "setup": 2.0}) and record["seconds"] == 6.0
    other = EnergyMeter(later, machine.folder)
    machine.joules["0"] += 3.0
    machine.now += 1.0
    machine.write()
    again.add(other.take())
    assert joules(again.record())[0] == {"cpu": 16.0}, "both have counted 3 J"
    assert other.record()["kwh"] == 0.0, "what was taken is not taken twice"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"energy": {}}', '{"energy": {"kwh": "much"}}', "\0" * 20])
def test_a_damaged_record_is_none(tmp_path, content):
    path = tmp_path / "clock.json"
    assert kept_energy(path) == {}
    path.write_text(content)
    assert kept_energy(path) == {}


RECORD = {
    "kwh": 1.5,
    "estimated": True,
    "sources": {"gpu": 1.25, "cpu_estimate": 0.25},
    "phases": {**dict.fromkeys(PHASES, 0.0), "train": 1.4, "save": 0.1},
    "seconds": 295.0,
    "not_measured": [],
}
EMISSIONS = {"kg_co2eq": 0.57, "country_iso_code": "DEU", "country": "Germany", "source": "codecarbon 3"}


def test_records_of_several_runs_add_up():
    whole = add_up([RECORD, None, {**RECORD, "not_measured": ["old GPU"]}, {}])
    assert (whole["kwh"], whole["runs"], whole["unknown"], whole["seconds"]) == (3.0, 4, 2, 590.0)
    assert whole["sources"] == {"gpu": 2.5, "cpu_estimate": 0.5} and whole["phases"]["train"] == 2.8
    assert whole["estimated"] and whole["not_measured"] == ["old GPU"]
    assert add_up([])["kwh"] == 0.0 and not add_up([])["estimated"]


@pytest.mark.parametrize(
    ("kwh", "text"),
    [(0, "0 Wh"), (1.234e-5, "0.0123 Wh"), (0.0456, "45.6 Wh"), (0.9999, "1,000 Wh"), (1234.5, "1,234 kWh")],
)
def test_energy_as_text(kwh, text):
    assert energy.energy_text(kwh) == text


def test_words_for_people():
    counted = {**account(RECORD, 7200.0, None, 2.5), "emissions": EMISSIONS, "runs": 3, "unknown": 1}
    assert counted["cost"] == {"price_per_hour": 2.5, "total": 5.0}
    told = ["1.5 kWh (GPU 1.25 kWh, CPU, estimated 250 Wh)", "not known of 1 of 3 runs", "570 g CO2eq (Germany)"]
    assert energy_words(counted) == [*told, "cost 5.00 at 2.5 per hour"]


def test_the_card_says_energy_and_has_emissions_for_the_hub(tmp_path):
    run = report(energy={**account(RECORD, 295.0, None, None), "emissions": EMISSIONS})
    card = ModelCard(card_text(run, name="mini"))
    found = card.data.to_dict()["co2_eq_emissions"]
    assert found["emissions"] == 570.0 and found["geographical_location"] == "Germany"
    assert found["source"] == "codecarbon 3, of partly estimated energy" and found["training_type"] == "pre-training"
    assert "| train | 250.0 | 84.7 | 1.4 kWh |" in card.text and "| setup | 9.0 | 3.1 | 0 Wh |" in card.text
    assert "Energy: 1.5 kWh (GPU 1.25 kWh, CPU, estimated 250 Wh); 570 g CO2eq (Germany)." in card.text
    assert "The part of the GPU is by NVML's energy counter." in card.text and "an estimate: 4 W" in card.text
    assert "co2_eq_emissions" not in card_text(report(energy=account(RECORD, 295.0, None, None)), name="mini")
    _draw_report(run, [], tmp_path / "run_report.png")
    assert (tmp_path / "run_report.png").stat().st_size > 10_000


def test_the_card_of_a_fine_tuned_model_says_what_that_used():
    used = {**account(RECORD, 7200.0, None, 2.5), "emissions": EMISSIONS}
    known = {"energy": used, "hardware": {"cpu": "Xeon", "cores": 4, "gpus": []}, "versions": {"torch": "2.9"}}
    card = ModelCard(card_text({"model_type": "bert", "world_size": 2, **known}, name="mini", classifier=True))
    found = card.data.to_dict()["co2_eq_emissions"]
    assert (found["emissions"], found["training_type"]) == (570.0, "fine-tuning")
    assert found["hardware_used"] == "4 cores of Xeon"
    for line in ("## Energy and hardware", "| CPU | Xeon, 4 cores |", "| processes | 2 |", "| torch | 2.9 |"):
        assert line in card.text
    assert "Energy: 1.5 kWh (GPU 1.25 kWh, CPU, estimated 250 Wh); 570 g CO2eq (Germany); cost 5.00" in card.text
    assert "## Where the budget went" not in card.text and "## Results" not in card.text
    none = ModelCard(card_text({"model_type": "bert"}, name="mini", classifier=True))
    assert "Energy" not in none.text and "co2_eq_emissions" not in none.data.to_dict()


def test_the_summary_says_energy(tmp_path, capsys):
    run = report(energy=account(RECORD, 7200.0, None, 2.5), overrun_seconds=0.0)
    print_summary(run, tmp_path)
    assert "energy 1.5 kWh (GPU 1.25 kWh, CPU, estimated 250 Wh); cost 5.00 at 2.5 per hour" in capsys.readouterr().out


# ---- emissions ----


def test_without_codecarbon_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    check_country(None)
    with pytest.raises(
        InputError, match=r"^country_iso_code: codecarbon is not installed; .*budget-trainer\[energy\]"
    ):
        check_country("DEU")


@pytest.mark.parametrize(
    ("code", "fix"),
    [("DE", "did you mean"), ("Germany", "DEU (Germany)?"), ("deu", "DEU (Germany)"), ("!", "such as DEU")],
)
def test_a_country_that_codecarbon_does_not_know(code, fix):
    pytest.importorskip("codecarbon")
    check_country("DEU")
    with pytest.raises(InputError) as refused:
        check_country(code)
    assert str(refused.value).startswith(f"country_iso_code: codecarbon knows no country '{code}'")
    assert fix in str(refused.value)


def test_emissions_are_codecarbons():
    pytest.importorskip("codecarbon")
    found = account(RECORD, 295.0, "DEU", None)["emissions"]
    assert (found["country"], found["country_iso_code"]) == ("Germany", "DEU") and "codecarbon" in found["source"]
    assert 0.1 < found["kg_co2eq"] / RECORD["kwh"] < 1.0, "kg per kWh of a grid of coal, gas, wind and sun"
    none = account({**RECORD, "kwh": 0.0}, 295.0, "DEU", None)["emissions"]
    assert none["kg_co2eq"] == 0.0
    json.dumps(found)
