"""`contrapose verify` passes where the losses are right, and fails where one is wrong."""

import json
import os
import socket
import subprocess
import sys

import pytest
from support.command import contrapose

from contrapose import losses
from contrapose.partials import public_functions
from contrapose.verification import verify
from contrapose.verification.checks import layouts
from contrapose.verification.run import LEFT_OUT, cases

WRONG = """
import os
from contrapose import losses
from contrapose.cli import main
from contrapose.similarity import gather_rows

RANK = int(os.environ["RANK"])
right, inner, decoupled = losses.nt_xent, losses.supcon_in, losses.dcl

def nt_xent(z, group, *, temperature):  # a gradient smaller by the number of processes
    share = len(z) / len(gather_rows(z))
    return share * right(z, group, temperature=temperature)

def supcon_in(z, group, *, temperature):  # of one process no gradient
    z = z if RANK == 0 else z.detach() + 0 * z
    return inner(z, group, temperature=temperature)

def dcl(z, group, *, temperature):  # groups numbered anew on every process
    return decoupled(z, group + RANK, temperature=temperature)

for function in (nt_xent, supcon_in, dcl):
    function.__module__ = "contrapose.losses"
    setattr(losses, function.__name__, function)
main()
"""

RAISES = """
from contrapose import losses
from contrapose.cli import main
right = losses.dcl

def dcl(z, group, *, temperature):
    if len(z) == 12 and not group[0] == FIRST:
        raise ArithmeticError("of this process alone")
    return right(z, group, temperature=temperature)

from contrapose.verification.checks import SMALL
FIRST = SMALL.group()[0]
dcl.__module__ = "contrapose.losses"
losses.dcl = dcl
if __name__ == "__main__":
    main()
"""


LOST = """
import os, signal
from contrapose import losses
from contrapose.cli import main
from contrapose.processes import watch

right, child = losses.dcl, __name__ == "__mp_main__"
if child and "WHEN" == "start":
    os.kill(os.getpid(), signal.SIGNAL)

def dcl(z, group, *, temperature):
    if child and len(z) == 12:
        os.kill(os.getpid(), signal.SIGNAL)
    return right(z, group, temperature=temperature)

dcl.__module__ = "contrapose.losses"
losses.dcl = dcl
watch.SILENCE = 3.0
if __name__ == "__main__":
    main()
"""


def test_the_losses_pass_and_the_numbers_are_written(tmp_path):
    done = contrapose(
        "verify", "--quick", "--only", "hard,simple_info_nce,supcon_memory", "--ranks", 2,
        "--json", "proof.json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "checks passed" in done.stdout and "FAILED" not in done.stdout
    record = json.loads((tmp_path / "proof.json").read_text())
    assert record["passed"] and record["environment"]["ranks"] == 2
    shapes = {tuple(c["rows"]) for c in record["checks"] if c["loss"] == "hard"}
    assert shapes == {(24,), (12, 12), (18, 6), (24, 0)}
    assert {c["keys"] for c in record["checks"]} == {"batch", "ranks", "queue", "bank", "memory"}
    assert {c["precision"] for c in record["checks"]} == {"fp64", "fp32", "bf16", "fp16"}
    assert all(0 <= c["gradient_error"] <= c["tolerance"] for c in record["checks"])


def test_a_wrong_loss_fails_on_processes_that_torchrun_started(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "COLUMNS": "80",
    }  # fmt: skip
    command = [sys.executable, "wrong.py", "verify", "--quick", "--json", "proof.json"]
    ranks = [
        subprocess.Popen(
            [*command, "--only", "nt_xent,supcon_in,dcl,supcon"],
            env=environment | {"RANK": str(rank)}, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    (first, said), _ = (process.communicate(timeout=120) for process in ranks)
    assert [process.returncode for process in ranks] == [1, 0], said
    checks = json.loads((tmp_path / "proof.json").read_text())["checks"]
    for name in ("nt_xent", "supcon_in", "dcl"):
        passed = {c["layout"] for c in checks if c["loss"] == name and c["passed"]}
        assert "1 rank" in passed and not {"2 ranks", "uneven"} & passed, name
    assert all(c["passed"] for c in checks if c["loss"].startswith("supcon ppl"))
    half = next(c for c in checks if c["loss"] == "nt_xent" and c["layout"] == "2 ranks")
    assert half["gradient_error"] == pytest.approx(0.5) and "FAILED nt_xent" in first


def test_every_loss_is_checked_or_said_to_be_left_out():
    every = public_functions(losses)
    assert LEFT_OUT.keys() < every.keys()
    for name, loss in every.items():
        found = list(cases(loss, 3, quick=False))
        assert {layout for _, layout, _ in found} == set(layouts(3)), name
        assert {p for _, _, p in found} == {"fp64", "fp32", "bf16", "fp16"}, name


def test_losses_against_keys_are_checked_with_every_store_that_feeds_them():
    def stores(name):
        found = cases(public_functions(losses)[name], 3, quick=True)
        return {problem.stored for problem, _, _ in found}

    assert stores("hard_info_nce") == {None, "queue", "bank"}
    assert stores("supcon_memory") == {None, "memory"}
    assert stores("nt_xent") == {None}


def test_every_way_to_call_a_loss_is_checked():
    names = {problem.name for problem, _, _ in cases(losses.supcon, 3, quick=True)}
    forms = ("", " ppl/batch", " ppl/anchor", " anchors", " capped")
    assert names == {f"supcon{form}" for form in forms}


def test_an_error_on_one_process_ends_all_of_them_and_is_said(tmp_path):
    (tmp_path / "wrong.py").write_text(RAISES)
    command = [sys.executable, "wrong.py", "verify", "--quick", "--only", "dcl", "--ranks", "2"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "rank 1: dcl, keys of ranks, 12+12 rows: ArithmeticError" in done.stderr
    assert "stopped: dcl" in done.stdout and "0 of 1 checks passed" in done.stdout


@pytest.mark.parametrize(
    "when, signal, status, said",
    [
        ("start", "SIGKILL", 2, "verify: rank 1 was killed by SIGKILL while it started"),
        ("work", "SIGSTOP", 1, "no process got on for 3 s: rank 1 is stopped by a signal"),
        pytest.param(
            "start", "SIGSTOP", 2, "rank 1 is stopped by a signal while it started",
            marks=pytest.mark.slow,
        ),
        pytest.param("work", "SIGKILL", 1, "rank 1 was killed by SIGKILL", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_rank_that_dies_or_stops_ends_it_with_a_sentence(tmp_path, when, signal, status, said):
    (tmp_path / "lost.py").write_text(LOST.replace("WHEN", when).replace("SIGNAL", signal))
    command = [sys.executable, "lost.py", "verify", "--quick", "--only", "dcl", "--ranks", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, text=True, capture_output=True, timeout=120,
        env=os.environ | {"COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("rows", [1, 7, 24, 1100])
def test_layouts_spread_every_row_once(rows):
    for world in (1, 2, 3, 8):
        for layout in layouts(world):
            slices = layout.slices(rows)
            assert [i for s in slices for i in range(rows)[s]] == list(range(rows))


def test_what_cannot_be_verified_is_refused_before_a_process_starts(tmp_path):
    with pytest.raises(ValueError, match=r"nt_xnet: no loss .*did you mean 'nt_xent'"):
        verify(["nt_xnet"])
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        verify(out=tmp_path / "nowhere" / "proof.json")
