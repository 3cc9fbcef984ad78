"""The pages in a real browser: the report is whole without a network, and MLflow's pages show the
runs.
"""

import html
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hnm.evidence.evaluation import evaluate_rounds
from hnm.evidence.pages.charts import CHARTS
from hnm.evidence.pages.report import Origin, render_report
from hnm.evidence.test_ledger import Looks
from hnm.params import Evaluate
from hnm.slides.cutting.pack import Pack
from tests.support import evidence

pytestmark = pytest.mark.services
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
ORIGIN = Origin(
    Looks(4, 2),
    "# Model card: tiny\n",
    "# Data card: tiny\n",
    [("head@0", "data/scores/0", "0a1b.dir")],
)
LOOK = """<script>addEventListener("load", async () => {
  const charts = [...document.querySelectorAll(".live")];
  const still = document.querySelectorAll(".drawn img")[0];
  const seen = {};
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const empty = (chart) => !chart.querySelector(".scatterlayer .trace");
  for (let waited = 0; waited < 100 && charts.some(empty); waited++) await pause(50);
  seen.broken = [...document.images].filter((image) => !image.naturalWidth).length;
  seen.images = document.images.length;
  const wide = (chart) => chart.getBoundingClientRect().width > 200;
  seen.drawn = charts.filter((chart) => !empty(chart) && wide(chart)).length;
  seen.stills = getComputedStyle(still).display;
  const dead = (link) => !document.getElementById(link.hash.slice(1));
  seen.dead = [...document.links].filter(dead).length;
  const roc = document.getElementById("chart-roc");
  const place = roc.querySelector(".nsewdrag").getBoundingClientRect();
  const { xaxis, yaxis } = roc._fullLayout;
  const [clientX, clientY] = [place.left + xaxis.d2p(0.5), place.top + yaxis.d2p(0.5)];
  const at = { clientX, clientY, bubbles: true };
  roc.querySelector(".nsewdrag").dispatchEvent(new MouseEvent("mousemove", at));
  await pause(300);
  seen.label = roc.querySelector(".hoverlayer .hovertext")?.textContent ?? "none";
  document.title = JSON.stringify(seen);
})</script></body>"""
"""Has the page say in its title what is to be seen on it, once a pointer has stood in the middle of
the ROC curve.
"""


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    if CHROMIUM is None:
        pytest.skip("no Chromium; `make test-services` installs it where it may")
    return [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}"]


@pytest.fixture
def report(tmp_path: Path) -> str:
    evidence.write_packs(tmp_path / "packs")
    evaluation = evaluate_rounds(evidence.cohort(), evidence.rounds(), Evaluate(resamples=100))
    return render_report(
        evaluation, lambda slide_id: Pack(tmp_path / "packs" / f"{slide_id}.h5"), ORIGIN
    )


def test_the_report_opens_without_an_error_and_its_charts_answer(
    browser: list[str], report: str, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(LOOK.join(report.rsplit("</body>", 1)), "utf-8")
    command = [
        *browser,
        "--virtual-time-budget=20000",
        "--dump-dom",
        (tmp_path / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # as of a request, which the page's own policy forbids
    seen = json.loads(html.unescape(done.stdout.split("<title>")[1].split("</title>")[0]))
    label = seen.pop("label")
    assert seen == {
        "broken": 0,
        "images": seen["images"],
        "drawn": len(CHARTS),
        "stills": "none",
        "dead": 0,
    } and seen["images"] > len(CHARTS)
    assert label.startswith(("round 1, from score 0.", "at the threshold 0.550"))


def test_without_scripts_the_still_charts_stay(
    browser: list[str], report: str, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(
        report.replace("script-src 'unsafe-inline'", "script-src 'none'"), "utf-8"
    )
    done = subprocess.run(
        [*browser, "--dump-dom", (tmp_path / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert 'class="plot"' in done.stdout and 'class="plot drawn"' not in done.stdout


@pytest.fixture
def mlflow_pages(tmp_path: Path) -> Iterator[str]:
    """The address of `hnm ui` over an empty repository; the whole process group is ended."""
    (tmp_path / "dvc.yaml").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("DVC", "MLFLOW"))
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "hnm.cli", "ui", "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None, "the server has ended"
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def test_mlflow_s_pages_open_on_loopback(browser: list[str], mlflow_pages: str) -> None:
    done = subprocess.run(
        [*browser, "--virtual-time-budget=15000", "--dump-dom", mlflow_pages],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "MLflow" in done.stdout and "Experiments" in done.stdout
