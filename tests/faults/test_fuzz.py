"""A slice of what `make fuzz` does whole: the same inputs each time, within seconds."""

from pathlib import Path

import pytest

from tests.faults.fuzzing import SHARES, run


def said(findings: object) -> str:
    return "\n".join(
        f"{finding.kind}, input {finding.number}: {finding.problem}" for finding in findings
    )  # type: ignore[attr-defined]


def test_a_slice(tmp_path: Path) -> None:
    tally = run(tmp_path / "fuzz", seed=1, count=156)
    assert not tally.findings, said(tally.findings)
    assert set(tally.refused) >= set(SHARES) - {"ledger"}
    assert sum(tally.used.values()) > 10


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_thousand(tmp_path: Path) -> None:
    tally = run(tmp_path / "fuzz", seed=2, count=1000)
    assert not tally.findings, said(tally.findings)
