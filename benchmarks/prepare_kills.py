#!/usr/bin/env python3
"""Kill the preparation of data again and again, always go on with the same command, and compare: nothing may differ.

    python benchmarks/prepare_kills.py [--recipe recipes/data/wikibooks.yaml] --kills 20 --output_dir out/prepare_kills \
        [-- --piece_megabytes 4]

Each job is a real `python -m data_prep.prepare` in a process group of its own, which gets kill -9 whole, at a random moment:
when up to eight more files have appeared than the job found, and up to a tenth of a second. A run that comes to its end before
the kills are used up is compared and begun anew. Without --recipe the corpus is the English in the docstrings of the
installed numpy, twice, so that the second time is all duplicates.

Compared with a run that nobody disturbed, byte for byte: every file of the data folder, and the manifest but for its date and
command; beside the data nothing may be left. Prints one table, writes prepare_kills.json, exits with 1 where something differs.
"""

import argparse
import glob
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402

OF_THE_RUN = ("created", "command", "recipe")  # keys of the manifest that say when and how, not what


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("--recipe", help="of data_prep.prepare; its output_dir and keep_work do not count (docstrings of numpy)")
    add("--kills", type=int, default=20, help="how often (20)")
    add("--seed", type=int, default=0, help="of the moments (0)")
    add("--output_dir", default="out/prepare_kills", help="a new folder (out/prepare_kills)")
    add("flags", nargs="*", help="more flags of data_prep.prepare, behind --")
    a = parser.parse_args(argv)
    if a.kills < 1:
        raise InputError(f"kills: {a.kills} is below 1; give 1 or more")
    if Path(a.output_dir).exists() and any(Path(a.output_dir).iterdir()):
        raise InputError(f"output_dir: {a.output_dir} is not empty; give a new folder")
    return a


def own_recipe() -> dict[str, Any]:
    """A corpus that every installation has, in pieces so small that there are many."""
    spec = importlib.util.find_spec("numpy")
    assert spec is not None and spec.origin is not None
    corpus = {"input": str(Path(spec.origin).parent), "kind": "docstrings"}
    return {
        "sources": [corpus, corpus],
        "tokenizer": {"vocab_size": 1000},
        "piece_megabytes": 0.1,
        "num_proc": 2,
        "num_shards": 4,
        "min_characters": 100,
    }


def write_recipe(a: argparse.Namespace, name: str) -> list[str]:
    """The command that makes the folder `name`."""
    try:
        content = yaml.safe_load(Path(a.recipe).read_text()) if a.recipe else own_recipe()
        content |= {"output_dir": str(a.output_dir / name), "keep_work": False}
    except (UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise InputError(f"recipe: {a.recipe} cannot be read ({' '.join(str(error).split())})") from None
    path = a.output_dir / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return [sys.executable, "-m", "data_prep.prepare", str(path), *a.flags]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """In a process group of its own, where inputs are found as the recipe names them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait() != 0:
        last = log.read_text(errors="replace").strip().split("\n")[-1]
        raise InputError(f"recipe: data_prep.prepare ended with {process.returncode} ({last}); see {log}")


def files_of(folder: Path) -> list[Path]:
    """Files of the work for `folder` so far, also of what is written aside."""
    return [
        Path(place, name)
        for top in folder.parent.glob(f"{glob.escape(folder.name)}.*")
        for place, _, names in os.walk(top)  # says nothing of what vanishes meanwhile
        for name in names
    ]


def moment(folder: Path) -> str:
    """The stage that is under way."""
    work = folder.with_name(f"{folder.name}.work")
    if (work / "blocks").exists():
        return "tokens and blocks"
    return next((stage for stage in ("tokenizer", "documents") if (work / stage).exists()), "start")


def kill(process: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> dict[str, Any] | None:
    """Kill -9 of the group at a random moment: what was there then; None where the run ended before."""
    wanted = len(files_of(folder)) + chance.randint(1, 8)
    while process.poll() is None and len(files_of(folder)) < wanted:
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.1))
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {"stage": moment(folder), "files": len(files_of(folder))}


def made(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Name and bytes of every file but the manifest, and the manifest without the time and the command."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    return files, {key: value for key, value in manifest.items() if key not in OF_THE_RUN}


def differences(folder: Path, reference: Path) -> list[str]:
    """Files that are not those of the reference, keys of the manifest likewise, and what lies about beside the folder."""
    found = []
    for mine, theirs in zip(made(folder), made(reference), strict=True):
        names = sorted(mine.keys() | theirs.keys())
        found += [name for name in names if name not in mine or name not in theirs or mine[name] != theirs[name]]
    return found + sorted(path.name for path in folder.parent.glob(f"{glob.escape(folder.name)}.*") if path.is_dir())


def disturbed(a: argparse.Namespace, folder: Path, reference: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Jobs until all kills are used up and a last one undisturbed: a row per kill, and what differed at any end."""
    command, chance = write_recipe(a, folder.name), random.Random(a.seed)
    log = a.output_dir / "disturbed.log"
    rows: list[dict[str, Any]] = []
    found: list[str] = []
    ends = 0
    while len(rows) < a.kills:
        process = start(command, log)
        try:
            row = kill(process, folder, chance)
        finally:
            if process.poll() is None:  # we are interrupted
                os.killpg(process.pid, signal.SIGKILL)
        if row is not None:
            rows.append({"kill": len(rows) + 1, **row})
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
            continue
        finish(process, log)
        ends += 1
        if ends > a.kills:
            raise InputError("recipe: it is done before it can be killed; give more text or smaller pieces")
        found += differences(folder, reference)
        shutil.rmtree(folder)
    finish(start(command, log), log)
    return rows, found + differences(folder, reference)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    reference, folder = a.output_dir / "undisturbed", a.output_dir / "disturbed"
    begin, log = time.monotonic(), a.output_dir / "undisturbed.log"
    finish(start(write_recipe(a, reference.name), log), log)
    seconds = time.monotonic() - begin
    rows, found = disturbed(a, folder, reference)
    stages = Counter(row["stage"] for row in rows)
    moments = ", ".join(f"{count} in {stage}" for stage, count in stages.items())
    files = len(made(reference)[0])
    lines = [f"{'kills':30} {len(rows)} ({moments})", f"{'seconds of an undisturbed run':30} {seconds:.1f}"]
    same = f"DIFFERENT: {', '.join(sorted(set(found)))}" if found else f"byte for byte the same ({files} files)"
    lines += [f"{'data folder and manifest':30} {same}"]
    publish(a, "prepare_kills", "\n".join(lines), {"kills": rows, "seconds": seconds, "different": found})
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
