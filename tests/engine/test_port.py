"""Two runs on one machine: each is for itself, whatever port another holds."""

import os
import platform
import re
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from soho_fast.common.errors import UserError
from soho_fast.engine import distributed
from soho_fast.engine.distributed import start_processes

ROOT = Path(__file__).resolve().parents[2]
RANK = """
from soho_fast.engine.distributed import leave_processes, start_processes
import deepspeed
assert "__compatible_ops__" not in vars(deepspeed.ops), "an import leaves DeepSpeed as it is, for others that use it"
processes = start_processes(1)
print("TOTAL", processes.world, processes.total([processes.rank + 1.0]))
leave_processes()
"""


@pytest.fixture
def taken():
    """DeepSpeed's own port, held by somebody."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("", 29500))
            holder.listen()
        except OSError:
            pass  # Somebody else holds it.
        yield 29500


def as_launched(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables of DeepSpeed's launcher on one machine."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def said_by_ranks(code: str, world: int, port: int) -> list[str]:
    """What the ranks print that run this."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | as_launched(rank, world, port), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, said
    return [out for out, _ in said]


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_starts_while_another_holds_the_launchers_port(taken, world):
    for out in said_by_ranks(RANK, world, taken):
        assert f"TOTAL {world} [{float(sum(range(world + 1)))}]" in out


@pytest.mark.parametrize("local", ["2", "1"])
def test_so_is_one_by_which_machines_meet(monkeypatch, local):
    with socket.create_server(("", 0)) as holder:
        port = holder.getsockname()[1]
        for name, value in {**as_launched(0, 2, port), "LOCAL_SIZE": local}.items():
            monkeypatch.setenv(name, value)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            monkeypatch.setenv(name, "lo")
        with pytest.raises(UserError, match=f"port {port}, .* is taken, .* --master_port {port + 1}"):
            distributed._meet()


def test_processes_of_one_machine_are_reached_from_no_other(port):
    """Nothing that they listen at, store or gloo, has another address than this machine's own."""
    code = RANK.replace(
        "\nleave_processes()\n",
        """
import os, psutil
listening = [each.laddr.ip for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
print("LISTENS", sorted(set(listening)), flush=True)
print("NCCL at", os.environ["NCCL_SOCKET_IFNAME"], flush=True)
processes.wait()
leave_processes()
""",
    )
    said = said_by_ranks(code, 2, port)
    assert "LISTENS ['127.0.0.1']" in said[0], said
    assert all("NCCL at lo\n" in text for text in said), "not run on GPUs: where it is told to listen"
    assert all(
        line in ("LISTENS []", "LISTENS ['127.0.0.1']") for text in said for line in re.findall("LISTENS.*", text)
    )


def test_a_second_process_of_a_rank_is_told_that_its_place_is_taken(monkeypatch, port):
    store = dist.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)
    for name, value in as_launched(1, 2, port).items():
        monkeypatch.setenv(name, value)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")
    rank_0 = dist.PrefixStore("start 0", store)
    assert rank_0.add("rank 0", 1) == 1
    assert distributed._meet()[1:] == (1, 2)
    with pytest.raises(UserError, match="rank 1's place is taken: another process has come as this rank; give each"):
        distributed._meet()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"RANK": "5"}, "RANK: expected a number below WORLD_SIZE, 2, got 5"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: expected 1 to 65535, got 99999"),
        ({"LOCAL_SIZE": "1", "MASTER_ADDR": ""}, "MASTER_ADDR: expected the first machine's address, got none"),
        ({"WORLD_SIZE": "1", "LOCAL_SIZE": "0"}, "LOCAL_SIZE: expected 1 to 65535, got 0"),
        ({"WORLD_SIZE": "9" * 30, "LOCAL_SIZE": "9" * 30}, f"WORLD_SIZE: expected 1 to 65535, got {'9' * 30}"),
        ({"MASTER_PORT": None}, "MASTER_PORT: expected it from what starts 2 processes, got none"),
        ({"RANK": None, "LOCAL_SIZE": "1"}, "RANK: expected it from what starts 2 processes, got none"),
        *(({name: "abc"}, f"{name}: expected a number from the launcher in this variable of the environment, got 'abc'")
          for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE")),
    ],
)  # fmt: skip
def test_a_launcher_whose_words_do_not_fit_is_told_at_once(changed, told, monkeypatch):
    monkeypatch.setattr(distributed, "_PATIENCE", timedelta(seconds=1))
    for name, value in {**as_launched(0, 2, 29501), **changed, "OMP_NUM_THREADS": None}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told):
        start_processes()


def test_a_kind_of_device_that_is_not_here_is_told(monkeypatch):
    absent = SimpleNamespace(device_name=lambda: "cuda", is_available=lambda: False)
    monkeypatch.setattr(distributed, "get_accelerator", lambda: absent)
    with pytest.raises(UserError, match="DS_ACCELERATOR: cuda is not available here; expected one that is, or cpu"):
        start_processes(1)


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        (["-OO", "-m", "soho_fast.train"], {}, "error: python -OO: expected python or python -O"),
        (["-m", "soho_fast.train"], {"DS_ACCELERATOR": "nonsense"}, "error: DS_ACCELERATOR must be one of ['cuda', "),
    ],
)
def test_what_training_cannot_run_under_is_one_line(options, environment, told, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, *options, "--output", str(tmp_path / "run"), "--data_roots.corpus", str(tmp_path / "corpus")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(told), line


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is left as it is")
@pytest.mark.parametrize("given", [{}, {"MALLOC_MMAP_THRESHOLD_": "131072"}])
def test_memory_of_a_step_is_kept_for_the_next_unless_the_environment_says_how(given):
    code = """
import resource, torch
from soho_fast.engine.distributed import start_processes
start_processes(1)
def fault():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.empty(1 << 24).fill_(1) for _ in range(3)]  # 64 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min([fault() for _ in range(16)][1:]))  # the heap settles after some
"""
    left_out = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MALLOC_", "GLIBC_TUNABLES")
    alone = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=alone | {"DS_ACCELERATOR": "cpu"} | given, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    fewest = int(done.stdout.splitlines()[-1])
    assert (fewest < 1000) == (not given), fewest  # new pages are 49,152 of 4 KB
