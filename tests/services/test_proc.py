"""DeLong's covariance and tests against R's pROC, run here and now on slides with many ties."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hnm.evidence.numbers.delong import delong, delong_p
from hnm.evidence.numbers.predictions import Predictions

pytestmark = pytest.mark.services
SCRIPT = """
suppressMessages(library(pROC))
data <- read.csv(commandArgs(TRUE)[1])
first <- roc(data$label, data$first, quiet = TRUE, direction = "<")
second <- roc(data$label, data$second, quiet = TRUE, direction = "<")
test <- roc.test(first, second, method = "delong")
cat(sprintf("[%.15g, %.15g, %.15g, %.15g, %.15g, %.15g]", auc(first), auc(second),
  var(first), var(second), cov(first, second), test$p.value))
"""


@pytest.mark.skipif(
    shutil.which("Rscript") is None, reason="no R; `make test-services` installs it where it may"
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_delong_is_that_of_proc(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.array([1] * 17 + [0] * 31)
    scores = np.round(np.clip(rng.normal(0.45 + 0.15 * labels, 0.2, (2, 48)), 0, 1), 1)
    rows = [
        f"{label},{first},{second}" for label, first, second in zip(labels, *scores, strict=True)
    ]
    (tmp_path / "slides.csv").write_text("\n".join(["label,first,second", *rows]) + "\n")
    (tmp_path / "test.R").write_text(SCRIPT)
    done = subprocess.run(
        ["Rscript", str(tmp_path / "test.R"), str(tmp_path / "slides.csv")],
        capture_output=True,
        text=True,
        check=True,
    )
    aucs, covariance = delong(labels, scores)
    first, second = (Predictions(labels, row, np.arange(48).astype(str)) for row in scores)
    mine = [*aucs, covariance[0, 0], covariance[1, 1], covariance[0, 1], delong_p(first, second)]
    assert json.loads(done.stdout) == pytest.approx(mine, rel=1e-9)
