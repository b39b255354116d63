"""`make bench-gpu` in small, on the CPU: every part is measured and written."""

import json
from pathlib import Path

from benchmarks import gpu


def test_the_benchmark_of_a_gpu_runs_in_small_on_a_cpu(tmp_path: Path, capsys) -> None:
    found = gpu.main(["--small", "--device", "cpu", "--out", str(tmp_path)])
    sections = {figure.section for figure in found}
    assert {
        "ceiling",
        "feeding from disk",
        "two views, 32 px",
        "end to end, ResNet-18, 32 px",
    } <= sections
    assert {"training step, small_conv, 32 px", "loss, 2 x 64 rows of 128"} <= sections
    missing = [figure for figure in found if figure.value is None]
    assert all("No module named 'lightly'" in figure.why for figure in missing)
    assert all(figure.value >= 0 for figure in found if figure.value is not None)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["small"] and len(written["figures"]) == len(found)
    page = (tmp_path / "gpu.md").read_text()
    assert "these numbers mean nothing" in page and page.count("\n| ") == len(found) + 1
    assert page in capsys.readouterr().out
