"""The last run of the pipeline, as its files tell it."""

from pathlib import Path

from rich.table import Table

from hnm.errors import EvidenceError
from hnm.evidence.pages.round_table import round_table
from hnm.evidence.test_ledger import LEDGER, Looks, looks, read_ledger
from hnm.files import read_json
from hnm.repository.costs import stage_seconds
from hnm.repository.outputs import taking_apart

METRICS = "results/metrics.json"


def last_run(root: Path) -> tuple[Table, Looks]:
    """Returns the table of the rounds, and how often the test labels were opened so far."""
    looked = looks(read_ledger(root / LEDGER))
    metrics = read_json(root / METRICS, EvidenceError)
    with taking_apart(METRICS, EvidenceError):
        return round_table(metrics, stage_seconds(root)), looked
