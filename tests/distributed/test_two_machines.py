"""Two machines: two network namespaces joined by a cable (veth), one process in each, started as a person would start them."""

import os
import shutil
import subprocess
import time

import pytest

from tests.conftest import TINY, launcher, losses, report, spawn, wait_for, words, write_cpu_form

pytestmark = pytest.mark.slow
ADDRESSES = ("10.77.13.1", "10.77.13.2")


def ip(*command):
    return subprocess.run(["ip", *command], capture_output=True, text=True)


@pytest.fixture
def machines():
    """The names of two namespaces whose veth ends have ADDRESSES."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    names = [f"bt{os.getpid()}{end}" for end in "ab"]
    made = ip("netns", "add", names[0])
    if made.returncode != 0:
        pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
    ip("netns", "add", names[1])
    cable = ip("link", "add", "va", "netns", names[0], "type", "veth", "peer", "name", "vb", "netns", names[1])
    try:
        if cable.returncode != 0:
            pytest.skip(f"no veth pair here: {cable.stderr.strip()}")
        for name, end, address in zip(names, ("va", "vb"), ADDRESSES, strict=True):
            for command in (["addr", "add", f"{address}/24", "dev", end], ["link", "set", end, "up"]):
                assert ip("-n", name, *command).returncode == 0
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def start(machines, config, options):
    """The same command on both machines, with its own rank and device; one launcher each."""
    launchers = []
    for rank, (name, end) in enumerate(zip(machines, ("va", "vb"), strict=True)):
        *command, script = ["ip", "netns", "exec", name, *launcher(config)]
        command += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", rank]
        command += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29511", script, *words(options)]
        launchers.append(spawn(command, env={"GLOO_SOCKET_IFNAME": end}, stdout=subprocess.DEVNULL))
    return launchers


def test_a_budget_over_two_machines_survives_a_cut_cable(machines, data_dir, tmp_path):
    config = write_cpu_form("multi_node_ddp", tmp_path)
    out = tmp_path / "out"
    options = {**TINY, "data_dir": data_dir, "output_dir": out, "total_training_time": "60s", "disable_tqdm": True}
    options |= {"per_device_train_batch_size": 4, "checkpoint_every": "2s", "ddp_timeout": 8}
    first = start(machines, config, options)
    wait_for(lambda: any(out.glob("checkpoint-*")) or any(launcher.poll() is not None for launcher in first))
    assert ip("-n", machines[0], "link", "set", "va", "down").returncode == 0
    begin = time.monotonic()
    errors = [launcher.communicate(timeout=90)[1] for launcher in first]
    assert time.monotonic() - begin < 60
    assert all(launcher.returncode == 1 for launcher in first), errors
    assert "error: rank 1 of 2 did not answer" in errors[0], errors[0]
    assert "error: rank 0 of 2 did not answer" in errors[1], errors[1]
    steps = [int(folder.name.removeprefix("checkpoint-")) for folder in out.glob("checkpoint-*")]
    assert steps and not (out / "final").exists()

    assert ip("-n", machines[0], "link", "set", "va", "up").returncode == 0
    second = start(machines, config, {**options, "resume_from_checkpoint": "auto"})
    errors = [launcher.communicate(timeout=150)[1] for launcher in second]
    assert [launcher.returncode for launcher in second] == [0, 0], errors
    account = report(out)
    assert account["jobs"] == 2 and account["world_size"] == 2 and account["stop_reason"] == "budget"
    assert 0.95 * 60 <= account["used_seconds"] <= 60
    resumed = [line["step"] for line in losses(out, job=2)]
    assert resumed[0] == max(steps) + 1 and account["steps"] == resumed[-1]
