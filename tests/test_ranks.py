"""Training on several ranks: their number changes nothing but the speed, and the loss of one is
said by name. Real processes throughout."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import on_ranks
from support.command import contrapose

from contrapose import api, explain
from contrapose.threads import serial
from contrapose.training.conditional import SIZES
from contrapose.training.run import Run

CASES = ("moco", "xbm", "chunked", "conditional", "mixup", "joint", "two stages", "frozen")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What three ranks did, started once."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, on_ranks.__file__, str(folder), "3", ",".join(CASES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.mark.parametrize("layout", on_ranks.LAYOUTS)
def test_batch_norm_over_ranks_is_that_of_one_process_on_the_joined_batch(found, layout):
    parts, whole = found["batch_norm"][layout], on_ranks.network()
    x = on_ranks.images().requires_grad_()
    z = whole.head(whole.backbone(x))
    (z.sin() * on_ranks.weights()).sum().backward()
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), z.detach())
    torch.testing.assert_close(torch.cat([part[2] for part in parts]), x.grad)
    for k, p in enumerate(whole.parameters()):
        torch.testing.assert_close(sum(part[1][k] for part in parts), p.grad)
    for part in parts:
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(part[3][name], buffer)


def test_training_on_two_and_three_ranks_ends_in_the_weights_of_one_process(found):
    laws = found["laws"]
    assert {(x.case, x.ranks) for x in laws} == {(c, r) for c in CASES for r in (2, 3)}
    for x in laws:
        assert x.weights < 1e-10 and x.metrics < 1e-6, x


def test_a_run_goes_on_with_other_numbers_of_ranks_in_the_middle_of_an_epoch(found):
    whole, moved, ends, off, ranks = found["other_ranks"]
    assert [row["step"] for row in moved] == [row["step"] for row in whole] == [*range(1, 13)]
    for row, other in zip(moved, whole, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-6)
    assert off < 1e-10 and ranks == [3, 2]
    one, three, two = ends
    assert one[0].startswith("InterruptedTraining: stopped at step 3 of 12, saved")
    assert len({*three}) == 1 and three[0].startswith("InterruptedTraining: stopped at step 7 of")
    assert two == ["", "", ""]


def test_what_ranks_cannot_share_is_refused_on_all_before_a_folder_is_made(found):
    said = found["refused"]
    words = {
        "images": r"UserError: the ranks see different images: .*fingerprint \w+ on rank 0 and \w+ "
        "on rank 2",
        "size": "UserError: 3 ranks for a batch of 2 images",
        "draws": "UserError: the recipe's views draw random numbers of their own",
        "folder": "FileExistsError: --out .*whole exists",
    }
    for name, pattern in words.items():
        assert len({*said[name]}) == 1 and re.match(pattern, said[name][0]), said[name]
    assert not {"images", "size", "draws"} & {*said["made"]}


def test_a_full_disk_and_a_loss_that_is_not_finite_end_all_ranks_in_the_same_step(found):
    full, nan = found["full_disk"], found["not_finite"]
    assert len({*full}) == 1 and full[0].startswith("OSError: checkpoint of step 2 could not be")
    assert len({*nan}) == 1 and nan[0].startswith("NonFiniteError: step 2 "), nan


def test_scores_diagnosis_and_embeddings_on_three_ranks_are_those_of_one_process(found):
    one = found["scored"][0][0]["one"]
    assert one[0] and one[1]["verdict"]
    for of, rows in found["scored"]:
        for alone, shared in rows.values():  # of one batch two ranks have none
            assert len(shared.h) == 400
            assert torch.equal(alone.h, shared.h) and torch.equal(alone.z, shared.z)
        assert of["three"][:2] == one[:2] and torch.equal(of["three"][2], one[2])


def test_the_finder_of_conditional_batches_is_shared_and_finds_what_one_process_does(found):
    one = found["finder"][0][1]
    assert one[0] is not None and one[0].shape[1] in SIZES
    for of in found["finder"]:
        for groups, rows in of.values():
            assert torch.equal(groups, one[0])
            assert all(torch.equal(z, whole) for z, whole in zip(rows, one[1], strict=True))
    first, other = one[1][2]
    assert not torch.allclose(first, other) and not torch.allclose(one[1][0][0], first)


def test_pairs_of_frames_in_halves_of_a_batch_train_as_on_one_process(found):
    assert {*found["frames"]} == {"n_pairs", "time_contrastive"}
    for steps, weights, worst, metrics in found["frames"].values():
        assert steps == 4 and weights < 1e-10 and metrics < 1e-6, worst


def test_ranks_that_read_other_images_end_alike(found):
    images, none = found["unlike"]["images"], found["unlike"]["none"]
    assert len({*images}) == 1 and "the ranks see different images: those of" in images[0], images
    assert len({*none}) == 1 and re.search("rank 1 on .*nowhere", none[0]), none


# ---- under torchrun ------------------------------------------------------------------------------

QUICK = [
    "digits", "--encoder", "small_conv", "--set", "backbone.width=16", "--batch-size", "100",
    "--device", "cpu", "--no-explain", "--precision", "fp32",
]  # fmt: skip
EXPLAINED = ("evaluation.json", "diagnosis.json")
ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def started(*command, cwd, **environment):
    """A process whose output is in cwd/said."""
    environment = {**os.environ, **ENVIRONMENT, **environment}
    command = [sys.executable, *map(str, command)]
    with open(cwd / "said", "w") as said:
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=said, stderr=said)


def torchrun(ranks, *arguments, cwd, restarts=0):
    return started(
        "-m", "torch.distributed.run", "--nproc-per-node", ranks, "--max-restarts", restarts,
        "-m", "contrapose", "train", *arguments, cwd=cwd,
    )  # fmt: skip


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def rank(number: int, launcher: int) -> int:
    """The process that the launcher started with this rank."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            mine = f" {launcher} " in (path / "stat").read_text().rpartition(")")[2][:14]
            told = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if mine and f"RANK={number}".encode() in told:
            return int(path.name)
    raise AssertionError(f"no rank {number}")


