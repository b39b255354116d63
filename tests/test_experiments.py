"""Experiments with real processes (killed, doubled, failing, changed), and evidence of claims."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from contrapose import experiments
from contrapose.experiments import evidence
from contrapose.experiments.form import SCALES, Job, Published, Results, Verdict
from contrapose.experiments.measures import knn, uniformity
from contrapose.experiments.running.collect import collect
from contrapose.experiments.running.engine import reproduce
from contrapose.experiments.running.folders import ChangedCallError
from contrapose.experiments.running.task import Task, job_folders, prepare
from contrapose.experiments.running.worker import work
from contrapose.experiments.trained import trained
from contrapose.training.run import Run

HEAD = """
import os, signal, time
from functools import partial
from contrapose.experiments.form import *
from contrapose.experiments.measures import knn, uniformity
from contrapose.experiments.trained import trained

def number(folder, *, value, seconds=0.0):
    with open(folder.parent.parent / "done.txt", "a") as file:
        file.write(f"{value} ")
    time.sleep(seconds)
    return {"found": value, "parts": {"half": value / 2}, "curve": [value, 1]}

def unlucky(folder):
    raise ValueError("no luck")

def killed(folder):
    os.kill(os.getpid(), signal.SIGKILL)

def experiment(name, calls, **more):
    def jobs(scale, seeds):
        return [Job(name=f"job{k}-seed{s}", call=call, facts={"which": k}, seed=s)
                for k, call in enumerate(calls) for s in seeds]
    measures = {"found": "a number", "parts": "its half", "curve": "a list", "knn": "a share"}
    return Experiment(name=name, title="Of a test", source="nowhere", jobs=jobs,
                      costs={"smoke": "1 s"}, measures=measures, **more)
"""
NUMBERS = "EXPERIMENT = experiment('numbers', [partial(number, value=v) for v in range(3)])"
WAITING = """
EXPERIMENT = experiment('waiting', [partial(number, value=v, seconds=1.0) for v in range(6)])
"""
TROUBLE = """
EXPERIMENT = experiment(
    'trouble',
    [partial(number, value=0), partial(unlucky), partial(killed), partial(number, value=3)],
    claims=(
        Claim("Rows count.", "here", lambda r: Verdict(len(r.rows) == 2, f"{len(r.rows)} rows")),
        Claim("Of a failed job.", "here", lambda r: Verdict(r.values("found", which=1)[0], "")),
    ),
    figures=(Figure("Broken", lambda r: 1 / 0, "Nothing."),),
    published=(Published("found", {"which": 3}, 2.5, "table 1"),
               Published("found", {"which": 1}, 1.0, "table 1")),
)
"""
TRAINING = """
EXPERIMENT = experiment('training', [partial(
    trained, images="digits", measures=(knn, uniformity), encoder="small_conv", epochs=6,
    batch_size=128, device="cpu", precision="fp32")])
"""


@pytest.fixture(autouse=True)
def threads():
    """Jobs that run in this process set the number of threads; leave it as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    job_folders.cache_clear()


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(HEAD + text)
    return path


