"""Training on several ranks: their number changes nothing but the speed, and the loss of one is
said by name. Real processes throughout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contrapose.encoders import Encoder, mlp, small_conv
from contrapose.processes import processes
from contrapose.similarity import across
from contrapose.training.global_batchnorm import over_ranks
from contrapose.verification import training as law

SHARES = (slice(0, 4), slice(4, 4), slice(4, 11))  # of three ranks, one without images


def network():
    torch.manual_seed(0)
    encoder = Encoder(
        small_conv(channels=2, width=8).double(), mlp(8, dim=3).double(), (0, 0), (1, 1)
    )
    return encoder.double().train()


def batchnorm_on_ranks(me):
    """(z, gradients of weights, gradient of the input, buffers) of this rank's images."""
    encoder = network()
    over_ranks(encoder, cuda=False)
    x = images()[SHARES[me.rank]].requires_grad_()
    with across(me.group):
        z = encoder.head(encoder.backbone(x))
        (z.sin() * weights()[SHARES[me.rank]]).sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    return me.gathered((z.detach(), gradients, x.grad, dict(encoder.named_buffers())))


def images():
    return torch.randn(11, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def weights():
    return torch.randn(11, 3, generator=torch.Generator().manual_seed(2)).double()


def on_ranks(me, folder):
    """What every rank does, started once for all tests: batch norm, then the law's trainings."""
    normalised = batchnorm_on_ranks(me)
    me.gets_on()
    laws = list(law.trained_on_ranks(me, folder, list(law.CASES), ("digits",), ("fp64",), 3))
    return normalised, laws


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("law"))
    with processes(3, "cpu", on_ranks, folder) as me:
        return on_ranks(me, folder)


def test_batch_norm_over_ranks_is_that_of_one_process_on_the_joined_batch(found):
    parts, whole = found[0], network()
    x = images().requires_grad_()
    z = whole.head(whole.backbone(x))
    (z.sin() * weights()).sum().backward()
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), z.detach())
    torch.testing.assert_close(torch.cat([part[2] for part in parts]), x.grad)
    for k, p in enumerate(whole.parameters()):
        torch.testing.assert_close(sum(part[1][k] for part in parts), p.grad)
    for part in parts:
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(part[3][name], buffer)


def test_training_on_two_and_three_ranks_ends_in_the_weights_of_one_process(found):
    laws = found[1]
    assert {(x.case, x.ranks) for x in laws} == {(c, r) for c in law.CASES for r in (2, 3)}
    for x in laws:
        assert x.weights < 1e-10 and x.metrics < 1e-6, x


def torchrun(ranks, *arguments, cwd, restarts=0, **environment):
    """`contrapose train` under torchrun, as a process."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
        "--max-restarts", str(restarts), "-m", "contrapose", "train", *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


QUICK = [
    "digits", "--encoder", "small_conv", "--set", "backbone.width=16", "--batch-size", "100",
    "--epochs", "1", "--device", "cpu", "--no-explain", "--precision", "fp32",
]  # fmt: skip


def same(a: Path, b: Path, within=1e-4):
    a, b = (load_file(run / "encoder.safetensors") for run in (a, b))
    assert a.keys() == b.keys()
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a) < within


def test_torchrun_trains_one_run_which_another_number_of_ranks_takes_further(tmp_path):
    alone = subprocess.run(
        [sys.executable, "-m", "contrapose", "train", *QUICK, "--out", tmp_path / "alone"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    two = torchrun(2, *QUICK, "--out", tmp_path / "two", cwd=tmp_path)
    out, err = two.communicate(timeout=120)
    assert two.returncode == 0, err
    assert out.count("Trained:") == 1  # the first rank speaks
    assert same(tmp_path / "alone", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["ranks"] == 2