def test_a_killed_rank_is_named_and_torchrun_goes_on_by_itself(tmp_path):
    out = tmp_path / "run"
    process = torchrun(2, *QUICK, "--epochs", "12", "--out", out, cwd=tmp_path, restarts=1)
    until(lambda: [*out.glob("checkpoints/step-*")])
    os.kill(rank(1, process.pid), signal.SIGKILL)
    assert process.wait(timeout=120) == 0, (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert "error: rank 1 (process" in said and "was killed, or ran out of memory; the last" in said
    assert said.count("Trained:") == 1 and "Traceback" not in said
    run = Run.open(out)
    assert run.status()["state"] == "finished"
    assert len(run.read("environment.json")["resumed"]) == 1
    assert [row["step"] for row in run.metrics()] == [*range(1, 169)]


def test_a_rank_that_never_starts_ends_the_others_with_a_message(tmp_path):
    alone = started(
        "-m", "contrapose", "train", *QUICK, "--out", "run", cwd=tmp_path, RANK="0",
        WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0", CONTRAPOSE_JOIN_SECONDS="2",
    )  # fmt: skip
    assert alone.wait(timeout=90) == 2
    said = (tmp_path / "said").read_text()
    assert "error: rank 0 waited 2 s for 2 processes (WORLD_SIZE=2)" in said
    assert not (tmp_path / "run").exists()


def test_a_rank_without_the_device_says_so_itself(tmp_path):
    second = started(
        "-m", "contrapose", "train", *QUICK, "--device", "cuda:99", "--out", "run", cwd=tmp_path,
        RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
    )  # fmt: skip
    assert second.wait(timeout=90) == 2
    assert "error: rank 1: --device cuda:99: " in (tmp_path / "said").read_text()


IN_FLOAT64 = """
from dataclasses import replace
from contrapose.verification.training import recipe_of
recipe = replace(recipe_of("simclr", "fp64", 1, 8, 100), epochs=%s)
"""


def nodes(ranks, *arguments, folder, rendezvous):
    """A torchrun for each node, as many as `ranks`, on this machine; the output of node k is in
    folder/node{k}/said."""
    agents = []
    for k, count in enumerate(ranks):
        (folder / f"node{k}").mkdir(exist_ok=True)
        node = ("--nnodes", len(ranks), "--node-rank", k, "--nproc-per-node", count, *rendezvous)
        command = ("-m", "torch.distributed.run", *node, "-m", "contrapose", "train", *arguments)
        agents.append(started(*command, cwd=folder / f"node{k}"))
    return agents


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_ranks_meet_among_what_the_dead_left_though_nodes_count_restarts_apart():
    port = free_port()
    store = torch.distributed.TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    store.set("contrapose/meeting/here/1", "dead 0")
    store.set("contrapose/meeting/named", json.dumps(["gone 0", "dead 0"]))
    met = [
        subprocess.Popen(
            [sys.executable, "-c", f"from contrapose.processes import ranks\n"
             f"print(ranks._met({rank}, 2, 60)[1:])"],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                 "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
                 "TORCHELASTIC_RESTART_COUNT": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    first, second = (process.communicate(timeout=90)[0] for process in met)
    assert first == second and first.endswith(", True)\n") and "gone" not in first, (first, second)


def test_two_nodes_with_one_and_two_ranks_train_what_one_process_does(tmp_path):
    (tmp_path / "own.py").write_text(IN_FLOAT64 % 1)
    brief = ["digits", "--recipe", tmp_path / "own.py", "--device", "cpu", "--no-explain"]
    two = nodes(
        (1, 2), *brief, "--out", tmp_path / "run", folder=tmp_path,
        rendezvous=("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"),
    )  # fmt: skip
    alone = api.train(str(tmp_path / "own.py"), "digits", out=tmp_path / "alone", device="cpu")
    said = [tmp_path / f"node{k}" / "said" for k in (0, 1)]
    assert [agent.wait(timeout=120) for agent in two] == [0, 0], [x.read_text() for x in said]
    assert sum(x.read_text().count("Trained:") for x in said) == 1
    run = Run.open(tmp_path / "run")
    assert run.read("environment.json")["ranks"] == 3
    assert [row["step"] for row in run.metrics()] == [*range(1, 15)]
    weights, others = (load_file(x.path / "encoder.safetensors") for x in (alone, run))
    for name, x in weights.items():
        torch.testing.assert_close(others[name], x, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_two_nodes_go_on_by_themselves_after_a_rank_of_one_was_killed(tmp_path):
    run = tmp_path / "run"
    first, second = nodes(
        (1, 1), *QUICK, "--epochs", "24", "--out", run, folder=tmp_path,
        rendezvous=("--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint",
                    f"localhost:{free_port()}"),
    )  # fmt: skip
    until(lambda: [*run.glob("checkpoints/step-*")])
    other = second if is_led(run, first.pid) else first  # c10d numbers the nodes as they come
    os.kill(rank(1, other.pid), signal.SIGKILL)
    assert [agent.wait(timeout=200) for agent in (first, second)] == [0, 0]
    rows = [row["step"] for row in Run.open(run).metrics()]
    assert Run.open(run).status()["state"] == "finished" and rows == sorted({*rows})
    assert len(Run.open(run).read("environment.json")["resumed"]) == 1


@pytest.mark.slow
def test_a_node_that_is_lost_is_named_by_its_ranks_and_the_run_goes_on(tmp_path):
    run = tmp_path / "run"
    address = ("--master-addr", "localhost", "--master-port", free_port())
    first, second = nodes(
        (1, 2), *QUICK, "--epochs", "40", "--out", run, folder=tmp_path, rendezvous=address
    )
    until(lambda: [*run.glob("checkpoints/step-*")])
    lost = [rank(1, second.pid), rank(2, second.pid)]
    for process in (second.pid, *lost):
        os.kill(process, signal.SIGKILL)
    at = time.monotonic()
    assert first.wait(timeout=60) != 0 and time.monotonic() - at < 30
    second.wait()
    said = (tmp_path / "node0" / "said").read_text()
    assert f"error: rank 1 (process {lost[0]} on {socket.gethostname()})" in said, said
    assert "continue, on any number of ranks, with: contrapose train --resume" in said
    address = ("--master-addr", "localhost", "--master-port", free_port())
    go_on = ["--resume", run, "--device", "cpu", "--no-explain"]
    again = nodes((2, 1), *go_on, folder=tmp_path, rendezvous=address)
    assert [agent.wait(timeout=200) for agent in again] == [0, 0]
    rows = [row["step"] for row in Run.open(run).metrics()]
    assert Run.open(run).status()["state"] == "finished" and rows == sorted({*rows})


def test_a_training_on_ranks_is_evaluated_on_them_as_one_process_does(tmp_path):
    brief = ["digits", "--encoder", "small_conv", "--set", "backbone.width=16", "--epochs", "1"]
    command = ["train", *brief, "--batch-size", "100", "--device", "cpu", "--precision", "fp32"]
    run = tmp_path / "run"
    one = {"cwd": tmp_path, "OMP_NUM_THREADS": "1"}
    done = contrapose(*command, "--ranks", "2", "--out", run, **one)
    assert done.returncode == 0 and (run / "report.html").exists(), done.stderr
    assert done.stdout.count("Verdict") == 1 and done.stdout.count("Report:") == 1
    done = contrapose("embed", run, "digits", "--out", "h.npz", "--ranks", "2", **one)
    assert done.returncode == 0 and done.stdout.count("Written:") == 1, done.stderr
    shared = [json.loads((run / name).read_text()) for name in EXPLAINED]
    with serial():
        explain.evaluate(run, device="cpu")
        explain.diagnose(run, device="cpu")
        found, _ = api.embed(run, "digits", device="cpu")
    assert shared == [json.loads((run / name).read_text()) for name in EXPLAINED]
    with np.load(tmp_path / "h.npz") as file:
        assert np.array_equal(file["h"], found.h) and np.array_equal(file["z"], found.z)


def test_ctrl_c_stops_ranks_that_were_started_here_and_one_says_it(tmp_path):
    run = tmp_path / "run"
    quick = [*QUICK, "--epochs", "40", "--ranks", "2", "--out", run]
    process = started("-m", "contrapose", "train", *quick, cwd=tmp_path)
    until(lambda: [*run.glob("checkpoints/step-*")], 150)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    said = (tmp_path / "said").read_text()
    assert said.count("stopped at step") == 1 and "interrupted" not in said, said
    assert Run.open(run).status()["state"] == "interrupted"


def test_the_command_that_verifies_trainings_prints_and_keeps_each_comparison(tmp_path):
    command = ["verify", "--training", "--quick", "--only", "supcon", "--ranks", "2"]
    done = contrapose(*command, "--json", "law.json", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0 and "Written: law.json" in done.stdout, done.stdout + done.stderr
    record = json.loads((tmp_path / "law.json").read_text())
    assert record["passed"] and [law["precision"] for law in record["laws"]] == ["fp64", "fp32"]
    assert all(law["ranks"] == 2 and law["steps"] == 3 for law in record["laws"])
    refused = contrapose("verify", "--training", "--only", "supkon", cwd=tmp_path)
    assert refused.returncode == 2 and "did you mean 'supcon'" in refused.stderr.replace("\n", " ")


def test_a_whole_epoch_is_compared_beside_one_process_that_sums_in_parts(tmp_path):
    command = ["verify", "--training", "--epoch", "--subset", "300", "--only", "bank"]
    command += ["--ranks", "2", "--precision", "fp64", "--json", "law.json"]
    done = contrapose(*command, cwd=tmp_path, OMP_NUM_THREADS="1", COLUMNS="200")
    assert done.returncode == 0 and "fp64 in parts" in done.stdout, done.stdout + done.stderr
    (law,) = json.loads((tmp_path / "law.json").read_text())["laws"]
    assert [step for step, _ in law["growth"]] == [1, 2, 3]
    assert 0 < law["growth"][-1][1] <= law["weights"] < 1e-12
    assert 0 < law["rounding"] < 1e-12 and law["steps"] == 3
    for wrong, words in ((["--quick"], "3 steps or an epoch"), (["--only", "none"], "no case")):
        refused = contrapose(*command, *wrong, cwd=tmp_path)
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr


@pytest.mark.slow
def test_the_law_holds_for_a_resnet_in_float64(tmp_path):
    command = ["verify", "--training", "--quick", "--only", "resnet", "--precision", "fp64"]
    done = contrapose(*command, "--json", "law.json", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    laws = json.loads((tmp_path / "law.json").read_text())["laws"]
    assert [law["ranks"] for law in laws] == [2, 3] and max(x["weights"] for x in laws) < 1e-10


@pytest.mark.slow
def test_torchrun_and_the_ranks_flag_train_what_one_process_does(tmp_path):
    brief = [*QUICK, "--epochs", "1"]
    for name, more in (("alone", []), ("flag", ["--ranks", "3"])):
        done = started(
            "-m", "contrapose", "train", *brief, *more, "--out", name, cwd=tmp_path
        ).wait(timeout=200)
        assert done == 0, (tmp_path / "said").read_text()
    assert torchrun(2, *brief, "--out", "two", cwd=tmp_path).wait(timeout=200) == 0
    alone, *others = (
        load_file(tmp_path / f"{n}/encoder.safetensors") for n in ("alone", "flag", "two")
    )
    for other in others:
        assert max(float((other[n] - x).abs().max()) for n, x in alone.items()) < 1e-3
    found = [json.loads((tmp_path / f"{n}/environment.json").read_text()) for n in ("flag", "two")]
    assert [x["ranks"] for x in found] == [3, 2]


@pytest.mark.slow
def test_twenty_kills_at_any_moment_lose_nothing(tmp_path):
    ends, steps = killed(tmp_path, 20, torch.Generator().manual_seed(0))
    assert max(ends) < 30 and all(of_run == sorted(of_run) for of_run in steps)
    print(f"ended after {[round(x, 1) for x in sorted(ends)]} s; steps {steps}")


def killed(folder: Path, times: int, draw: torch.Generator) -> tuple[list[float], list[list[int]]]:
    """(seconds until the other ranks had ended, step of the newest checkpoint) after each kill of a
    rank; the steps in a list for each run. A run that ends before it is hit is followed by another.

    The rank is drawn, and when: within 30 s of the start of the processes, or 10 s of the training.
    """
    command = ["-m", "contrapose", "train", "--ranks", "3"]
    ends, steps = [], [[]]
    while len(ends) < times:
        out = folder / f"run{len(steps)}"
        begun = (out / "recipe.json").exists()
        go_on = ["--resume", out, "--device", "cpu", "--no-explain"]
        how = go_on if begun else [*QUICK, "--epochs", "30", "--out", out]
        process = started(*command, *how, cwd=folder)
        until(lambda p=process: p.poll() is not None or has_ranks(p.pid), 120)
        if training := bool(torch.randint(2, (), generator=draw)):
            until(lambda p=process, run=out: p.poll() is not None or is_led(run, p.pid), 120)
        time.sleep(float(torch.rand((), generator=draw)) * (10 if training else 30))
        victim = int(torch.randint(3, (), generator=draw))
        try:
            os.kill(rank(victim, process.pid), signal.SIGKILL)
        except AssertionError:  # it has ended by itself
            assert process.wait(timeout=60) == 0, (folder / "said").read_text()
            assert Run.open(out).status()["state"] == "finished"
            steps.append([])
            continue
        at = time.monotonic()
        assert process.wait(timeout=60) != 0
        ends.append(time.monotonic() - at)
        said = (folder / "said").read_text()
        assert f"rank {victim} " in said, (victim, said)
        if (out / "recipe.json").exists():
            found = Run.open(out).load_checkpoint()
            steps[-1].append(0 if found is None else found[1]["step"])
    return ends, steps


def is_led(run: Path, launcher: int) -> bool:
    """True once rank 0 of these processes has begun, or goes on with, the run."""
    try:
        return Run(run).status().get("pid") == rank(0, launcher)
    except AssertionError:
        return False


def has_ranks(launcher: int) -> bool:
    try:
        return all(rank(k, launcher) for k in range(3))
    except AssertionError:
        return False
