"""The page in a real browser: draws, filters, re-themes, fits a phone, runs no foreign script."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import CHROMIUM, Reader, browser, reader, sync_api  # noqa: F401
from support.run_folders import write_run

from contrapose.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium on this machine"),
]

HOSTILE = [
    "</script><script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 2'>",
    "a & <b>b</b>",
]


@pytest.fixture(scope="module")
def opened(
    browser: "sync_api.Browser", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Reader, "sync_api.Page"]]:
    """One page in one tab for the tests that leave it as they found it."""
    reader = Reader(browser)
    run = write_run(tmp_path_factory.mktemp("runs") / "digits", points=150)
    yield reader, reader.open(write_report([run]), scheme="dark")
    reader.context.close()


def test_plots_are_drawn_and_a_click_filters_map_and_neighbours(
    opened: tuple[Reader, "sync_api.Page"],
) -> None:
    reader, tab = opened
    plots = tab.locator("[data-figure]")
    assert plots.count() >= 14
    for i in range(plots.count()):
        assert plots.nth(i).locator("path[d], image, .heatmaplayer").count() > 3
    map = tab.locator("[data-figure=map_0]")
    points = map.locator(".scatterlayer .trace:last-child path.point")
    queries = tab.locator(".query:visible")
    assert (points.count(), queries.count()) == (150, 12)
    chip = tab.locator(".chip").nth(6)
    chip.focus()
    tab.keyboard.press("Enter")
    kept = int(chip.locator(".count").inner_text())
    assert (chip.get_attribute("aria-pressed"), points.count()) == ("true", kept)
    assert 0 < queries.count() < 12
    assert tab.locator(".status").first.inner_text() == "Only 6"
    _settle(tab, points.nth(3))
    points.nth(3).hover(force=True)
    tab.wait_for_selector("#peek:visible")
    assert tab.locator("#peek strong").inner_text() == "6"
    assert "data:image/" in tab.locator("#peek .tile").evaluate(
        "e => getComputedStyle(e).backgroundImage"
    )
    tab.locator("#search").fill("3")
    assert tab.locator(".chip:visible").count() == 1
    tab.keyboard.press("Enter")
    assert tab.locator(".status").first.inner_text() == "Only 3"
    tab.locator(".clear").first.click()
    assert (points.count(), queries.count(), tab.locator(".chip:visible").count()) == (150, 12, 10)
    assert (
        tab.locator("[data-title*='hare']").count() == 0
    )  # plotly's "Share chart" would leave the page
    assert reader.trouble == []


def test_the_toggle_changes_page_and_plots(opened: tuple[Reader, "sync_api.Page"]) -> None:
    reader, tab = opened
    line = tab.locator("[data-figure=loss] .scatterlayer .js-line").first

    def colours() -> tuple[str, str]:
        background = tab.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
        return background, line.evaluate("e => getComputedStyle(e).stroke")

    dark = colours()
    tab.get_by_role("button", name="Switch to the light theme").click()
    light = colours()
    assert light[0] == "rgb(255, 255, 255)"
    assert light[0] != dark[0] and light[1] != dark[1]
    tab.get_by_role("button", name="Switch to the dark theme").click()
    assert colours() == dark
    assert reader.trouble == []


def test_a_phone_scrolls_in_one_direction(reader: Reader, tmp_path: Path) -> None:
    name = "a_class_name_that_is_much_longer_than_a_phone_is_wide_and_has_no_space"
    run = write_run(tmp_path / "a-run-whose-name-is-long-too", classes=[name] * 10, points=60)
    other = write_run(tmp_path / "other", labelled=False, points=60)
    tab = reader.open(write_report([run, other], tmp_path / "both.html"), width=390)
    assert tab.evaluate("() => document.documentElement.scrollWidth") == 390
    assert tab.evaluate("() => { scrollTo(500, 0); return scrollX; }") == 0
    point = tab.locator("[data-figure=map_0] .scatterlayer .trace:last-child path.point").nth(5)
    _settle(tab, point)
    point.tap(force=True)
    tab.wait_for_selector("#peek:visible")
    assert reader.trouble == []


def test_class_names_are_inert_and_shown_as_written(reader: Reader, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", classes=HOSTILE, points=60, state="interrupted", reason="Ctrl-C"
    )
    (run / "diagnosis.json").unlink()
    tab = reader.open(write_report([run]))
    assert tab.evaluate("() => window.owned") is None
    assert tab.locator("main img").count() == 0
    for i, name in enumerate(HOSTILE):
        assert name in tab.locator(".chip").nth(i).inner_text()
    ticks = tab.locator("[data-figure=confusion_0] .yaxislayer-above text").all_text_contents()
    assert ticks == ["</script><scr…", "<img src=x on…", "a & <b>b</b>"]
    assert "interrupted at epoch 12 of 20: Ctrl-C" in tab.locator(".notice").first.inner_text()
    assert reader.trouble == []


def _settle(tab: "sync_api.Page", element: "sync_api.Locator") -> None:
    """Scroll to `element` and let the scroll event pass, which hides a shown picture."""
    element.scroll_into_view_if_needed()
    tab.evaluate("() => new Promise((go) => requestAnimationFrame(() => setTimeout(go, 50)))")
