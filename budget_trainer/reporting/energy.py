"""What a run costs: energy by source and by phase of its clock, and the emissions and the money that follow from it.

A GPU is read through NVML's energy counter (since Volta), the CPU through RAPL's counters where this user may read them, which
belong to root on most systems. Without them the CPU's part is an estimate, and is called that. Emissions are codecarbon's (the
extra `energy`): its offline figure for the electricity of a country, times the energy. Its tracker is not started: it would
measure the same a second time, in a thread of its own.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib.metadata
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from budget_trainer.budget.clock import PHASES, BudgetClock
from budget_trainer.core.errors import InputError
from budget_trainer.core.jobs import runs_beside

WATTS_PER_CORE = 4.0  # codecarbon's DEFAULT_POWER_PER_CORE (core/cpu.py), for a CPU that it does not know
SOURCES = {
    "gpu": "NVML's energy counter",
    "cpu": "RAPL's counters of the packages and their memory; of the whole machine, whoever uses it",
    "cpu_estimate": f"an estimate: {WATTS_PER_CORE:g} W for each core while this run keeps it busy, memory left out",
}
_NAMES = {"gpu": "GPU", "cpu": "CPU", "cpu_estimate": "CPU, estimated"}
_POWERCAP = Path("/sys/class/powercap")
_JOULES = 3.6e6  # in a kWh
_EVERY_SECONDS = 1.0  # RAPL's counters begin anew after half an hour, less where the machine draws much


class _Rapl:
    """Joules of all CPU packages and their memory since it was made. OSError or ValueError where one cannot be read."""

    def __init__(self, powercap: Path) -> None:
        self._joules, self._wraps = 0.0, dict[Path, int]()  # microjoules at which a counter begins anew
        domains = {path: (path / "name").read_text().strip() for path in sorted(powercap.glob("intel-rapl:*"))}
        if not any(name.startswith("package") for name in domains.values()):
            raise FileNotFoundError(f"{powercap}: no RAPL")
        for path, name in domains.items():
            if name.startswith("package") or name == "dram":  # core and uncore are in the package, psys holds them all
                self._wraps[path / "energy_uj"] = int((path / "max_energy_range_uj").read_text())
        self._last = self._values()

    def _values(self) -> dict[Path, int]:
        return {path: int(path.read_text()) for path in self._wraps}

    def __call__(self) -> float:
        now = self._values()
        for path, wrap in self._wraps.items():
            change = now[path] - self._last[path]
            self._joules += (change if change >= 0 else change + wrap) / 1e6
        self._last = now
        return self._joules


class _Nvml:
    """Joules of one GPU since its driver was loaded. OSError where it has no such counter, or there is no driver of NVIDIA's.

    The driver's own library, three calls: a package in between would be needed by every run on a GPU.
    """

    def __init__(self, uuid: str) -> None:
        self._library, self._device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        self._check(self._library.nvmlInit_v2())
        name = f"GPU-{uuid.removeprefix('GPU-')}".encode()
        self._check(self._library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._device)))
        self()

    def __call__(self) -> float:
        millijoules = ctypes.c_ulonglong()
        self._check(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(millijoules)))
        return millijoules.value / 1e3

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise OSError(f"NVML: error {code}")


class _BusyCores:
    """Joules of the cores that this process and others, and their children that have ended, have kept busy: an estimate."""

    def __init__(self) -> None:
        self._others: dict[psutil.Process, float] = {}  # seconds

    def add(self, pid: int) -> None:
        with suppress(psutil.Error):
            self._others[psutil.Process(pid)] = 0.0  # what it has used so far is of this run too

    def __call__(self) -> float:
        for process in self._others:
            with suppress(psutil.Error):  # it has ended: the last look counts
                self._others[process] = sum(process.cpu_times()[:4])
        return WATTS_PER_CORE * (sum(os.times()[:4]) + sum(self._others.values()))


class EnergyMeter:
    """Energy of a run on this machine since it was made, by source (SOURCES) and by phase of `clock`.

    The first process of a machine (LOCAL_RANK) counts for all of the run there, the others count nothing. Who reads it once a
    second (`keep_reading`) pays for a few small files and a call of the driver for each GPU. What was counted between two
    readings goes to the phases by their seconds in between. RAPL is of the whole machine, NVML of the whole GPU: where N runs
    of a sweep or a suite share it at that time (`core/jobs.py`) each takes an N-th. Safe to use from several threads.
    """

    def __init__(self, clock: BudgetClock, powercap: Path = _POWERCAP) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._counters: list[tuple[str, Callable[[], float]]] = []
        self._last: list[float] = []
        self._sources, self._phases = dict[str, float](), dict.fromkeys(PHASES, 0.0)  # kWh
        self._seconds, self._seen = 0.0, clock.seconds_by_phase()
        self._not_measured: set[str] = set()
        self._cores: _BusyCores | None = None
        self._beside, self._is_kept = (1, 1), False
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return
        try:
            rapl = _Rapl(powercap)
        except (OSError, ValueError):
            self._cores = _BusyCores()
            self._count("cpu_estimate", self._cores)
        else:
            self._count("cpu", rapl)

    def _count(self, source: str, counter: Callable[[], float]) -> None:
        self._last.append(counter())
        self._counters.append((source, counter))
        self._sources.setdefault(source, 0.0)

    def add_gpu(self, uuid: str, name: str) -> None:
        """Count the GPU of this UUID from now on; where that cannot be, its `name` is noted."""
        with self._lock:
            try:
                self._count("gpu", _Nvml(uuid))
            except (OSError, AttributeError):  # no driver, an old GPU, a slice of one (MIG)
                self._not_measured.add(name)

    def add_unmeasured(self, name: str) -> None:
        """Note a device that has no counter."""
        self._not_measured.add(name)

    def add_process(self, pid: int) -> None:
        """Count another process of the run on this machine, where the CPU's part is an estimate."""
        with self._lock:
            if self._cores is not None:
                self._cores.add(pid)

    def keep_reading(self) -> None:
        """Read once a second from now on, in a thread that ends with this meter: no counter begins anew unnoticed."""
        if self._counters and not self._is_kept:
            self._is_kept = True
            threading.Thread(target=_keep_reading, args=(weakref.ref(self),), name="energy", daemon=True).start()

    def read(self) -> None:
        """Give what was counted since the last reading to the phases of that time. After the clock has stopped: to none."""
        with self._lock:
            now = self._clock.seconds_by_phase()
            spent = {phase: now[phase] - self._seen[phase] for phase in PHASES}
            seconds = sum(spent.values())
            if seconds <= 0:  # what was counted waits for time that it belongs to
                return
            self._seen = now
            self._seconds += seconds
            with suppress(OSError, ValueError):  # else as at the last reading
                self._beside = runs_beside()
            runs = {"cpu": self._beside[0], "gpu": self._beside[1]}
            for place, (source, counter) in enumerate(self._counters):
                with suppress(OSError, ValueError):  # the next reading has it
                    value = counter()
                    kwh = (value - self._last[place]) / _JOULES / runs.get(source, 1)
                    self._last[place] = value
                    self._sources[source] += kwh
                    for phase in PHASES:
                        self._phases[phase] += kwh * spent[phase] / seconds

    def record(self) -> dict[str, Any]:
        """Read, and tell: `kwh`, by `sources` and `phases`, whether a part is `estimated`, of how many `seconds` of the clock
        it is, and which devices are `not_measured`. JSON can hold it."""
        self.read()
        with self._lock:
            return _record(self._sources, self._phases, self._seconds, self._not_measured)

    def take(self) -> dict[str, Any]:
        """`record`, and begin anew at zero: for another meter's `add`."""
        taken = self.record()
        with self._lock:
            self._sources = dict.fromkeys(self._sources, 0.0)
            self._phases, self._seconds = dict.fromkeys(PHASES, 0.0), 0.0
        return taken

    def add(self, record: Mapping[str, Any]) -> None:
        """Add what another process of the same run has counted, in the same seconds."""
        with self._lock:
            for mine, theirs in ((self._sources, record["sources"]), (self._phases, record["phases"])):
                for name, kwh in theirs.items():
                    mine[name] = mine.get(name, 0.0) + kwh
            self._not_measured |= set(record["not_measured"])

    def restore(self, record: Mapping[str, Any]) -> None:
        """Add what earlier jobs of the run have used, and `keep_reading`; call it when the clock has their seconds."""
        if record:
            self.add(record)
        with self._lock:
            self._seconds += record.get("seconds", 0.0)
            self._seen = self._clock.seconds_by_phase()
        self.keep_reading()


