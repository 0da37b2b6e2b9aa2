"""Opens the pages of `report`, `compare` and `watch` in Chromium: python check_pages.py PROGRAM FOLDER [CHROMIUM]

Trains small runs in FOLDER, looks at their pages wide and narrow, light and dark, and leaves pictures there. Ends with an
error where a page logs an error, asks for anything from elsewhere, is wider than the window, has text of too little contrast,
or does not follow a run that trains. Needs `pip install playwright` and Debian's chromium.
"""

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

PROGRAM, FOLDER = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
CHROMIUM = sys.argv[3] if len(sys.argv) > 3 else "/usr/bin/chromium"

# Every text on the page whose contrast with what lies behind it is below 4.5 (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const f = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = parse(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(text + ": " + ratio.toFixed(2));
  }
  return found;
}"""


def run(*words):
    return subprocess.run([PROGRAM, *words], cwd=FOLDER, check=True, capture_output=True, text=True).stdout


def train(name, *words, steps=120):
    common = ["--steps", str(steps), "--set", "train.grid_interval=40", "--log-interval", "10", "--quiet"]
    run("train", "--out", f"runs/{name}", *common, *words)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


def open_page(browser, address, width, scheme, **options):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page = context.new_page()
    page.problems, page.asked = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    return page


def look(browser, address, name, own):
    """Looks at a page in all its forms."""
    for width in (1400, 390):
        for scheme in ("light", "dark"):
            what = f"{name}, {width} pixels, {scheme}"
            page = open_page(browser, address, width, scheme)
            page.wait_for_selector("figure svg")
            wide = page.evaluate("document.scrollingElement.scrollWidth")
            check(wide <= width, f"{what}: no wider than the window ({wide})")
            check(not page.problems, f"{what}: nothing in the console {page.problems}")
            foreign = [url for url in page.asked if not url.startswith(own)]
            check(not foreign, f"{what}: nothing asked for from elsewhere {foreign}")
            poor = page.evaluate(CONTRAST)
            check(not poor, f"{what}: contrast of all text {poor}")
            unnamed = page.evaluate(
                "[...document.querySelectorAll('img:not([alt]), svg:not([aria-label]):not([aria-hidden])')].length"
            )
            check(unnamed == 0, f"{what}: every picture has words")
            page.screenshot(path=FOLDER / f"{name}-{width}-{scheme}.png", full_page=True)
            page.context.close()


def slide(browser, address):
    """Moves the slider of the grids by keys."""
    page = open_page(browser, address, 1400, "light")
    shown = "[...document.querySelectorAll('.grids img')].filter((img) => !img.hidden).map((img) => img.dataset.step)"
    last = page.evaluate(shown)
    page.focus("#step")
    page.keyboard.press("Home")
    first = page.evaluate(shown)
    check(first == ["40"] * len(last) and last == ["120"] * len(last), f"keys move the slider: {last} to {first}")
    check(page.text_content("output") == "40", "the slider says its step")
    page.context.close()


def get(port, path, host="localhost"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host})
    return connection.getresponse().status


def served_within(port, seconds):
    """Whether the page comes within so many seconds. Until the server has seen that the others left, it refuses."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return get(port, "/") == 200
        except OSError:
            continue
    return False


def watched(browser, port):
    """A run that trains is followed; what is not for others is refused."""
    tricks = ["/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/grid/../../config.toml", "/grid/..%2fx/1", "/log/a"]
    check([get(port, path) for path in tricks] == [404] * len(tricks), "paths that lead out lead nowhere")
    check(get(port, "/", "evil.example") == 403 and get(port, "/", "localhost:1234") == 200, "a foreign host is refused")
    trainer = subprocess.Popen(
        [PROGRAM, "train", "--out", "runs/live", "--steps", "100000", "--log-interval", "5", "--quiet"]
        + ["--set", "train.grid_interval=20"],
        cwd=FOLDER,
    )
    try:
        follow(browser, port, trainer)
    finally:
        trainer.kill()


