"""The report: reads what a run wrote, says what is missing, lets nothing of it become code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.run_folders import write_run

from contrapose import paired
from contrapose.report import read_run, write_report
from contrapose.report.classes import Classes
from contrapose.report.numbers import compare_recipes, compare_scores, number, over_seeds, short
from contrapose.report.page import json_block
from contrapose.report.panels import training_panels
from contrapose.report.sprites import sprite

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "digits-a")


def test_report_imports_no_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from contrapose.report import write_report;"
        f"write_report([Path({str(run)!r})], Path({str(run / 'other.html')!r}));"
        "assert not {'torch', 'torchvision', 'sklearn', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_run_is_reported_inside_its_folder_and_small(run: Path) -> None:
    out = write_report([run])
    assert out == run / "report.html"
    assert out.stat().st_size < 3_000_000
    assert not [file for file in run.iterdir() if file.name.startswith(".")]  # nothing beside it


def test_a_page_asks_for_nothing_from_a_network(run: Path) -> None:
    page = write_report([run]).read_text()
    page = re.sub(r'<script type="application/octet-stream".*?</script>', "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=(?!["']?(?:#|data:))\S+""", page)
    assert not re.findall(r"https?://", page)
    assert "default-src 'none'" in page


def test_every_number_stands_with_its_protocol_split_seed_and_n(run: Path) -> None:
    page = write_report([run]).read_text()
    for score in read_run(run).scores:
        for field in ("metric", "protocol", "split", "seed", "n"):
            assert str(score[field]) in page


def test_an_interval_is_symmetric_only_where_it_is() -> None:
    score = {"metric": "kNN accuracy", "value": 0.9, "low": 0.88, "high": 0.92, "confidence": 0.95}
    assert (number(score).value, number(score).plus_minus) == ("90.0", "± 2.0")
    assert number(score | {"high": 0.91}).plus_minus == "+1.0 −2.0"
    assert number(score).interval == "95 % interval 88.0 to 92.0"
    assert number({"metric": "kNN accuracy", "value": None}).value == "not finite"
    assert number({"metric": "uniformity", "value": -3.41}).value == "−3.41"


def test_short_numbers_keep_three_digits() -> None:
    assert [short(v) for v in (None, 0.0, 0.0007, 3.14159, 12345.6)] == [
        "–",
        "0",
        "0.0007",
        "3.14",
        "12,346",
    ]


def test_names_of_a_run_never_become_markup(tmp_path: Path) -> None:
    classes = [HOSTILE, "<img src=x onerror=alert(2)>", "a & b", "\u2028", *"456789"]
    run = write_run(tmp_path / "<b>run", classes=classes)
    data = json.loads((run / "recipe.json").read_text())
    data["command"] = data["recipe"]["<i>key"] = HOSTILE
    (run / "recipe.json").write_text(json.dumps(data))
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b>run" not in page and "<i>key" not in page
    assert "\u2028" not in re.findall(r'id="data">(.*?)</script>', page, flags=re.DOTALL)[0]
    assert page.count("<script") == page.count("</script>") == 3


def test_json_in_a_script_element_holds_no_markup_and_reads_back() -> None:
    value = {"a": "</script><!--", "b": "\u2028&"}
    block = str(json_block(value))
    assert not set("<>&\u2028") & set(block)
    assert json.loads(block) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        json_block(float("nan"))


def test_a_half_written_run_says_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", state="failed", reason="the loss became NaN at step 120")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[50] = lines[50].replace('"loss": ', '"loss": NaN, "loss_before": ')
    (run / "metrics.jsonl").write_text("\n".join(lines)[:-30])
    (run / "diagnosis.json").write_text('{"verdict": [')
    (run / "evaluation.json").unlink()
    (run / "pictures.npz").write_bytes((run / "pictures.npz").read_bytes()[:5000])
    said = " | ".join(notice.sentence for notice in read_run(run).notices)
    assert "failed at epoch 12 of 20: the loss became NaN at step 120" in said
    assert "last line of metrics.jsonl is cut off" in said
    assert "loss was not finite in 1 of 131 records, first at step 51" in said
    assert "diagnosis.json is damaged" in said
    assert "evaluation.json is missing" in said
    assert "pictures.npz is damaged" in said
    page = write_report([run]).read_text()
    assert "No map was drawn" in page and "has not been evaluated" in page


