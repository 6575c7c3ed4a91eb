"""The demo's page as it is served: what it gives to strangers, and all of it in a browser where there is one."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from trocr_jax import cli
from trocr_jax.demo.lines import EXAMPLES, draw_line
from trocr_jax.recognizer import EMBEDDED

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the command serves the page, with two models of one kind."""
    pytest.importorskip("gradio", reason="needs gradio: pip install trocr-jax[demo]")
    home = tmp_path_factory.mktemp("demo")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(home),
        "TMPDIR": str(home),
    }
    environment.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, "-m", "trocr_jax", "demo", "--model", "embedded model", "--model", str(EMBEDDED)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if match := re.search(r"open (http://127\.0\.0\.1:\d+/)", line):
                    break
            else:
                pytest.fail("".join(said))
            [uploads] = home.glob("trocr-jax-demo-*")
            assert uploads.stat().st_mode & 0o077 == 0
            yield match[1]
        finally:
            process.terminate()
            process.communicate()
    assert not uploads.exists()


def status_of(address, content=None):
    request = urllib.request.Request(address, None if content is None else json.dumps(content).encode())
    request.add_header("Content-Type", "application/json")
    with contextlib.closing(_answer(request)) as answer:
        return answer.status, answer.read()


def _answer(request):
    try:
        return urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        return error


def test_nothing_is_downloaded_for_a_visitor():
    gradio = pytest.importorskip("gradio", reason="needs gradio: pip install trocr-jax[demo]")
    from trocr_jax.demo import page

    class Component:
        async def async_move_resource_to_block_cache(self, path):
            return f"kept {path}"

    component = Component()
    page._refuse_addresses(component)
    with pytest.raises(gradio.Error, match="not downloaded"):
        component.async_move_resource_to_block_cache("http://127.0.0.1:9/a.png").send(None)
    with pytest.raises(StopIteration, match=r"kept /a\.png"):
        component.async_move_resource_to_block_cache("/a.png").send(None)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", "pyproject.toml", str(pathlib.Path(cli.__file__)), "/proc/self/environ"],
)
def test_no_file_of_the_machine_is_served(address, path):
    for written in {path, urllib.parse.quote(path, safe=""), urllib.parse.quote(path)}:
        status, body = status_of(f"{address}gradio_api/file={written}")
        assert status in (403, 404)
        assert b"root:" not in body


