"""The page of faults and the tests hold each other: every row names tests that exist, and no fault
of the list is without a row.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = (
    "random SIGKILL of a stage",
    "dvc alone killed",
    "Ctrl-C",
    "torn rename",
    "truncated slide",
    "zeroed tiles",
    "unreadable, vanishing mount",
    "not a slide, empty, link circle",
    "hanging read",
    "native crash",
    "no tissue",
    "mpp zero, absurd, per axis",
    "duplicate slide",
    "patient in two splits",
    "one-class split",
    "bad labels",
    "bad features",
    "weights changed under one name",
    "empty mined set",
    "ties, K too large",
    "mining outside train",
    "NaN loss",
    "out of GPU memory",
    "disk full at every write",
    "read-only, quota",
    "two repros at once",
    "stale locks",
    "bad params",
    "bad dvc.lock, empty dvc.yaml",
    "tampered cache, remote",
    "hostile pickles",
    "hostile YAML, XML, JSON, HDF5, npz, TIFF, PNG",
    "ids and paths",
    "Unicode, CRLF, cp1252",
    "huge and wide CSV, formulas",
    "MLflow down, slow, 500, full, locked, newer schema",
    "races at first creation",
    "killed study",
    "torn journal",
    "same seed on resume",
    "replay",
    "clock, zone, locale, decimal comma",
    "umask, users, shared cache",
    "artefacts of older versions",
)


def rows() -> dict[str, list[str]]:
    """Fault -> the tests that the page names."""
    lines = (ROOT / "docs" / "faults.md").read_text().partition("## What happens")[2].splitlines()
    cells = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    return {
        fault.strip(): re.findall(r"`(tests/[^`]+)`", tests)
        for fault, _, tests in cells
        if fault.strip() != "fault"
    }


def names_in(file: str) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_fault_has_a_row() -> None:
    assert len(FAULTS) == 44
    assert not set(FAULTS) - set(rows())


def test_every_row_names_tests_that_exist() -> None:
    for fault, named in rows().items():
        assert named, f"{fault} names no test"
        for test in named:
            file, _, name = test.partition("::")
            assert (ROOT / file).is_file() and name in names_in(file), (
                f"{fault}: {test} does not exist"
            )