@pytest.mark.parametrize("left", ["recipe.json"])
def test_a_run_that_has_only_its_recipe_still_renders(tmp_path: Path, left: str) -> None:
    run = write_run(tmp_path / "run")
    for file in run.iterdir():
        if file.name != left:
            file.unlink()
    assert "No verdict in this run folder" in write_report([run]).read_text()


def test_one_damaged_picture_leaves_the_others(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    arrays = dict(np.load(run / "pictures.npz"))
    arrays["map_thumb"] = arrays["map_thumb"][:-1]
    arrays["views"] = arrays["views"].astype(np.float32)
    arrays["confusion"] = np.array([{"an": "object"}], dtype=object)
    np.savez(run / "pictures.npz", **arrays)
    read = read_run(run)
    assert (
        read.pictures.map is None
        and read.pictures.views is None
        and read.pictures.confusion is None
    )
    assert read.pictures.neighbours is not None
    said = " | ".join(notice.sentence for notice in read.notices)
    assert "map_thumb" in said and "views is float32" in said and "confusion is damaged" in said
    write_report([run])


def test_a_run_without_labels_says_so_where_labels_are_needed(tmp_path: Path) -> None:
    page = write_report([write_run(tmp_path / "run", labelled=False)]).read_text()
    assert "No labels, so no tolerance." in page
    assert "No labels, so the points have one colour" in page
    assert "No labels or no evaluation, so no confusions." in page


def test_a_resumed_step_counts_once_as_recorded_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 220, "epoch": 20.0, "loss": 1.5}) + "\n")
    loss = read_run(run).curves["loss"]
    assert len(loss.step) == 220 and loss.last == 1.5


def test_what_is_no_run_is_refused_by_name(tmp_path: Path, run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"no recipe\.json"):
        write_report([tmp_path])
    with pytest.raises(ValueError, match="no run folder given"):
        write_report([])
    (tmp_path / "recipe.json").write_text('{"format": 2, "contrapose": "9.0"}')
    with pytest.raises(
        ValueError, match=r"format 2, written by contrapose 9\.0.*reads format 1: install"
    ):
        write_report([run, tmp_path])
    (tmp_path / "recipe.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"recipe\.json is damaged"):
        write_report([tmp_path])


def test_several_runs_show_where_their_recipes_differ(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "digits-b", temperature=0.1)
    runs = [read_run(run), read_run(other)]
    differing = {row.name: row.cells for row in compare_recipes(runs) if row.differs}
    assert differing == {"recipe.loss.temperature": ("0.5", "0.1")}
    assert len(compare_scores(runs)) == 4
    assert all(None not in row.cells for row in compare_scores(runs))
    page = write_report([run, other], tmp_path / "both.html").read_text()
    assert "2 runs, side by side" in page and "1 of " in page


def test_scores_of_another_split_are_another_line(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "run")
    scores = json.loads((other / "evaluation.json").read_text())
    scores[0]["split"] = "train"
    (other / "evaluation.json").write_text(json.dumps(scores))
    rows = compare_scores([read_run(run), read_run(other)])
    assert sum(None in row.cells for row in rows) == 2


def test_a_constant_is_drawn_with_room_in_proportion_to_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=40)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"temperature": 0.2} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = {p.id: p for p in training_panels([read_run(run)])}
    assert panels["temperature"].figure["layout"]["yaxis"]["range"] == pytest.approx([0.1, 0.3])
    assert "range" not in panels["uniformity"].figure["layout"]["yaxis"]
    assert "part_size" not in panels  # nothing was recorded, and nothing is missed


def test_scores_of_another_set_stand_under_its_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=40)
    scores = json.loads((run / "evaluation.json").read_text())
    scores[0] |= {"value": 0.123, "low": 0.1, "high": 0.15, "split": "cifar, test"}
    (run / "evaluation-cifar.json").write_text(json.dumps(scores[:1]))
    read = read_run(run)
    assert len(read.scores) == 4 and [*read.others] == ["cifar"]
    page = write_report([run]).read_text()
    assert page.index("another set: cifar") < page.index("12.3") < page.index('id="training"')


def test_a_diagnosis_of_another_set_stands_under_its_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", points=40)
    found = json.loads((run / "diagnosis.json").read_text())
    found["verdict"][0]["sentence"] = "<b>Nothing</b> is readable of these."
    found["signals"] = {"uniformity": -1.2345}
    (run / "diagnosis-cifar.json").write_text(json.dumps(found))
    (run / "diagnosis-broken.json").write_text("[3, ")
    read = read_run(run)
    assert [*read.others] == ["broken", "cifar"] and read.others["cifar"].scores is None
    assert any("diagnosis-broken.json is damaged" in n.sentence for n in read.notices)
    page = write_report([run]).read_text()
    start = page.index("another set: cifar")
    said = page.index("&lt;b&gt;Nothing&lt;/b&gt; is readable")
    assert start < said < page.index("Not evaluated on this set", said) < page.index("−1.23")


