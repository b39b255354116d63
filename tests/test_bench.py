"""`contrapose bench`: all compute the same, memory is what it is said to be, kills are safe."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.command import contrapose

from contrapose.bench import bench
from contrapose.bench.cases import CASES, OURS, SUPCON, TOPK
from contrapose.bench.limits import unfit
from contrapose.bench.measure import Measured, Settings, Work, in_float64, memory, warm_up
from contrapose.bench.page import pages
from contrapose.bench.record import Record, in_bytes, in_seconds
from contrapose.bench.run import ForkError, Forks, sizes_of

ON_CPU = [
    (case, contender)
    for case in CASES.values()
    for contender in case.contenders
    if contender.device != "cuda" and not contender.low
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "contender"), ON_CPU, ids=lambda x: x.name)
def test_every_contender_computes_the_same_loss_and_gradient(case, contender):
    if contender.needs:
        pytest.importorskip(contender.needs)
    size = max(case.smallest, 64)
    exact = in_float64(case, size, "cpu")
    _, ours = warm_up(Work(case, case.contenders[0], size, "cpu"), "cpu", exact)
    _, theirs = warm_up(Work(case, contender, size, "cpu"), "cpu", exact)
    if contender.differs:
        assert abs(ours.loss - theirs.loss) > 1e-3
        return
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)
    assert theirs.gradient_error < 1e-4 and ours.gradient_error < 1e-6


def test_a_run_leaves_tables_numbers_and_plots(tmp_path):
    pytest.importorskip("faiss")
    done = contrapose(
        "bench", "--only", "clip,topk", "--sizes", "1000,2000", "--repeats", 3, "--threads", 1,
        "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert found["complete"] and found["flops_of_a_matrix_product"]["fp32"] > 1e8
    by = {(r["case"], r["size"], r["contender"]): r for r in found["results"]}
    for size in (1000, 2000):
        ours, plain = by["clip", size, OURS], by["clip", size, "plain torch"]
        assert len(ours["seconds"]) == 3 and ours["ratio_to_ours"] == 1
        assert min(ours["seconds"]) <= ours["median"] <= max(ours["seconds"])
        assert plain["agrees"] and plain["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert ours["gradient_error"] <= plain["gradient_error"] < 1e-6
        assert plain["extra"] > 2 * 4 * size**2  # the logits and their gradient at least
        assert by["topk", size, "faiss"]["agrees"]
    page = (tmp_path / "out" / "bench.html").read_text()
    assert "plain torch" in page and page.count("<svg") == 2 and "http://www.w3" in page
    assert "| 1,000 pairs | plain torch |" in (tmp_path / "out" / "bench.md").read_text()
    assert (tmp_path / "out" / "topk.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_a_kill_leaves_what_was_measured_and_no_process(tmp_path):
    command = [
        sys.executable, "-m", "contrapose", "bench", "--only", "clip", "--sizes", "64,6000",
        "--repeats", "999", "--threads", "1", "--out", "out",
    ]  # fmt: skip
    running = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL
    )
    file = tmp_path / "out" / "bench.json"
    try:
        _wait(file.with_name("clip.svg").exists, "the first size")
    finally:
        running.kill()
        running.wait()
    found = json.loads(file.read_text())
    assert not found["complete"] and {r["size"] for r in found["results"]} == {64}
    assert "Not complete" in (tmp_path / "out" / "bench.md").read_text()
    assert not list(file.parent.glob(".*"))
    _wait(lambda: not _alive(running.pid), "the measuring processes to end")


def _wait(until, what, seconds=120):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def _alive(session):
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(stat.parent.name)
    return found


def test_what_cannot_be_measured_is_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--only supcom: no case 'supcom'; did you mean 'supcon'"):
        bench(["nt_xent", "supcom"])
    with pytest.raises(ValueError, match=r"--sizes 100: use even sizes of at least 256"):
        bench(["clip", "supcon"], sizes=[100])
    with pytest.raises(ValueError, match="--repeats 0"):
        bench(["clip"], repeats=0)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--out there exists and is left as it is"):
        bench(["clip"], out=Path("there"))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_every_case_has_sizes_for_every_device():
    for case in CASES.values():
        for device in ("cpu", "cuda"):
            sizes = [*sizes_of(case, device, True, False), *sizes_of(case, device, False, True)]
            assert sizes and min(sizes) >= case.smallest and not any(n % 2 for n in sizes)
    assert sizes_of(CASES["nt_xent"], "cpu", False, True)[-1] == 2 * 32768
    assert sizes_of(CASES["nt_xent"], "cuda", False, True)[-2:] == (2 * 32768, 2 * 262144)


def test_what_a_contender_cannot_do_is_said():
    pml = next(c for c in CASES["nt_xent"].contenders if c.name == "metric-learning")
    here = replace(pml, needs="torch.nn")  # whether or not the peer is installed
    assert "TB of memory" in unfit(CASES["nt_xent"], here, 8192, "cpu", ())
    missing = replace(pml, needs="lightly_that_is_missing.loss")
    said = unfit(CASES["nt_xent"], missing, 256, "cpu", ())
    assert said == "not installed: pip install lightly_that_is_missing"
    slow = Measured("supcon", 512, "plain torch", seconds=(1.0, 2.0, 9.0))
    plain = next(c for c in SUPCON.contenders if c.name == "plain torch")
    assert unfit(SUPCON, plain, 4096, "cpu", [slow]) == "would take about 128 s a step"
    assert unfit(SUPCON, SUPCON.contenders[0], 4096, "cpu", [slow]) is None  # ours is run
    left = replace(slow, seconds=(), skipped="failed")
    assert "smaller size" in unfit(SUPCON, plain, 4096, "cpu", [left])


def test_another_loss_by_the_same_definition_is_a_disagreement(tmp_path):
    settings = Settings("cpu", 1, 1, 1.0)
    record = Record(tmp_path, [SUPCON], settings, {"precision": "fp32", "peers": {}})
    record.environment |= {"device": "cpu", "cpu": "", "torch": torch.__version__}
    ours = Measured("supcon", 512, OURS, seconds=(1.0,), loss=5.0)
    right = replace(ours, contender="plain torch", seconds=(2.0,), loss=5.00001)
    wrong = replace(ours, contender="metric-learning", loss=5.01)
    nothing = replace(ours, contender="SupContrast's formula", loss=float("nan"))
    record.results += [ours, right, wrong, nothing]
    assert record.disagreements() == [wrong, nothing]
    assert "DISAGREES: loss 5.01, ours 5" in pages(record)["bench.md"]
    assert record.row(right).ratio == "2.00x"


def test_a_process_that_fails_is_killed_or_takes_too_long_is_said():
    forks = Forks([])
    with pytest.raises(ForkError, match="ValueError: no"):
        forks.run(_raise)
    with pytest.raises(ForkError, match=r"killed \(exit code -9\)"):
        forks.run(_die)
    with pytest.raises(ForkError, match="stopped after 0 s"):
        forks.run(time.sleep, 60, within=0.2)
    extra, _, why = forks.run(memory, "clip", "plain torch", 8192, Settings("cpu", 1, 1, 1), 2**26)
    assert extra is None and why.startswith("wanted more than 0.1 GB")


def _raise():
    raise ValueError("no")


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux only")
@pytest.mark.parametrize(("case", "contender"), ON_CPU, ids=lambda x: x.name)
def test_predicted_memory_is_about_what_is_measured(case, contender):
    if contender.needs:
        pytest.importorskip(contender.needs)
    size = {"metric-learning": 256 if case.name == "nt_xent" else 2048}.get(contender.name, 4096)
    size = max(size, 4 * case.smallest)
    limit = int(free_memory("cpu") / 2)
    extra, _, why = Forks([]).run(
        memory, case.name, contender.name, size, Settings("cpu", 2, 1, 1), limit
    )
    predicted = contender.bytes(case.pairs(size))
    assert why is None and extra <= 1.2 * predicted, (in_bytes(extra), in_bytes(predicted))
    if contender.per_pair:
        assert extra >= 0.7 * predicted, (in_bytes(extra), in_bytes(predicted))


def test_numbers_have_three_digits_and_a_unit():
    assert [in_seconds(t) for t in (0.00052, 0.0419, 1.553, 139.2)] == [
        "0.52 ms", "41.9 ms", "1.55 s", "139 s",
    ]  # fmt: skip
    assert [in_bytes(n) for n in (0, 786432, 40e6, 5.5e11, 9.3e12)] == [
        "0 B", "786 KB", "40 MB", "550 GB", "9.3 TB",
    ]  # fmt: skip


def test_the_command_names_every_case():
    done = contrapose("bench", "--help")
    for case in CASES:
        assert case in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert TOPK.title(5000) == "5,000 keys" and SUPCON.title(512) == "2 x 256 rows"
