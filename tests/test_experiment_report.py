"""The page of an experiment: what it says, in a browser, with names that would be code."""

import json
from pathlib import Path

import pytest

from contrapose.errors import UserError
from contrapose.report import write_experiment
from contrapose.report.experiment import markdown, measured_grids, read_experiment

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from support.browser import CHROMIUM, Reader, browser, reader  # noqa: F401

HOSTILE = "</script><script>window.owned = 1</script><b>x</b>"


def experiment(folder: Path, name: str = "contrastive", **more) -> Path:
    """experiment.json of six jobs at two settings, one of them failed."""
    jobs = [
        {
            "name": f"{name}-{tau}-{seed}", "facts": {"loss": name, "tau": tau, "data": "digits"},
            "seed": seed, "state": "finished", "seconds": 60.0, "contrapose": "1.0",
            "measures": {"accuracy": 0.8 + tau / 10 + seed / 100, "parts": {"h": 0.1}, "n": 7},
            "environment": "a", "error": None, "traceback": None,
        }
        for tau in (0.1, 0.5) for seed in range(3)
    ]  # fmt: skip
    jobs[5] |= {"state": "failed", "measures": {}, "seconds": None}
    jobs[5] |= {"error": f"ValueError: {name}", "traceback": f"Traceback\n{name}"}
    figure = {
        "data": [
            {"type": "scatter", "x": [0.1, 0.5], "y": [0.82, 0.86], "name": label}
            for label in (name, "second")
        ],
        "layout": {"xaxis": {"title": {"text": "temperature"}}, "title": "left out"},
    }
    bars = {"data": [{"type": "bar", "x": ["0.1", "0.5"], "y": [1, 2]}], "layout": {}}
    value = {
        "format": 1, "contrapose": "1.0", "written": "2026-01-01", "command": "contrapose x",
        "name": "fake", "title": f"Temperature and {name}", "source": "S1 table 1",
        "scale": "cpu", "seeds": [0, 1, 2], "costs": {"cpu": "6 min"},
        "measures": {"accuracy": "share of test images", "parts": name},
        "claims": [
            {"sentence": f"It rises: {name}.", "source": "S1", "holds": True, "evidence": name},
            {"sentence": "It falls.", "source": "S1", "holds": False, "evidence": "0.1: 0.8"},
            {"sentence": "Who knows.", "source": "S1", "holds": None, "evidence": "undecided: 1"},
            {"sentence": "Nobody.", "source": "S1", "holds": None, "evidence": "not tested: none"},
        ],
        "published": [
            {"measure": "accuracy", "at": {"loss": name, "tau": 0.1}, "published": 0.7975,
             "source": "S1 table 1 [S1]", "ours": 0.82, "spread": 0.01, "seeds": 3,
             "distance": 0.0225, "why": ""},
            {"measure": "accuracy", "at": {"loss": "simple", "tau": None}, "published": 0.75,
             "source": "S1 table 1 [S1]", "ours": None, "spread": None, "seeds": 0,
             "distance": None, "why": "no result"},
        ],
        "figures": [
            {"title": "Figure 4", "about": "Look.", "figure": figure, "why": ""},
            {"title": "Bars", "about": "Look.", "figure": bars, "why": ""},
            {"title": "Figure 5", "about": "None.", "figure": None, "why": "no results yet"},
        ],
        "jobs": jobs,
        "environments": [{"digest": "a", "jobs": 5, "cpu": "some", "device": "cpu", "threads": 1,
                          "torch": "2", "precision": "fp32"}],
        "notes": [f"Chosen: {name}."],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.json").write_text(json.dumps(value | more))
    return folder


def test_ours_stand_beside_the_published_numbers_with_spread_and_distance(tmp_path):
    folder = experiment(tmp_path)
    page = write_experiment(folder)
    assert page == folder / "report.html" and page.stat().st_size < 3_000_000
    table = (folder / "results.md").read_text()
    assert "| contrastive | 0.1 | 0.8200 ± 0.0100 (published 0.7975, +0.0225) |" in table
    assert "| simple |" not in table and "Not run at this scale: 1 published" in table
    assert "1 published setting without a result" in page.read_text()
    assert "loss contrastive, data digits." in table  # what never changes stands above
    assert "| 0.1 | 0.82 ± 0.01 | 0.1 ± 0 |" in table  # mean and deviation of three seeds
    assert "| Undecided | Who knows. (S1) | 1 |" in table
    assert "1 of 6 jobs failed; its error" in table and "Chosen: contrastive." in table


def test_jobs_of_other_kinds_and_rare_measures_have_tables_without_blank_cells(tmp_path):
    value = json.loads((experiment(tmp_path) / "experiment.json").read_text())
    for job, tau in zip(value["jobs"], (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True):
        job["facts"]["tau"] = tau
        job["measures"] = {"accuracy": tau, "n": 7, "rank": 3} if tau < 0.6 else {}
    value["jobs"][0]["measures"]["read"] = {"size": 0.25}
    other = value["jobs"][1] | {"measures": {"n": 9, "shared": {"size": 2.0, "border": 1.0}}}
    value["jobs"] += [other | {"facts": {"loss": "looked", "tau": None, "data": "digits"}}]
    value["measures"] = dict.fromkeys(("accuracy", "rank", "n", "shared", "read"), "words")
    (tmp_path / "experiment.json").write_text(json.dumps(value))
    main, rare, looked = measured_grids(read_experiment(tmp_path))
    assert main.measures == ("accuracy", "rank", "n") and looked.measures[0] == "n"
    assert [facts for facts, _ in main.rows] == [(f"0.{k}",) for k in range(1, 7)]
    blank = [cells for _, cells in (*main.rows, *rare.rows, *looked.rows) if None in cells]
    assert blank == [(None, None, None)]  # of the job that failed
    assert rare.measures == ("read.size",) and "tau 0.1" in rare.same + str(rare.rows)
    assert set(looked.measures) == {"n", "shared.size", "shared.border"}
    page = write_experiment(tmp_path).read_text()
    assert page.count('aria-label="What was measured, table') == 3
    assert "| looked | 9 | 2 | 1 |" in (tmp_path / "results.md").read_text()


def test_a_smoke_run_says_that_it_runs_not_that_the_paper_is_wrong(tmp_path):
    page = write_experiment(experiment(tmp_path, scale="smoke")).read_text()
    assert "It runs: 5 of 6 jobs finished" in page and "Here 1 of 4 claims holds." in page
    assert "On so little data" in (tmp_path / "results.md").read_text()


def test_an_experiment_that_is_none_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="contrapose reproduce"):
        write_experiment(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_experiment(tmp_path)
    experiment(tmp_path, format=99)
    with pytest.raises(ValueError, match="format 1"):
        read_experiment(tmp_path)
    empty = experiment(tmp_path, jobs=[], claims=[], published=[], figures=[], environments=[])
    assert "\n|" not in markdown(read_experiment(empty))  # no table without rows
    assert "No claims" in write_experiment(empty).read_text()


def places(value, at=()):
    """Where each field of a JSON value is; of lists the first item."""
    if at:
        yield at
    if isinstance(value, list):
        value = dict(enumerate(value[:1]))
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from places(inner, (*at, name))


GONE = "is deleted"


@pytest.mark.parametrize("new", [GONE, None, {}, "x", -1, float("inf")], ids=str)
def test_a_damaged_field_is_shown_or_named_but_never_a_fault(tmp_path, new):
    file = experiment(tmp_path) / "experiment.json"
    text, named = file.read_text(), 0
    for *above, last in places(json.loads(text)):
        value = inner = json.loads(text)
        for name in above:
            inner = inner[name]
        if new is GONE:
            del inner[last]
        else:
            inner[last] = new
        file.write_text(json.dumps(value))
        try:
            assert markdown(read_experiment(tmp_path))
        except UserError as error:
            assert "experiment.json" in str(error) and str(last) in str(error)
            named += 1
    assert named > 3


@pytest.mark.browser
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_leads_with_the_verdict_and_fits(reader: Reader, tmp_path, width, scheme):
    tab = reader.open(write_experiment(experiment(tmp_path)), width=width, scheme=scheme)
    assert tab.locator(".verdict.lead").inner_text().split("\n\n") == [
        "1 of 4 claims holds",
        "1 does not hold, 1 undecided, 1 not tested.",
    ]
    words = tab.locator(".claim .level").all_inner_texts()
    assert words == ["Holds", "Does not hold", "Undecided", "Not tested"]
    assert tab.evaluate("() => document.documentElement.scrollWidth") == width
    assert tab.locator("[data-figure]").count() == 2
    lines = tab.locator("[data-figure=figure_0] .js-line")
    accent, second = (lines.nth(i).evaluate("e => getComputedStyle(e).stroke") for i in (0, 1))
    assert accent != second
    ticks = tab.locator("[data-figure=figure_1] .xaxislayer-above text").all_text_contents()
    assert ticks == ["0.1", "0.5"]  # words, not places on a line
    assert "temperature" in tab.locator("[data-figure=figure_0] .infolayer").text_content()
    tab.locator("#theme").click()
    assert lines.nth(0).evaluate("e => getComputedStyle(e).stroke") != accent
    assert reader.trouble == []


@pytest.mark.browser
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium on this machine")
def test_no_name_of_an_experiment_becomes_code(reader: Reader, tmp_path):
    folder = experiment(tmp_path, HOSTILE)
    tab = reader.open(write_experiment(folder))
    assert tab.evaluate("() => window.owned") is None
    assert HOSTILE in tab.locator("h1").inner_text()
    assert HOSTILE in tab.locator(".claim").first.inner_text()
    assert HOSTILE in tab.locator("[data-figure=figure_0] .legend").text_content()
    assert HOSTILE in tab.locator(".failure summary").inner_text()
    assert "<script" not in (folder / "results.md").read_text().replace("\\<", "")
    assert reader.trouble == []


def test_pages_that_jobs_left_are_linked_beside_the_report(tmp_path):
    folder = experiment(tmp_path)
    job = folder / read_experiment(folder)["jobs"][0]["name"]
    job.mkdir()
    (job / "maps <b>.html").write_text("")
    text = write_experiment(folder).read_text()
    assert f'<a href="{job.name}/maps%20%3Cb%3E.html">maps &lt;b&gt;, {job.name}</a>' in text