def upload(address, content):
    """Posts a file as the page does -> (status, the answer)."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(f"{address}gradio_api/upload", head + content + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    with contextlib.closing(_answer(request)) as answer:
        return answer.status, answer.read()


def ask_to_read(address, path):
    """What the server tells somebody who asks it, without the page, to read a file of its own."""
    config = json.loads(status_of(f"{address}config")[1])
    buttons = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    event = next(e["id"] for e in config["dependencies"] if any(buttons.get(i) == "read-one" for i, _ in e["targets"]))
    given = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    session = pathlib.Path(path).stem
    content = {"data": [given, "embedded model", 1, "", "", ""], "fn_index": event, "session_hash": session}
    status_of(f"{address}gradio_api/queue/join", content)
    return status_of(f"{address}gradio_api/queue/data?session_hash={session}")[1].decode()


def test_uploads_are_read_and_no_other_file_of_the_machine(address, tmp_path):
    secret = tmp_path / "secret.png"
    draw_line(EXAMPLES[0]).save(secret)
    status, answer = upload(address, secret.read_bytes())
    assert status == 200
    told = ask_to_read(address, *json.loads(answer))
    assert '"success":true' in told
    assert EXAMPLES[0] in told
    told = ask_to_read(address, secret)
    assert '"success":false' in told
    assert "Total" not in told


def test_uploads_have_a_limit(address):
    assert upload(address, bytes(11_000_000))[0] == 413


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install trocr-jax[test]")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """A function that opens the page for a new visitor; at the end, nothing may have been asked of another host."""
    asked, contexts = [], []

    def visit(width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 850}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#read-one")
        return page

    yield visit
    for context in contexts:
        context.close()
    hosts = {urllib.parse.urlsplit(url).hostname for url in asked if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}


def give(page, path):
    page.set_input_files("#one input[type=file]", str(path))
    page.wait_for_selector("#one img, #one .image-container")


def read(page, button="#read-one"):
    """Presses the button -> the names of the cards that come."""
    page.wait_for_selector("#lines .lines")  # which a new page draws last
    page.evaluate("document.querySelector('#lines .lines').id = 'before'")
    page.click(button)
    page.wait_for_selector("#lines .lines:not(#before)")
    return page.locator("#lines article").all_inner_texts()


def text_of(page):
    return page.locator("#text textarea").input_value()


def save_line(folder, text):
    path = folder / f"{text}.png"
    draw_line(text).save(path)
    return path


def test_a_visitor_reads_an_image_and_saves_the_result(visit, tmp_path):
    page = visit(width=390)
    assert "There is no image yet" in read(page)[0]
    give(page, save_line(tmp_path, "No. 139 KN"))
    [card] = read(page)
    assert text_of(page) == "No. 139 KN"
    assert card.startswith("No. 139 KN.png")
    assert page.locator("#lines .word").count() == 3
    assert page.locator("#lines img").evaluate("image => image.naturalWidth") > 100
    with page.expect_download() as download:
        page.click("#lines a.save")
    content = json.loads(pathlib.Path(download.value.path()).read_text(encoding="utf-8"))
    assert [line["text"] for line in content] == ["No. 139 KN"]
    # Nothing sticks out of a phone's width.
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_example_with_another_model_beams_and_a_constraint(visit):
    page = visit()
    page.locator("#one").locator("xpath=following::table//img | following::button//img").first.click()
    page.wait_for_selector("#one img")
    page.click("#choices button")
    page.click("#model input")
    page.get_by_role("option", name=str(EMBEDDED)).click()
    page.locator("#beams").get_by_label("2", exact=True).check()
    page.locator("#lexicon textarea").fill("Total 31.41 EUR\nTotal 31.42 EUR")
    read(page)
    assert text_of(page) == "Total 31.41 EUR"
    assert page.locator("#lines ol li").all_inner_texts()[1].startswith("Total 31.42 EUR")
    page.locator("#pattern input, #pattern textarea").fill("(")
    [card] = read(page)
    assert "(" in card
    assert text_of(page) == ""


def test_a_bad_file_shows_a_message(visit, tmp_path):
    page, bad = visit(), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    give(page, bad)
    [card] = read(page)
    assert "bad.png is not an image that can be read" in card


def test_several_images_are_read_in_order(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Several").click()
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [save_line(tmp_path, EXAMPLES[1]), tmp_path / "bad.png", save_line(tmp_path, EXAMPLES[0])]
    page.set_input_files("#several input[type=file]", [str(path) for path in paths])
    page.wait_for_selector("#several >> text=bad")
    assert ["cannot be read" in card or "is not an image" in card for card in read(page, "#read-several")] == [
        False, True, False,
    ]  # fmt: skip
    assert text_of(page) == f"{EXAMPLES[1]}\n\n{EXAMPLES[0]}"


@pytest.mark.slow  # Chromium draws without a graphics card
def test_a_drawing_is_read(visit):
    page = visit()
    page.get_by_role("tab", name="Draw").click()
    page.click("#drawing button[aria-label=Brush]")
    box = page.locator("#drawing canvas").first.bounding_box()
    middle, left = box["y"] + box["height"] / 2, box["x"] + box["width"] / 2 - 50
    for x in range(0, 100, 30):
        page.mouse.move(left + x, middle - 25)
        page.mouse.down()
        page.mouse.move(left + x, middle + 25, steps=4)
        page.mouse.up()
    [card] = read(page, "#read-drawing")
    assert card.startswith("drawing")
    assert page.locator("#lines .word").count() >= 1


def test_two_visitors_at_once_get_their_own_texts(visit, tmp_path):
    pages = [visit(), visit()]
    paths = [save_line(tmp_path, text) for text in EXAMPLES[:2]]
    for page, path in zip(pages, paths, strict=True):
        give(page, path)
    for page in pages:
        page.click("#read-one")
    for page, text in zip(pages, EXAMPLES, strict=False):
        page.wait_for_function("document.querySelector('#text textarea').value")
        assert text_of(page) == text
