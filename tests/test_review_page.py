"""The review in a real browser: keys, filter, reload, undo, download, `apply`; names are text, whatever stands in them."""

import io
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cleaning import Issue, Labelled, folder, judged, picture

from nlt.cleaning import apply, write_output

SCRIPT = "<script>alert(1)</script>"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def odd_folder(tmp_path: Path) -> Labelled:
    """A class whose name would be a script, were it not escaped; / cannot stand in a folder's name."""
    name = "<script>alert(1)<\\script>"
    paths = [
        f"{c}/{i}{n}.png"
        for c in ("cat", "dog", name)
        for i in range(8)
        for n in ("", "<img src=x onerror=alert(2)>")[: 1 + (i == 0)]
    ]
    data = folder(tmp_path / "photos", paths)
    return Labelled(**{**vars(data), "classes": tuple(SCRIPT if c == name else c for c in data.classes)})


def write(tmp_path: Path, data: Labelled, **more: object) -> Path:
    out = tmp_path / "photos.nlt"
    wrong = {"cat/0.png": "dog", "cat/1.png": SCRIPT, "dog/2.png": "cat", "dog/3.png": "cat", data.names[-1]: "cat"}
    p = {"cat/0.png": 0.99, "cat/1.png": 0.98, "dog/2.png": 0.97, "dog/3.png": 0.96, data.names[-1]: 0.95}
    issues = [Issue("duplicate", (1, 2), f"1 and 2 are the same image, labelled {SCRIPT}")]
    write_output(out, data, judged(data, wrong, p), issues, sample=9, review=15, **more)
    return out


