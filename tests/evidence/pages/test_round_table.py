from io import StringIO

from rich.console import Console

from hnm.evidence.pages.round_table import round_table

METRICS = {
    "chosen_round": 1,
    "test": {"slides": 8, "patients": 7},
    "rounds": {
        "0": {
            "validation": {"auc": 0.8125, "auc_low": 0.5, "auc_high": 0.97},
            "test": {
                "auc": None,
                "auc_low": None,
                "auc_high": None,
                "auc_reason": "there is no positive",
            },
            "test_tiles": {"auc": 0.75},
        },
        "1": {
            "validation": {"auc": 0.9, "auc_low": 0.61, "auc_high": 1.0},
            "test": {"auc": 1.0, "auc_low": None, "auc_high": None},
            "test_tiles": {"auc": None},
            "mined": {"hard_negatives": 1234},
        },
    },
}


def test_a_line_a_round() -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(
        round_table(
            METRICS,
            {
                "embed@0": 10.4,
                "head@0": 5.2,
                "finetune@1": 61.0,
                "head@1": None,
                "evaluate": 9.0,
                "mine@11": 3.0,
            },
        )
    )
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["0", "0.812", "(0.50", "to", "0.97)", "–", "0.750", "–", "16"] in lines
    assert ["1", "*", "0.900", "(0.61", "to", "1.00)", "1.000", "–", "1,234", "61"] in lines


def test_a_round_that_never_ran_here_has_no_seconds() -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(round_table(METRICS, {}))
    assert ["0", "0.812", "(0.50", "to", "0.97)", "–", "0.750", "–", "–"] in [
        line.split() for line in console.export_text().splitlines()
    ]


def test_in_80_columns_no_number_is_torn() -> None:
    console = Console(width=80, record=True, file=StringIO())
    console.print(round_table(METRICS, {"embed@0": 123456.0}))
    shown = console.export_text()
    assert "0.812 (0.50 to 0.97)" in shown and "1,234" in shown and "123456" in shown
