"""The gallery as a reader sees it: in Chromium, against the project's own rasterizer."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from browser import CHROMIUM, SOFTWARE_WEBGL, needs_browser, picture_in, saved, settle
from conftest import files
from pictures import decibels

from jobs import cli, gallery, generate
from models.rasterize import WHOLE, rasterize, to_uint8
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset

AGREES = 48.0  # dB; SwiftShader's float32 reaches 70
SMALL = {"width": 340, "height": 540}
# A plan with a slash in it is refused, so that what closes an element can come by the title alone.
HARM = "<script>window.harmed = true</script><img src=x onerror='window.harmed = true'>"
TITLE = f"</script>{HARM}"


def command(splats: Path, out: Path, *more: str) -> int:
    return cli.run(gallery.Options, gallery.main, ["--splats", str(splats), "--out", str(out), *more])


@pytest.fixture(scope="module")
def splats(ray_cluster, tmp_path_factory) -> Path:
    """Three cats of the bundled weights, at a few network calls, in a dataset whose words are meant to do harm."""
    out = tmp_path_factory.mktemp("source") / "<img src=x onerror=window.harmed=1>"
    options = ["--out", str(out), "--count", "3", "--seed", "7", "--steps", "3", "--workers", "1"]
    assert cli.run(generate.Options, generate.main, options) == 0
    plan = (out / "plan.json").read_text()
    assert '"early"' in plan
    (out / "plan.json").write_text(plan.replace('"early"', json.dumps(HARM.replace("/", ""))))
    return out


@pytest.fixture(scope="module")
def page_folder(splats, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "gallery"
    assert command(splats, out, "--thumbnail", "64", "--title", TITLE) == 0
    return out


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_WEBGL)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, page_folder):
    """Open the page at an address and in a window; in the end nothing may have complained, nor left the folder."""
    contexts, complaints = [], []

    def open_page(fragment="", base=None, viewport=SMALL, **options):
        base = base or page_folder.as_uri()
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda asked: asked.url.startswith((base, "data:", "blob:")) or complaints.append(asked.url))
        page.goto(f"{base}/index.html{fragment}")
        if fragment:
            settle(page)
        return page

    yield open_page
    for context in contexts:
        assert [page.evaluate("window.harmed") for page in context.pages] == [None] * len(context.pages)
        context.close()
    assert complaints == []


def cat(splats: Path, index: int):
    ((_, field),) = SplatDataset.open(str(splats)).read(Indices.parse(str(index)))
    return field


def assert_agrees(drawn: np.ndarray, field, region=WHOLE, **options) -> None:
    height, width = drawn.shape[:2]
    expected = to_uint8(rasterize(field, height, width, region=region, **options))[0].numpy()
    assert decibels(drawn, expected) >= AGREES


@needs_browser
def test_the_canvas_is_what_the_rasterizer_draws(visit, splats):
    field, page = cat(splats, 1), visit("#cat=1")
    shown = []
    for choices, options in (
        ("Wavelet", {"kernel": "wavelet"}),
        ("Sharp", {"kernel": "sharp"}),
        ("Gaussian", {"kernel": "gaussian"}),
        ("1", {"kernel": "gaussian", "neighbourhood": 1}),
        ("Patches", {"kernel": "gaussian", "neighbourhood": 1, "view": "patches"}),
        ("Depth", {"neighbourhood": 1, "view": "depth"}),
        ("3 × 3", {"view": "depth"}),
        ("Blobs", {"view": "blobs"}),
    ):
        page.get_by_role("radio", name=choices, exact=True).check()
        drawn = picture_in(saved(page))
        assert drawn.shape[0] == drawn.shape[1] >= 150
        assert_agrees(drawn, field, **options)
        shown.append(drawn.tobytes())
    assert len(set(shown)) == len(shown)


@needs_browser
def test_zooming_in_shows_the_same_region_at_every_depth(visit, splats):
    field, page = cat(splats, 0), visit("#cat=0")
    whole = saved(page)
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.45 * box["height"])
    zooms = []
    for _ in range(2):
        page.mouse.wheel(0, -900)
        page.locator("#stage").evaluate("stage => stage.setAttribute('aria-busy', true)")
        settle(page)
        state = {name: float(value) for (name, (value,)) in parse_qs(page.url.partition("#")[2]).items()}
        canvas = saved(page)
        height, width = canvas.shape[:2]
        assert canvas.shape == whole.shape
        assert (canvas != whole).mean() > 0.5
        half = np.array([width, height]) / min(width, height) / state["zoom"] / 2
        centre = np.array([state["x"], state["y"]])
        assert_agrees(picture_in(canvas), field, region=(*(centre - half), *(centre + half)))
        zooms.append(state["zoom"])
    assert zooms[0] > 4
    assert zooms[1] > 25  # less than a third of a patch across: single splats


@needs_browser
def test_pointing_names_the_splat_and_outlines_it(visit, splats):
    page = visit("#cat=2")
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 11, box["y"] + box["height"] / 2 - 23)
    where = page.locator("#readout .where").inner_text()
    row, column, number = (int(x) for x in re.match(r"Row (\d+), column (\d+), splat (\d+): ", where).groups())
    shown = [float(text.replace("−", "-")) for text in page.locator("#readout dd").all_inner_texts()]
    np.testing.assert_allclose(shown, cat(splats, 2)[0, row - 1, column - 1, number - 1].numpy(), atol=6e-4)
    assert page.locator("#outlines .hot").count() == 1
    page.keyboard.press("o")
    assert page.locator("#outlines .every ellipse").count() == 8 * 8 * 16


@needs_browser
def test_keys_and_links_find_every_cat(visit):
    page = visit()
    assert page.locator("#tiles a").count() == 3
    page.wait_for_function("[...document.querySelectorAll('#tiles img')].every(image => image.naturalWidth === 64)")
    page.locator("#tiles a").nth(1).focus()
    for key, cat in (("Up", "1"), ("Down", "1"), ("Right", "2"), ("Left", "1")):  # all tiles are in one row
        page.keyboard.press(f"Arrow{key}")
        assert page.locator("#tiles a:focus").get_attribute("data-cat") == cat
    page.locator("#tiles a").nth(1).click()
    settle(page)
    page.keyboard.press("n")
    page.wait_for_function("document.title.startsWith('Cat 2')")
    page.keyboard.press("n")
    page.wait_for_function("document.title.startsWith('Cat 0')")
    page.keyboard.press("?")
    assert "next kernel" in page.locator("#help").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("#tiles", state="visible")
    page.go_back()
    page.wait_for_function("document.title.startsWith('Cat 0')")


@needs_browser
def test_splats_that_cannot_be_loaded_are_named_and_not_waited_for(visit):
    page = visit("#cat=1")
    page.evaluate("() => { splatcats.load = () => Promise.reject(new Error('The splats are gone')); }")
    page.keyboard.press("n")
    page.wait_for_selector("text=The splats are gone")
    settle(page)


@needs_browser
def test_two_fingers_zoom_and_everything_fits_a_phone(visit):
    page = visit("#cat=0", viewport={"width": 360, "height": 720}, has_touch=True)
    fingers = page.context.new_cdp_session(page)
    for kind, apart in [("touchStart", 20), *(("touchMove", apart) for apart in range(30, 91, 10)), ("touchEnd", 0)]:
        touches = [{"x": 180 + side * apart, "y": 150, "id": side + 1} for side in (-1, 1)] if apart else []
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    page.wait_for_function("parseFloat(document.getElementById('zoom').textContent) > 3")
    for width, height in ((360, 640), (768, 600), (1280, 600)):
        page.set_viewport_size({"width": width, "height": height})
        for part in page.locator("aside button, aside label, #readout").all():
            box = part.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= height


@needs_browser
def test_a_static_server_will_do_and_a_fine_screen_gets_its_pixels(visit, splats, page_folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=page_folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = visit("#cat=2", base=f"http://127.0.0.1:{server.server_port}", device_scale_factor=1.5)
        drawn = picture_in(saved(page))
        stage = page.locator("#stage").bounding_box()
        assert abs(drawn.shape[0] - 1.5 * min(stage["width"], stage["height"])) <= 1
        assert_agrees(drawn, cat(splats, 2))
    finally:
        server.shutdown()


def test_the_dataset_cannot_put_words_into_the_page(page_folder):
    page = (page_folder / "index.html").read_text()
    assert "window.harmed" in page
    assert not re.search(r"<[^>]*harmed", page)


def test_another_run_replaces_a_gallery_and_nothing_else(splats, page_folder, tmp_path, capsys):
    out = tmp_path / "gallery"
    assert command(splats, out, "--thumbnail", "64", "--title", TITLE) == 0
    assert files(out) == files(page_folder)
    (out / "notes.txt").write_text("kept")
    assert command(splats, out, "--thumbnail", "32", "--indices", "1") == 0
    names = {re.sub("content-[0-9a-f]{12}/", "", name) for name in files(out)}
    assert {name for name in names if "cats/" in name} == {"cats/00000001.js", "cats/00000001.webp"}
    assert "notes.txt" in names
    assert len(list(out.glob("content-*"))) == 1

    capsys.readouterr()
    assert command(splats, splats) == 1
    assert "choose another --out" in capsys.readouterr().err
    assert command(splats, out, "--indices", "1-3") == 1
    assert "there is no picture 3" in capsys.readouterr().err