def test_names_cannot_break_out_of_the_page(tmp_path):
    page = (write(tmp_path, odd_folder(tmp_path)) / "report.html").read_text()
    assert page.count("<script") == 2 and page.count("</script>") == 2  # the data's and ours
    assert "<img src=x" not in page
    found = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert SCRIPT in found["classes"] and len(found["review"]) == 15 and len(found["sample"]) == 9


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    page = (write(tmp_path, odd_folder(tmp_path)) / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(?!data:)(https?:|//)|@import|url\(""", page)
    assert "default-src 'none'" in page and "innerHTML" not in page


def test_the_page_of_many_classes_lists_pairs_instead_of_a_map(tmp_path):
    data = folder(tmp_path / "photos", [f"c{k:02}/1.png" for k in range(40)])
    write_output(tmp_path / "out", data, judged(data, {"c00/1.png": "c39"}))
    page = (tmp_path / "out/report.html").read_text()
    assert "confused most often" in page and 'class="heat"' not in page


# ---- in the browser ----


@pytest.fixture
def browser(tmp_path):
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e .[dev]")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1360,900",
        "--no-proxy-server",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []
    finally:
        driver.quit()


def press(browser, keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def text(browser, element: str) -> str:
    return browser.find_element("id", element).get_attribute("textContent")


def click(browser, element: str) -> None:
    browser.find_element("id", element).click()


def downloaded(browser, tmp_path: Path) -> Path:
    file = tmp_path / "downloads" / "decisions.csv"
    file.unlink(missing_ok=True)
    click(browser, "download")
    deadline = time.monotonic() + 20
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return file


def shoot(browser, name: str) -> None:
    folder = Path("/tmp/shots")
    if folder.is_dir():
        browser.save_screenshot(str(folder / f"{name}.png"))


@pytest.mark.slow
def test_a_review_from_the_first_key_to_the_clean_data_set(browser, tmp_path):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    data = odd_folder(tmp_path)
    out = write(tmp_path, data)
    browser.get((out / "report.html").as_uri())
    assert text(browser, "count-review") == "0/15"
    click(browser, "tab-review")
    assert (text(browser, "path"), text(browser, "given"), text(browser, "suggested")) == ("cat/0.png", "cat", "dog")
    press(browser, "k")
    assert (text(browser, "path"), text(browser, "suggested")) == ("cat/1.png", SCRIPT)
    press(browser, "s")
    assert text(browser, "path") == "dog/2.png"
    press(browser, "o")
    assert browser.find_element("id", "picker").is_displayed()
    assert [b.text for b in browser.find_elements("css selector", "#choices button")] == [SCRIPT, "cat"]
    press(browser, "script" + Keys.ENTER)
    assert text(browser, "path") == "dog/3.png"
    press(browser, "u")
    press(browser, "x")  # the last of the five
    assert text(browser, "count-review") == "5/15" and "5 of 15" in text(browser, "progress")
    shoot(browser, "test-review")

    press(browser, "z")
    assert text(browser, "count-review") == "4/15" and text(browser, "path") == data.names[-1]
    press(browser, Keys.ARROW_LEFT)
    assert text(browser, "path") == "dog/3.png"
    press(browser, Keys.HOME)
    assert text(browser, "path") == "cat/0.png"
    press(browser, Keys.ARROW_RIGHT)
    assert text(browser, "path") == "cat/1.png"

    pairs = Select(browser.find_element("id", "pair"))
    assert [option.text for option in pairs.options][:2] == ["all (15)", "cat (9)"] or len(pairs.options) > 4
    pairs.select_by_visible_text("dog → cat (2)")
    assert len(browser.find_elements("css selector", ".tile")) == 2 and text(browser, "path") == "dog/2.png"
    click(browser, "open-only")
    assert len(browser.find_elements("css selector", ".tile")) == 0
    click(browser, "open-only")

    browser.refresh()
    assert text(browser, "count-review") == "4/15"
    click(browser, "tab-review")
    assert text(browser, "path") == data.names[-1]  # goes on where the first undecided one is
    press(browser, "kz")  # undo reaches back to before the reload
    press(browser, "z")
    assert text(browser, "count-review") == "3/15" and text(browser, "path") == "dog/3.png"
    press(browser, "u")

    click(browser, "tab-sample")
    names = json.loads((out / "manifest.json").read_text())["sample"]["names"]
    decided = {"cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png"}
    assert text(browser, "path") == next(name for name in names if name not in decided)
    assert not browser.find_element("id", "suggested").is_displayed()
    press(browser, "s")  # nothing is suggested here
    already = len(decided & set(names))
    assert text(browser, "count-sample") == f"{already}/9"
    press(browser, "k" * (9 - already))
    assert text(browser, "count-sample") == "9/9"

    file = downloaded(browser, tmp_path)
    found = pd.read_csv(file, dtype=str, keep_default_na=False)
    decided_now = found["decision"] != ""  # what was undone and not said anew is told, too
    assert list(found.columns) == [
        "path",
        "sha256",
        "given_label",
        "decision",
        "label",
        "tab",
        "time",
        "reviewer",
        "result",
    ]
    said = {
        path: (decision, label, tab)
        for path, decision, label, tab in zip(*(found[c] for c in ("path", "decision", "label", "tab")), strict=True)
    }
    assert said["cat/0.png"] == ("keep", "cat", "review") and said["cat/1.png"] == ("relabel", SCRIPT, "review")
    assert said["dog/2.png"] == ("relabel", SCRIPT, "review") and said["dog/3.png"] == ("unsure", "", "review")
    assert sum(tab == "sample" for _, _, tab in said.values()) == 9 - already
    applied = apply(out, [file])
    assert (applied.relabelled, applied.unsure, applied.sample_answered) == (2, 1, 9)
    assert applied.rate is not None and applied.suggestions_right == 1

    browser.execute_script("localStorage.clear()")
    browser.refresh()
    assert text(browser, "count-review") == "0/15"
    click(browser, "tab-review")
    browser.find_element("id", "load").send_keys(str(file))
    assert f"{decided_now.sum()} decisions taken" in text(browser, "notice")
    assert text(browser, "count-sample") == "9/9"
    again = pd.read_csv(downloaded(browser, tmp_path), dtype=str, keep_default_na=False)
    assert again.equals(found)


@pytest.mark.slow
def test_what_is_undone_is_taken_back_where_it_was_applied(browser, tmp_path):
    data = odd_folder(tmp_path)
    out = write(tmp_path, data)
    browser.get((out / "report.html").as_uri())
    click(browser, "tab-review")
    press(browser, "kkx")
    assert apply(out, [downloaded(browser, tmp_path)]).decided == 3
    press(browser, "z")
    assert text(browser, "path") == "dog/2.png" and text(browser, "count-review") == "2/15"
    assert len(browser.find_elements("css selector", ".mark")) == 2
    click(browser, "open-only")
    assert text(browser, "path") == "dog/2.png"  # undecided, as it was before
    click(browser, "open-only")
    file = downloaded(browser, tmp_path)
    applied = apply(out, [file])
    assert (applied.decided, applied.kept, applied.removed) == (2, 2, 0)

    click(browser, "grid")
    browser.find_element("css selector", "#tile-" + item_of(browser, "cat/0.png")).click()
    press(browser, "x")
    assert apply(out, [downloaded(browser, tmp_path)]).removed == 1
    press(browser, "z")  # back to what was said before, which holds again
    assert text(browser, "count-review") == "2/15"
    latest = downloaded(browser, tmp_path).rename(tmp_path / "latest.csv")
    applied = apply(out, [latest])
    assert (applied.kept, applied.removed) == (2, 0)

    press(browser, "z")  # what is loaded does not come before a later undo of the same person's ...
    assert text(browser, "count-review") == "1/15"
    browser.find_element("id", "load").send_keys(str(latest))
    assert "0 decisions taken" in text(browser, "notice") and text(browser, "count-review") == "1/15"
    told = pd.read_csv(latest, dtype=str, keep_default_na=False).assign(reviewer="bob")
    told.to_csv(tmp_path / "bob.csv", index=False)
    browser.find_element("id", "load").send_keys(str(tmp_path / "bob.csv"))  # ... and an undo hides nobody else's
    assert "1 decisions taken" in text(browser, "notice") and text(browser, "count-review") == "2/15"


def item_of(browser, name: str) -> str:
    return str(browser.execute_script("return data.ids.indexOf(arguments[0])", name))


@pytest.mark.slow
def test_what_is_loaded_must_be_about_this_result(browser, tmp_path):
    out = write(tmp_path, odd_folder(tmp_path))
    browser.get((out / "report.html").as_uri())
    click(browser, "tab-review")
    for content, sentence in [
        ("a,b\n1,2\n", "no columns path and decision"),
        ("path,decision,result\ncat/0.png,keep,beef\n", "about another result"),
        ((out / "labels.csv").read_text(), "nlt's own table"),
        (
            'path,given_label,decision,label\ncat/0.png,cat,relabel,fox\n"x""y",cat,keep,\ncat/1.png,cat,keep,cat\n',
            "1 decisions taken, 2 not about",
        ),
    ]:
        (tmp_path / "d.csv").write_text(content)
        browser.find_element("id", "load").send_keys(str(tmp_path / "d.csv"))
        assert sentence in text(browser, "notice")
    assert text(browser, "count-review") == "1/15"


@pytest.mark.slow
def test_every_button_does_what_its_key_does_and_tabs_obey_arrows(browser, tmp_path):
    from selenium.webdriver import Keys

    out = write(tmp_path, odd_folder(tmp_path))
    browser.get((out / "report.html").as_uri())
    browser.find_element("id", "tab-overview").send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element("id", "work").is_displayed()
    for key, mark in (("k", "kept"), ("s", f"→ {SCRIPT}"), ("x", "removed"), ("u", "unsure")):
        browser.find_element("css selector", f"[data-key={key}]").click()
        marks = [m.get_attribute("textContent") for m in browser.find_elements("css selector", ".mark")]
        assert marks[-1] == mark
    browser.find_element("css selector", "[data-key=z]").click()
    assert text(browser, "count-review") == "3/15"
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('button, input, select')].filter(e => !e.textContent.trim()"
        " && !e.getAttribute('aria-label') && !(e.labels && e.labels.length)).map(e => e.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.slow
def test_five_thousand_pictures_open_and_move_fast(browser, tmp_path, monkeypatch):
    """Only what is in view is in the document. The bars are loose: they fail where all 5,000 are."""
    names = [f"{'cat' if i % 2 else 'dog'}/{i}.jpg" for i in range(5000)]
    noise = np.random.RandomState(0)
    first = folder(tmp_path / "photos", ["cat/a.png", "dog/b.png"])
    big = Labelled(first.source, "folder", ("cat", "dog"), np.array([int(n[:3] == "dog") for n in names]), tuple(names),
                   tuple(noise.bytes(32) for _ in names))  # fmt: skip

    def pictures(data: Labelled, rows: list[int], side: int = 160) -> list[bytes]:
        found = []
        for row in rows:
            buffer = io.BytesIO()
            picture(int(row), 96).save(buffer, "JPEG")
            found.append(buffer.getvalue())
        return found

    monkeypatch.setattr("nlt.cleaning.output.thumbnails", pictures)
    p = {name: float(v) for name, v in zip(names, noise.rand(5000), strict=True)}
    write_output(tmp_path / "out", big, judged(big, p=p), export="csv", review=5000)
    page = tmp_path / "out" / "report.html"
    browser.get(page.as_uri())
    load = browser.execute_script("const t = performance.getEntriesByType('navigation')[0]; return t.loadEventStart")
    click(browser, "tab-review")
    opened = browser.execute_async_script(
        "const done = arguments[0], t = performance.now(); open_tab('sample'); open_tab('review');"
        "requestAnimationFrame(() => setTimeout(() => done(performance.now() - t)))"
    )
    key = browser.execute_script(
        "const t = performance.now(); for (let i = 0; i < 50; i++) decide('keep', 'cat'); return (performance.now() - t) / 50"
    )
    browser.execute_script("el('grid').scrollTop = 60000")
    time.sleep(0.3)
    tiles = len(browser.find_elements("css selector", ".tile"))
    print(
        f"page {page.stat().st_size / 2**20:.0f} MiB, load {load:.0f} ms, tab {opened:.0f} ms, a key {key:.1f} ms, {tiles} tiles"
    )
    assert text(browser, "count-review") == "50/5000"
    assert 10 < tiles < 200 and load < 15_000 and key < 200