def _keep_reading(known: weakref.ref[EnergyMeter]) -> None:
    while True:
        time.sleep(_EVERY_SECONDS)
        if (meter := known()) is None:
            return
        meter.read()
        del meter


def _record(
    sources: Mapping[str, float], phases: Mapping[str, float], seconds: float, not_measured: Iterable[str]
) -> dict[str, Any]:
    return {
        "kwh": math.fsum(sources.values()),
        "estimated": "cpu_estimate" in sources,
        "sources": dict(sources),
        "phases": dict(phases),
        "seconds": seconds,
        "not_measured": sorted(not_measured),
    }


def kept_energy(clock_file: Path) -> dict[str, Any]:
    """The record in a `clock.json`, or in a report beside it; empty where there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(clock_file.read_text(encoding="utf-8"))["energy"]
        numbers = [found["kwh"], found["seconds"], *found["sources"].values(), *found["phases"].values()]
        known = found["sources"].keys() <= SOURCES.keys() and found["phases"].keys() <= set(PHASES)
        if known and all(map(math.isfinite, numbers)) and isinstance(found["not_measured"], list):
            return dict(found)
    return {}


def add_up(records: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The record of several runs together, and how many of them there are: `runs`, of these `unknown` without a record."""
    sources, phases = dict[str, float](), dict.fromkeys(PHASES, 0.0)
    seconds, runs, unknown, not_measured = 0.0, 0, 0, set[str]()
    for record in records:
        runs += 1
        if not record:
            unknown += 1
            continue
        for whole, part in ((sources, record["sources"]), (phases, record["phases"])):
            for name, kwh in part.items():
                whole[name] = whole.get(name, 0.0) + kwh
        seconds += record["seconds"]
        not_measured |= set(record["not_measured"])
    return {**_record(sources, phases, seconds, not_measured), "runs": runs, "unknown": unknown}