def test_runs_that_differ_by_seed_alone_are_one_line_with_mean_and_deviation(
    tmp_path: Path,
) -> None:
    runs = [write_run(tmp_path / f"seed{s}", seed=s, points=40) for s in range(3)]
    for run, value in zip(runs, (0.90, 0.94, 0.92), strict=True):
        scores = json.loads((run / "evaluation.json").read_text())
        scores[0] |= {"value": value, "low": value - 0.02, "high": value + 0.02}
        (run / "evaluation.json").write_text(json.dumps(scores))
    other = write_run(tmp_path / "warm", temperature=0.9, points=40)
    found = over_seeds([read_run(run) for run in [*runs, other]])
    assert [names for names, _ in found] == ["seed0, seed1, seed2"]
    row = next(r for r in found[0][1] if r.metric == "linear probe accuracy on h")
    assert (row.mean[:4], row.deviation[:3], row.seeds) == ("92.0", "2.0", 3)
    assert "Over seeds: seed0, seed1, seed2" in write_report(runs, tmp_path / "x.html").read_text()


def test_two_runs_on_the_same_images_have_a_difference_tested_in_pairs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, points=40) for name in "ab"]
    right = np.arange(360) < 340
    for run, of in zip(runs, (right, right & (np.arange(360) > 11)), strict=True):
        scores = json.loads((run / "evaluation.json").read_text())
        scores[0] |= {"images": "1f3c", "right": paired.packed(of), "value": float(of.mean())}
        (run / "evaluation.json").write_text(json.dumps(scores))
    notes = [row.note for row in compare_scores([read_run(run) for run in runs])]
    assert notes[0].startswith("first less second +3.3 points (")
    assert notes[0].endswith("p = 0.00049") and notes[1:] == ["", "", ""]  # 2 / 2^12


def test_a_class_has_one_identity_in_every_run(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", classes=["cat", "dog"])),
        read_run(write_run(tmp_path / "b", classes=["dog", "owl"])),
    ]
    classes = Classes(runs)
    assert [c.name for c in classes.all] == ["cat", "dog", "owl"]
    assert classes.of(0, np.array([0, 1, -1])).tolist() == [0, 1, -1]
    assert classes.of(1, np.array([0, 1, -1])).tolist() == [1, 2, -1]


def test_a_sprite_keeps_its_pixels_or_its_budget() -> None:
    random = np.random.default_rng(0)
    glyphs = np.kron(random.integers(0, 2, (50, 4, 4, 1)), np.full((1, 2, 2, 1), 255)).astype(
        np.uint8
    )
    exact = sprite(glyphs, budget=100_000)
    assert exact.uri.startswith("data:image/png") and exact.columns * exact.rows >= 50
    assert exact.position(0) == "0% 0%"
    photos = random.integers(0, 256, (400, 32, 32, 3)).astype(np.uint8)
    assert len(sprite(photos, budget=150_000).uri) < 150_000 * 4 / 3 + 100


def test_runs_of_one_folder_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", points=40) for parent in ("a", "b")]
    page = write_report(runs, tmp_path / "page.html").read_text()
    assert str(runs[0]) in page and f"</span>{runs[1]}</h3>" in page


@pytest.mark.parametrize("odd", [5, "x", [], [{"a": [1]}], {"a": [1]}, None])
def test_values_of_an_unexpected_kind_still_render(tmp_path: Path, odd: object) -> None:
    run = write_run(tmp_path / "run", points=40)
    top = json.loads((run / "recipe.json").read_text())
    data = dict.fromkeys(top["data"], odd)
    (run / "recipe.json").write_text(json.dumps(top | {"data": data, "command": odd}))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(dict.fromkeys(status, odd)))
    (run / "environment.json").write_text(json.dumps(odd))
    score = {"metric": odd, "value": odd, "low": odd, "high": odd, "n": odd}
    (run / "evaluation.json").write_text(json.dumps([score, odd]))
    said = {"state": odd, "level": odd, "sentence": odd, "evidence": odd}
    (run / "diagnosis.json").write_text(json.dumps({"verdict": [said, odd], "signals": {"a": odd}}))
    write_report([run])
    write_report([run, run], tmp_path / "both.html")
