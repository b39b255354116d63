"""The report's section on robustness: numbers of the record, pooled bins, sheet, phone, damage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.browser import CHROMIUM, Reader, browser, reader, sync_api  # noqa: F401
from support.run_folders import write_run

from contrapose.evaluation.calibration import calibration
from contrapose.evaluation.corruptions import BENCHMARK
from contrapose.evaluation.robustness import Robustness, judged
from contrapose.report import read_run, write_report
from contrapose.report.robustness import ece_of, pooled, read_robustness


def logits_and_labels(severity, k, n=200):
    """Logits that name a label less often the stronger the corruption is, overconfident."""
    generator = torch.Generator().manual_seed(100 * k + severity)
    label = torch.randint(0, 10, (n,), generator=generator)
    z = torch.randn(n, 10, generator=generator)
    z[torch.arange(n), label] += 3 - 0.5 * severity
    return 2 * z, label


def record(names=BENCHMARK):
    def of(name, severity, k):
        return judged(
            *logits_and_labels(severity, k), name, severity, temperature=2.0, seed=0, bins=15
        )

    return Robustness(
        clean=of("", 0, 0),
        corrupted=tuple(of(name, s, k) for k, name in enumerate(names) for s in range(1, 6)),
        source="made here", seed=0, temperature=2.0, notes=("split: test",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "digits", points=60)
    (folder / "robustness.json").write_text(json.dumps(record().as_json() | {"split": "test"}))
    with np.load(folder / "pictures.npz") as file:
        arrays = {name: file[name] for name in file.files}
    tile = np.random.default_rng(0).integers(0, 255, (15, 6, 8, 8, 1)).astype(np.uint8)
    arrays |= {
        "corrupted": tile, "corrupted_names": np.array(BENCHMARK),
        "corrupted_severities": np.arange(1, 6), "corrupted_of": np.array("made here, seed 0"),
    }  # fmt: skip
    np.savez(folder / "pictures.npz", **arrays)
    return folder


def test_pooled_bins_are_those_of_all_images_together(run):
    seen = read_robustness(run / "robustness.json")
    parts = [logits_and_labels(5, k) for k in range(15)]
    logits, label = (torch.cat(x) for x in zip(*parts, strict=True))
    for kind, temperature in (("before", 1.0), ("after", 2.0)):
        whole = calibration(logits, label, temperature=temperature)
        bins = pooled(seen.where(severity=5), kind)
        assert [b.count for b in bins] == [n for n in whole.count if n]
        assert ece_of(bins) == pytest.approx(whole.ece, abs=1e-9)


def test_the_page_holds_the_numbers_of_the_record(run):
    found = record()
    page = write_report([run]).read_text()
    by_severity = found.by_severity()
    for severity in range(6):
        assert f'<td class="n">{100 * by_severity[severity]["accuracy"]:.1f}</td>' in page
        assert f'<td class="n">{by_severity[severity]["scaled_ece"]:.3f}</td>' in page
    ce = found.as_json()["ce"]
    assert list(ce) == list(BENCHMARK)
    assert np.mean([*ce.values()]) == pytest.approx(found.as_json()["mce"])
    for name in BENCHMARK:
        assert f">{name.replace('_', ' ')}</th>" in page and f">{ce[name]:.1f}</td>" in page
    low, high = found.clean.before.low, found.clean.before.high
    assert f"95 % interval {low:.3f} to {high:.3f}" in page
    assert page.count('class="tile corrupted-0"') == 15 * 6


def test_a_run_without_a_record_has_no_section_and_a_damaged_one_says_so(run, tmp_path):
    plain = write_run(tmp_path / "plain", points=60)
    assert 'id="robustness"' not in write_report([plain]).read_text()
    both = write_report([run, plain], tmp_path / "both.html").read_text()
    assert "Not measured: contrapose robustness RUN" in both
    whole = json.loads((run / "robustness.json").read_text())
    whole["measured"][3]["before"]["bin_accuracy"].pop()
    (plain / "robustness.json").write_text(json.dumps(whole))
    (plain / "robustness-b.json").write_text(
        json.dumps(whole | {"measured": whole["measured"][1:2]})
    )
    notices = [n.sentence for n in read_run(plain).notices]
    assert any("robustness.json is damaged" in n and "bins disagree" in n for n in notices)
    assert any("robustness-b.json lacks the clean images" in n for n in notices)
    assert 'id="robustness"' not in write_report([plain]).read_text()


@pytest.mark.browser
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_section_is_drawn_and_fits(reader: Reader, run, width):
    tab = reader.open(write_report([run]), width=width, scheme="dark" if width == 390 else "light")
    for id in ("accuracy_by_severity", "ece_by_severity", "reliability_0_0_0", "reliability_0_0_1"):
        assert tab.locator(f"[data-figure={id}] .scatterlayer path.point").count() > 5
    assert tab.evaluate("() => document.documentElement.scrollWidth") == width
    sizes = tab.locator("#robustness .tile").evaluate_all(
        "all => all.map(e => Math.round(e.getBoundingClientRect().width))"
    )
    assert len(sizes) == 90 and min(sizes) > 30
    assert reader.trouble == []