def account(
    record: Mapping[str, Any], seconds: float, country_iso_code: str | None, price_per_hour: float | None
) -> dict[str, Any]:
    """`record` with `how` each source is measured, and where they are asked for `emissions` and the `cost` of `seconds`."""
    found = {**record, "how": {source: SOURCES[source] for source in record["sources"]}}
    if country_iso_code is not None:
        found["emissions"] = _emissions(record["kwh"], country_iso_code)
    if price_per_hour is not None:
        found["cost"] = {"price_per_hour": price_per_hour, "total": price_per_hour * seconds / 3600}
    return found


def energy_text(kwh: float) -> str:
    """`12.3 Wh` or `1.25 kWh`."""
    return f"{_digits(kwh)} kWh" if kwh >= 1 else f"{_digits(1000 * kwh)} Wh"


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def energy_words(energy: Mapping[str, Any]) -> list[str]:
    """An `account` for people, in parts: the energy and its sources, what is missing, emissions, cost."""
    sources = energy.get("sources") or {}
    parts = ", ".join(f"{_NAMES[source]} {energy_text(kwh)}" for source, kwh in sources.items() if source in _NAMES)
    words = [f"{energy_text(energy['kwh'])} ({parts or 'nothing measured'})"]
    if energy.get("not_measured"):
        words.append(f"not measured: {', '.join(energy['not_measured'])}")
    if energy.get("unknown"):
        words.append(f"not known of {energy['unknown']} of {energy['runs']} runs")
    if emissions := energy.get("emissions"):
        words.append(f"{_digits(1000 * emissions['kg_co2eq'])} g CO2eq ({emissions['country']})")
    if cost := energy.get("cost"):
        words.append(f"cost {cost['total']:.2f} at {cost['price_per_hour']:g} per hour")
    return words


# ---- emissions ----


def check_country(country_iso_code: str | None) -> None:
    """Refuse (InputError) a country that codecarbon has no figure for, and any where codecarbon is not installed."""
    if country_iso_code is None:
        return
    known = _countries()
    if country_iso_code not in known:
        names = {name.lower(): code for code, name in known.items()}
        asked = country_iso_code.lower()
        close = [names[asked]] if asked in names else difflib.get_close_matches(asked.upper(), known, n=3, cutoff=0.5)
        fix = (
            f"did you mean {', '.join(f'{code} ({known[code]})' for code in close)}?"
            if close
            else "give one such as DEU"
        )
        raise InputError(f"country_iso_code: codecarbon knows no country {country_iso_code!r} (three letters); {fix}")


def _countries() -> dict[str, str]:
    """The names of the countries that codecarbon has figures for, by their codes of three letters."""
    if find_spec("codecarbon") is None:
        fix = "pip install 'budget-trainer[energy]', or leave it out"
        raise InputError(f"country_iso_code: codecarbon is not installed; {fix}")
    from codecarbon.input import DataSource

    figures = DataSource().get_global_energy_mix_data()
    return {code: str(figure.get("country_name", code)) for code, figure in figures.items()}


def _emissions(kwh: float, country_iso_code: str) -> dict[str, Any]:
    """What `kwh` emit as CO2 equivalents, in kg, by codecarbon's offline figure for the country."""
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    country = _countries()[country_iso_code]
    place = GeoMetadata(country_iso_code=country_iso_code, country_name=country)
    kg = float(Emissions(DataSource()).get_country_emissions(Energy.from_energy(kWh=kwh), place))
    source = f"codecarbon {importlib.metadata.version('codecarbon')}"
    return {"kg_co2eq": kg, "country_iso_code": country_iso_code, "country": country, "source": source}