def follow(browser, port, trainer):
    # The page's policy forbids what waits for its conditions.
    page = open_page(browser, f"http://127.0.0.1:{port}", 1400, "light", bypass_csp=True)
    page.wait_for_function("document.body.innerText.includes('running, of 100 000 steps')", timeout=60_000)
    page.wait_for_function("document.querySelectorAll('.grids figure').length === 3", timeout=60_000)
    live = "find((part) => part.innerText.includes('live'))"
    step = f"Number([...document.querySelectorAll('tbody tr')].{live}.cells[2].innerText.replace(' ', ''))"
    grid = f"[...document.querySelectorAll('.grids figure')].{live}.querySelector('.at').innerText"
    before = page.evaluate(f"[{step}, {grid}]")
    page.wait_for_function(f"{step} > {before[0]} + 20 && {grid} !== '{before[1]}'", timeout=60_000)
    check(True, "the curve grows and the grid changes")
    page.screenshot(path=FOLDER / "watch-live.png")
    # A page that is open may be refused as well, and its browser would log it.
    check(not page.problems, f"watch: nothing in the console {page.problems}")
    page.goto("about:blank")
    crowd(port, trainer)
    trainer.send_signal(signal.SIGTERM)
    trainer.wait()
    page.goto(f"http://127.0.0.1:{port}")
    page.wait_for_function("document.body.innerText.includes('stopped; the same command resumes it')", timeout=30_000)
    page.context.close()


def crowd(port, trainer):
    """As many connections as the server can be asked for, while a run trains."""
    sockets = []
    for _ in range(1000):
        try:
            sockets.append(socket.create_connection(("127.0.0.1", port), timeout=1))
        except OSError:
            break
    for one in sockets:
        one.close()
    check(served_within(port, 10), f"the page is served again after {len(sockets)} connections")
    check(trainer.poll() is None, "the run trains on")


def long_runs():
    """Ten runs of 500 000 steps, by their logs."""
    import math
    import random

    template = (FOLDER / "runs/base/progress.csv").read_text().splitlines()
    names, values = template[0].split(","), template[-1].split(",")
    settings = (FOLDER / "runs/base/config.toml").read_text()
    for number in range(10):
        place = FOLDER / "long" / f"run{number}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.toml").write_text(settings)
        draw = random.Random(number)
        rows = []
        for step in range(10, 500_001, 10):
            row = dict(zip(names, values, strict=False))
            row["step"], row["loss"] = str(step), repr(0.1 + math.exp(-step / 5e4) * draw.uniform(0.5, 1))
            rows.append(",".join(row[name] for name in names))
        (place / "progress.csv").write_text("\n".join([template[0], *rows, ""]))


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not (FOLDER / "runs/ip").exists():
        train("base", "--gamma", "0", "--evaluation-interval", "60", "--evaluation-images", "20")
        train("ip", "--gamma", "0.1", "--evaluation-interval", "60", "--evaluation-images", "20")
        few = ["--sampler", "ddim", "--timestep-respacing", "5", "--num-samples", "20", "--quiet"]
        run("bias", "--checkpoint", "runs/ip", "--out", "runs/ip/bias", *few)
    run("report", "runs/base", "runs/ip", "--out", "report.html")
    run("report", "runs/ip", "--out", "one.html")
    ways = "[[sample]]\nsampler = 'ddim'\nsteps = [5, 10]\nimages = 50\n"
    variants = "".join(f"[[variant]]\nname = '{name}'\nrun = 'runs/{name}'\n" for name in ("base", "ip"))
    bias = "[bias]\nsampler = 'ddim'\nsteps = 5\nimages = 20\n"
    (FOLDER / "plan.toml").write_text(variants + ways + bias)
    run("compare", "plan.toml")
    long_runs()
    server = subprocess.Popen([PROGRAM, "watch", "runs", "--port", "0"], cwd=FOLDER, stdout=subprocess.PIPE, text=True)
    large = subprocess.Popen([PROGRAM, "watch", "long", "--port", "0"], cwd=FOLDER, stdout=subprocess.PIPE, text=True)
    try:
        port, large_port = (int(re.search(r":(\d+) \(", s.stdout.readline()).group(1)) for s in (server, large))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            report = (FOLDER / "report.html").resolve().as_uri()
            look(browser, report, "report", ("file:", "data:"))
            look(browser, (FOLDER / "one.html").resolve().as_uri(), "one", ("file:", "data:"))
            look(browser, (FOLDER / "plan/index.html").resolve().as_uri(), "compare", ("file:", "data:"))
            slide(browser, report)
            own = (f"http://127.0.0.1:{port}/", "data:")
            look(browser, f"http://127.0.0.1:{port}/", "watch", own)
            watched(browser, port)
            began = time.monotonic()
            page = open_page(browser, f"http://127.0.0.1:{large_port}", 1400, "light")
            page.wait_for_selector("figure svg")
            print(f"ten runs of 500 000 steps: the page opened in {time.monotonic() - began:.2f} s")
            points = page.evaluate("Math.max(...[...document.querySelectorAll('polyline')].map((l) => l.points.length))")
            check(100 < points <= 400, f"long series are thinned ({points} points)")
            browser.close()
    finally:
        for process in (server, large):
            process.send_signal(signal.SIGINT)
            process.wait()


main()
