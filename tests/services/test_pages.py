"""The pages in a real browser: the report is whole without a network, and MLflow's pages show the runs."""

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
import tiny_evidence as tiny

from hnm.evidence.evaluation import evaluate_rounds
from hnm.evidence.openings import Looks
from hnm.evidence.report import Origin, render_report
from hnm.params import Evaluate
from hnm.slides.pack import Pack

pytestmark = pytest.mark.services
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
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
ORIGIN = Origin(Looks(4, 2), "# Model card: tiny\n", "# Data card: tiny\n", [("head@0", "data/scores/0", "0a1b.dir")])
COUNT_IMAGES = "const all = [...document.images]; document.title = all.filter(i => !i.naturalWidth).length + ' broken of ' + all.length"


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    if CHROMIUM is None:
        pytest.skip("no Chromium; `make test-services` installs it where it may")
    return [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}"]


def test_the_report_opens_without_an_error_and_shows_every_picture(browser: list[str], tmp_path: Path) -> None:
    tiny.write_packs(tmp_path / "packs")
    page = render_report(
        evaluate_rounds(tiny.cohort(), tiny.rounds(), Evaluate(resamples=100)), lambda slide_id: Pack(tmp_path / "packs" / f"{slide_id}.h5"), ORIGIN
    )
    (tmp_path / "report.html").write_text(page.replace("</body>", f"<script>addEventListener('load', () => {{ {COUNT_IMAGES} }})</script></body>"), "utf-8")
    done = subprocess.run([*browser, "--dump-dom", (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    broken, of, images = title.split()[0], title.split()[1:-1], int(title.split()[-1])
    assert (broken, of) == ("0", ["broken", "of"]) and images > 0
    assert "CONSOLE" not in done.stderr


@pytest.fixture
def mlflow_pages(tmp_path: Path) -> Iterator[str]:
    """The address of `hnm ui` over an empty repository; the whole process group is ended."""
    (tmp_path / "dvc.yaml").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC", "MLFLOW"))}
    server = subprocess.Popen([sys.executable, "-m", "hnm.cli", "ui", "--port", str(port)], cwd=tmp_path, env=environment, start_new_session=True)
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
    done = subprocess.run([*browser, "--virtual-time-budget=15000", "--dump-dom", mlflow_pages], capture_output=True, text=True, timeout=180, check=True)
    assert "MLflow" in done.stdout and "Experiments" in done.stdout