def started(file: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "contrapose", "reproduce", str(file), "--scale", "smoke"]
    return subprocess.Popen(
        [*command, "--out", str(file.parent), *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


def until(true, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_where_an_unbroken_one_does(tmp_path):
    file, job = written(tmp_path, "training", TRAINING), tmp_path / "training-smoke" / "job0-seed0"
    one_thread = ("--jobs", str(os.cpu_count()))

    def worker() -> int:
        return int(json.loads((job / "running.json").read_text())["pid"])

    first = started(file, *one_thread)
    until(lambda: list(job.glob("run/checkpoints/step-*")))
    os.kill(worker(), signal.SIGKILL)
    code, said = ended(first)
    assert code == 1 and "signal 9 (SIGKILL)" in " ".join(said.split())
    begun_at = max(int(p.name[5:]) for p in job.glob("run/checkpoints/step-*"))
    second = started(file, *one_thread)
    until(lambda: len(Run.open(job / "run").metrics()) > 0 and (job / "progress.json").exists())
    pid = worker()
    second.kill()  # the command itself; its worker notices, saves and ends
    second.communicate()
    until(lambda: not alive(pid))
    status = Run.open(job / "run").read("status.json")
    assert status["state"] in ("interrupted", "finished") and status["step"] > begun_at
    code, _ = ended(started(file, *one_thread))
    assert code == 0
    found = json.loads((job / "result.json").read_text())
    assert not (job / "run" / "checkpoints").exists()
    work(prepare(str(file), scale="smoke", seeds=1, jobs=os.cpu_count(), out=tmp_path / "whole"))
    whole = json.loads(
        (tmp_path / "whole" / "training-smoke" / job.name / "result.json").read_text()
    )
    for name in ("knn", "uniformity"):
        assert found["measures"][name] == whole["measures"][name]
    page = (tmp_path / "training-smoke" / "report.html").read_text()
    assert "Measured" in page


@pytest.mark.slow
def test_two_invocations_at_once_do_no_job_twice_and_ctrl_c_keeps_what_is_done(tmp_path):
    file = written(tmp_path, "waiting", WAITING)
    both = [started(file, "--jobs", "2"), started(file)]
    done = tmp_path / "done.txt"
    until(lambda: done.exists() and len(done.read_text().split()) >= 2)
    both[1].send_signal(signal.SIGINT)
    code, said = ended(both[1])
    assert code == 130 and "the same command goes on" in " ".join(said.split())
    assert ended(both[0])[0] in (0, 3)  # 3: the job that was interrupted was held until too late
    assert ended(started(file))[0] == 0
    begun = done.read_text()
    code, said = ended(started(file))  # nothing is left
    assert code == 0 and "6 of them done before" in said and done.read_text() == begun
    results = list(tmp_path.glob("waiting-smoke/*/result.json"))
    assert len(results) == 6
    assert len(done.read_text().split()) <= 7  # an interrupted one began twice


def test_a_failing_job_stops_no_other_and_is_reported_with_its_traceback(tmp_path):
    file = written(tmp_path, "trouble", TROUBLE)
    code, said = ended(started(file))
    said = " ".join(said.split())
    assert code == 1
    assert "ValueError: no luck" in said and "its process ended by signal 9 (SIGKILL)" in said
    assert "holds: Rows count." in said
    folder = tmp_path / "trouble-smoke"
    assert "unlucky" in json.loads((folder / "job1-seed0" / "error.json").read_text())["traceback"]
    assert "{" not in said and max(map(len, said.split())) < 200
    found = json.loads((folder / "experiment.json").read_text())
    assert [job["state"] for job in found["jobs"]] == ["finished", "failed", "failed", "finished"]
    assert [c["holds"] for c in found["claims"]] == [True, None]
    assert found["claims"][1]["evidence"].startswith("not tested: 2 jobs have no result")
    assert "ZeroDivisionError" in found["figures"][0]["why"]
    ours, none = found["published"]
    assert (ours["ours"], ours["distance"], none["ours"]) == (3, 0.5, None)
    page, table = (folder / "report.html").read_text(), (folder / "results.md").read_text()
    for text in (page, table):
        assert "Holds" in text and "Not tested" in text and "no luck" in page


def prepared(file: Path, seeds: int = 1) -> Task:
    return prepare(str(file), scale=None, seeds=seeds, jobs=os.cpu_count() or 1, out=file.parent)


def test_what_another_call_made_is_not_taken_for_this_one(tmp_path):
    file = written(tmp_path, "numbers", NUMBERS)
    work(prepared(file))
    assert (tmp_path / "done.txt").read_text() == "0 1 2 "
    work(prepared(file, seeds=2))
    assert (tmp_path / "done.txt").read_text() == "0 1 2 0 1 2 "  # the new seed alone
    job_folders.cache_clear()  # as another process would
    file.write_text(HEAD + NUMBERS.replace("value=v)", "value=5)"))
    with pytest.raises(ChangedCallError, match=r"value was 0, is 5\) and 2 more; .*--redo"):
        reproduce(str(file), out=tmp_path)
    _, at = reproduce(str(file), out=tmp_path, redo=True)
    assert len(at.finished) == 3 and at.failed == ()
    assert len(list(tmp_path.glob("numbers-smoke/*.before-1/result.json"))) == 3


def test_words_that_mean_nothing_are_errors_that_name_what_does(tmp_path):
    file = written(tmp_path, "numbers", NUMBERS)
    for words, message in [
        ({"which": "swapp"}, r"no experiment 'swapp'; did you mean 'swap'\?"),
        ({"which": str(tmp_path / "none.py")}, "no such file"),
        ({"which": "swap", "scale": "smke"}, r"'smke'; did you mean 'smoke'\?"),
        ({"which": "swap", "scale": "paper"}, "has smoke only"),
        ({"which": "swap", "on": "slrm"}, r"--on slrm: .*did you mean 'slurm'\?"),
        ({"which": "swap", "jobs": 0}, "--jobs 0: use 1 or more"),
        ({"which": str(file), "resources": {"a": 1}}, "--resource is for"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            reproduce(**words, out=tmp_path)
    with pytest.raises(ValueError, match="calls itself 'numbers'"):
        prepared(written(tmp_path, "other", NUMBERS))
    for call, message in [
        (partial(lambda folder: {}), "no function of a module"),
        (partial(print, 1), "keywords only"),
    ]:
        with pytest.raises(ValueError, match=message):
            Job(name="a", facts={}, seed=0, call=call)
    with pytest.raises(ValueError, match="a name is a folder"):
        Job(name="a/b", call=partial(print), facts={}, seed=0)


def test_workers_share_the_gpus_in_turn(monkeypatch):
    from contrapose.experiments.running.engine import _gpu

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [_gpu(k)["CUDA_VISIBLE_DEVICES"] for k in range(3)] == ["5", "7", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert _gpu(0) == {}


def test_a_cluster_s_library_that_is_absent_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"pip install 'contrapose\[slurm\]'"):
        reproduce("swap", on="slurm", out=tmp_path)


@pytest.mark.slow
def test_submitit_runs_the_jobs_of_an_experiment(tmp_path):
    pytest.importorskip("submitit")
    from contrapose.experiments.running.clusters import slurm

    task = prepared(written(tmp_path, "trouble", TROUBLE))
    for _ in slurm(task, 2, {"timeout_min": 5}, cluster="local"):
        pass
    states = [place.state for place in job_folders(task)]
    assert states == ["finished", "failed", "failed", "finished"]


def test_the_shipped_experiments_are_well_formed():
    assert "swap" in experiments.names()
    assert not {"form", "engine", "trained"} & set(experiments.names())
    for name in experiments.names():
        found = experiments.experiment(name)
        for scale in found.costs:
            assert scale in SCALES
            task = prepare(name, scale=scale, seeds=2, jobs=1, out=Path("nowhere"))
            assert len({place.path for place in job_folders(task)}) == len(job_folders(task))
            assert {place.job.seed for place in job_folders(task)} <= {0, 1}
            missing = [place.job.coordinates for place in job_folders(task)]
            nothing = Results(rows=[], missing=missing, measures=tuple(found.measures))
            for claim in found.claims:  # a test may fail for want of rows, not for a wrong name
                try:
                    assert isinstance(claim.test(nothing), Verdict)
                except ValueError as error:
                    assert "did you mean" not in str(error), (name, scale, error)
                except (KeyError, IndexError, ZeroDivisionError):
                    pass


def test_swapping_images_with_their_views_changes_no_loss(tmp_path):
    task = prepare("swap", scale="smoke", seeds=1, jobs=1, out=tmp_path)
    work(task)
    found = json.loads(collect(task).read_text())
    assert [claim["holds"] for claim in found["claims"]] == [True, True]
    assert found["figures"][0]["figure"]["data"]


# ---- results and evidence ------------------------------------------------------------------------


def rows(f, seeds=3, taus=(0.1, 0.3, 0.5)) -> Results:
    return Results(
        rows=[{"tau": t, "seed": s, "acc": f(t, s)} for s in range(seeds) for t in taus],
        measures=["acc"],
    )


def test_results_mix_no_settings_and_know_their_names():
    found = rows(lambda t, s: t + s)
    assert found.values("acc", tau=0.1) == [0.1, 1.1, 2.1]
    assert found.mean("acc", tau=0.1) == pytest.approx(1.1)
    assert found.where(tau=0.3, seed=1).values("acc") == [1.3]
    assert found.column("tau") == [0.1, 0.3, 0.5]
    nested = Results(rows=[{"seed": 0, "a": {"b": [1, 3]}}, {"seed": 1, "a": {"b": [3, 5]}}])
    assert nested.curve("a.b") == [2, 4]
    for ask, message in [
        (lambda: found.values("acc"), r"leaves open tau \(0.1, 0.3, 0.5\)"),
        (lambda: found.values("ac", tau=0.1), "did you mean 'acc'"),
        (lambda: found.where(ta=1), "did you mean 'tau'"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_comparison_holds_where_every_seed_shows_it_and_says_how_sure_it_is():
    here, there = {"tau": 0.3}, {"tau": 0.1}
    clear = evidence.higher(rows(lambda t, s: t + 0.01 * s**2 * t), "acc", here, there)
    assert clear.holds and "higher in 3 of 3 seeds" in clear.evidence and "p = " in clear.evidence
    assert evidence.lower(rows(lambda t, s: t), "acc", here, there).holds is False
    mixed = evidence.higher(rows(lambda t, s: t * (-1) ** s), "acc", here, there)
    assert mixed.holds is None and mixed.evidence.startswith("undecided")
    single = evidence.higher(rows(lambda t, s: t, seeds=1), "acc", here, there)
    assert single.holds and "one seed, no test" in single.evidence
    absent = evidence.higher(rows(lambda t, s: t), "acc", here, {"tau": 0.9})
    assert absent.holds is None and absent.evidence.startswith("not tested: no result at tau=0.9")


def test_an_order_holds_where_no_step_goes_the_other_way():
    risen = evidence.rises(rows(lambda t, s: t + 0.01 * s), "acc", "tau")
    assert risen.holds and "Page's trend test p = 0.0046" in risen.evidence  # exact: 1 / 6^3
    assert evidence.falls(rows(lambda t, s: -t), "acc", "tau").holds
    bent = rows(lambda t, s: -((t - 0.3) ** 2))
    assert evidence.rises(bent, "acc", "tau").holds is False
    assert evidence.rises(bent, "acc", "tau", slack=0.05).holds
    assert evidence.peaks_inside(bent, "acc", "tau").holds
    assert evidence.flat(bent, "acc", "tau", within=0.05).holds
    half = Results(rows=bent.rows[:2], missing=[{"tau": 0.5, "seed": 0}], measures=["acc"])
    assert evidence.rises(half, "acc", "tau").evidence.startswith("not tested")
    both = evidence.all_of(Verdict(True, "a"), Verdict(None, "b"))
    assert both.holds is None and evidence.all_of(both, Verdict(False, "c")).holds is False


def test_a_published_number_of_no_measure_is_an_error():
    from contrapose.experiments.form import Experiment

    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        Experiment(
            name="a", title="", source="", jobs=lambda scale, seeds: [], costs={},
            measures={"accuracy": "share"}, published=(Published("acuracy", {}, 1.0, "t"),),
        )  # fmt: skip


# ---- the standard job ----------------------------------------------------------------------------


def test_controls_and_measures_of_the_standard_job(tmp_path):
    from contrapose.experiments.measures import (
        effective_rank,
        linear_probe,
        local_separation,
        sgd_probe,
        tolerance,
    )
    from contrapose.experiments.trained import taught

    by_sgd, near = partial(sgd_probe, protocol="simclr_cifar"), partial(local_separation, k=3)
    every = (
        knn,
        partial(linear_probe, l2=1.0),
        by_sgd,
        uniformity,
        tolerance,
        effective_rank,
        near,
    )
    common = dict(images="digits", encoder="small_conv", device="cpu", precision="fp32")
    plain = trained(tmp_path / "a", measures=every, epochs=0, subset=200, test_subset=100, **common)
    assert (plain["n_train"], plain["n_test"]) == (200, 100)
    assert 0.3 < plain["linear_probe"] <= 1 and len(plain["local_separation"]) == 4
    assert plain["minus_uniformity"] == -plain["uniformity"] > 0
    assert not (tmp_path / "a").exists()  # nothing was trained
    learned = trained(
        tmp_path / "b", measures=(knn, tolerance), epochs=4, batch_size=128,
        recipe=partial(taught, of="simclr"), **common,
    )  # fmt: skip
    assert learned["knn"] > plain["knn"] and learned["tolerance"] > 0.5
