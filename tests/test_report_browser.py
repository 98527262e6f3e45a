"""The report as a reader sees it: headless Chromium, a phone's width and a desk's."""

import json
import pathlib

import numpy as np
import pytest

from ss_gan_tf.config import Config
from ss_gan_tf.report import write_report

# Cells that the browser did not lay out, or laid out without a word.
EMPTY_CELLS = """[...document.querySelectorAll("td, thead th:not(:first-child)")]
    .filter(cell => !cell.innerText.trim() || !cell.getClientRects().length).length"""


WIDTHS = 390, 1280  # a phone's and a desk's
ROOT = pathlib.Path(__file__).parents[1]
STUDIES = sorted(ROOT.glob("docs/results/*/study.json"))
PUBLISHED = [path.with_name("report") / "report.html" for path in STUDIES]
assert PUBLISHED


@pytest.fixture
def report(fake_run, tmp_path, monkeypatch):
    """A report of a study of eight runs with every kind of block in it."""

    def draw_panels(shown, split, names, data_dir):
        tile = np.random.default_rng(0).integers(0, 256, [90, 120, 3], np.uint8)
        captions = ["image", "truth", *shown, *(f"{name}: wrong" for name in shown)]
        return {name: [(caption, tile) for caption in captions] for name in names}

    monkeypatch.setattr("ss_gan_tf.panels.draw_panels", draw_panels)
    shares = {"phase1": 0.6, "control": 0.7, "adversarial": 0.8, "fixed": 0.75}
    changes = {"phase1": {"arm": "vgg16"}, "control": {"lambda_adv": 0.0}}
    runs = {}
    for role, share in shares.items():
        for seed in (0, 1):
            name, fields = f"{role}{seed}", changes.get(role, {})
            right = [share, share - 0.1 * seed, 0.5]
            fake_run(name, right, kinds=("test", "val"), seed=seed, **fields)
            runs[name] = {
                "role": role,
                "status": "done",
                "trained": True,
                "metrics": {},
            }
            if role == "fixed":
                runs[name] |= {"role": "adversarial", "variant": role}
    flags = ["--adversarial_weighting=fixed", "--lambda_adv=0.1"]
    settings = {
        "config": json.loads(Config().to_json()),
        "evaluate_flags": [],
        "last_validations": 3,
        "variants": {"fixed": flags},
    }
    study = {"settings": settings, "machine": {}, "runs": runs}
    (tmp_path / "study.json").write_text(json.dumps(study))
    write_report(str(tmp_path / "report"), study_dir=str(tmp_path))
    return tmp_path / "report" / "report.html"


def opened(browser, path, width):
    """A page that is quiet, whole and no wider than its window."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
    pictures = page.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(pictures) > 10 and min(pictures) > 0
    assert page.locator("table").count() >= 10
    assert page.evaluate(EMPTY_CELLS) == 0
    # Tables scroll in themselves, the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    return page


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parts[-3])
def test_published_pages(browser, path):
    for width in WIDTHS:
        page = opened(browser, path, width)
        assert page.locator("p.strong", has_text="the control").count()
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_at_a_width(browser, report, width):
    page = opened(browser, report, width)
    flags = page.locator("td.flags").all_inner_texts()
    assert flags == ["--adversarial_weighting=fixed\n--lambda_adv=0.1"]  # one a line
    texts = page.locator("p.strong").all_inner_texts()
    assert any("the control" in text for text in texts)
    assert any(text.startswith("Chosen on val: adversarial") for text in texts)


def test_the_page_prints(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    path = pathlib.Path(report.parent, "report.pdf")
    page.pdf(path=str(path))
    assert path.read_bytes().startswith(b"%PDF") and path.stat().st_size > 20_000


def test_the_empty_cell_would_be_found(browser):
    page = browser.new_page()
    page.set_content("<table><tr><td>1</td><td> </td></tr></table>")
    assert page.evaluate(EMPTY_CELLS) == 1
