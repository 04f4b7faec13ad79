"""The page in a real browser: symbols are drawn with the mouse, and told apart.

Needs Gradio, Selenium, Chromium with its driver, and the pretrained run. MAML_SCREENSHOT=FILE keeps a picture of it.
"""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image, ImageDraw

from maml.demo.page import CHARACTERS, PRETRAINED
from tests.command_line import ROOT

pytest.importorskip("gradio", reason="needs Gradio: pip install -r requirements-demo.txt")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)
if not (PRETRAINED / CHARACTERS).is_dir():
    pytest.skip(f"needs pretrained/{CHARACTERS}", allow_module_level=True)

# Strokes in a box of 100×100.
SYMBOLS = [
    [[(20, 20), (80, 80)], [(80, 20), (20, 80)]],
    [[(50, 15), (50, 85)], [(15, 50), (85, 50)]],
    [[(20, 20), (80, 20), (80, 80), (20, 80), (20, 20)]],
    [[(20, 20), (20, 80), (80, 80)]],
    [[(20, 80), (50, 20), (80, 80)], [(35, 55), (65, 55)]],
]
SHAKY = (3, -2, 2, -3, 1, -1, 3, 2, -2)


@pytest.fixture(scope="module")
def address():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "main.py"), "--demo", f"--logdir={PRETRAINED / CHARACTERS}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if found := re.search(r"Open (http://127\.0\.0\.1:\d+)", line):
            yield found[1]
            break
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def browser(address):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1500"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get(address)
    yield driver
    driver.quit()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def draw(browser, box, symbol, shaky=0):
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = until(lambda: browser.find_elements("css selector", f"canvas#{box}"))[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    size, places = min(canvas.size.values()) / 100, iter(SHAKY * 20)
    for line in SYMBOLS[symbol]:
        points = [(size * (x - 50 + shaky * next(places)), size * (y - 50 + shaky * next(places))) for x, y in line]
        chain = ActionChains(browser, duration=30).move_to_element_with_offset(canvas, *map(int, points[0]))
        chain.click_and_hold()
        for point in points[1:]:
            chain.move_to_element_with_offset(canvas, *map(int, point))
        chain.release().perform()


def shot(browser, which=""):
    if os.environ.get("MAML_SCREENSHOT"):
        time.sleep(1)
        browser.save_screenshot(os.environ["MAML_SCREENSHOT"].replace(".png", f"{which}.png"))


def test_symbols_are_drawn_and_told_apart(browser):
    for number in range(len(SYMBOLS)):
        draw(browser, f"pad{number + 1}", number)
    browser.find_element("id", "add").click()
    until(lambda: len(browser.find_elements("css selector", "#seen img")) == 5)
    draw(browser, "query", 2, shaky=1)
    answer = until(lambda: browser.find_elements("id", "answer"))[0].text
    shot(browser)
    assert answer == "symbol 3"
    rows = browser.find_elements("css selector", "#result tr")
    assert len(rows) == 7 and rows[1].text.startswith("before adaptation")


def open_tab(browser, word):
    tabs = "button[role=tab]"
    until(lambda: [tab for tab in browser.find_elements("css selector", tabs) if word in tab.text])[0].click()


def picture_of(symbol, folder, shaky=0):
    """A file with a symbol in black on white, 105 pixels a side as Omniglot's are."""
    image, places = Image.new("L", (105, 105), 255), iter(SHAKY * 20)
    for line in SYMBOLS[symbol]:
        ImageDraw.Draw(image).line([(x + shaky * next(places), y + shaky * next(places)) for x, y in line], 0, 3)
    path = folder / f"{'query' if shaky else 'support'} {symbol + 1}.png"
    image.save(path)
    return str(path)


def test_files_are_classified(browser, tmp_path):
    open_tab(browser, "Your images")
    *classes, queries = until(lambda: browser.find_elements("css selector", "input[type=file]")[-6:])
    for symbol, field in enumerate(classes):
        field.send_keys(picture_of(symbol, tmp_path))
    queries.send_keys("\n".join(picture_of(symbol, tmp_path, shaky=1) for symbol in range(5)))
    until(lambda: all(f"query {symbol}" in browser.page_source for symbol in range(1, 6)))
    [button] = [b for b in browser.find_elements("css selector", "button") if b.text == "Classify"]
    button.click()
    rows = until(lambda: [row.text for row in browser.find_elements("css selector", "table tr") if "%" in row.text])
    shot(browser, "_images")
    assert [re.match(r"query (\d)\.png class (\d) \d+ %", row).groups() for row in rows] == [(n, n) for n in "12345"]


def test_points_are_clicked_and_the_curve_bends(browser):
    from selenium.webdriver.common.action_chains import ActionChains

    open_tab(browser, "curve")
    picture = until(lambda: browser.find_elements("css selector", "#curve img"))[0]
    seen = {picture.get_attribute("src")}
    for across, up in ((-0.3, 0.2), (-0.1, -0.25), (0.2, 0.1)):
        picture = browser.find_element("css selector", "#curve img")
        width, height = picture.size["width"], picture.size["height"]
        ActionChains(browser).move_to_element_with_offset(
            picture, int(across * width), int(up * height)
        ).click().perform()
        now = until(lambda: browser.find_element("css selector", "#curve img").get_attribute("src") not in seen)
        assert now
        seen.add(browser.find_element("css selector", "#curve img").get_attribute("src"))
    shot(browser, "_curve")
