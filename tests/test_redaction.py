"""What is printed or kept holds no secret."""

import pytest

from hnm.errors import HnmError, SlideError
from hnm.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:pa/ss@host/db: away", "at postgresql://***@host/db: away"),
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("https://tok3n@host/x.svs", "https://***@host/x.svs"),
        ("https://b.s3.example.org/x.svs?X-Amz-Signature=abc&X-Amz-Date=1 is gone", "https://b.s3.example.org/x.svs?*** is gone"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        ("connection failed: password=hunter2 host=db", "connection failed: password=*** host=db"),
        ("{'aws_secret_access_key': 'abc+/def', 'x': 1}", "{'aws_secret_access_key': ***, 'x': 1}"),
        ("models:/hnm-demo@champion", "models:/hnm-demo@champion"),
        ("s3://bucket/a/b.svs of cohort.name=x", "s3://bucket/a/b.svs of cohort.name=x"),
        ("head@1: 3 tokens", "head@1: 3 tokens"),
    ],
)
def test_secrets_go_and_words_stay(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_secrets_of_the_environment_go_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hun%23ter2@host")
    assert redacted("wJalrXUtnFEMI, hun#ter2 and hun%23ter2 of me") == "***, *** and *** of me"


def test_no_error_says_a_secret() -> None:
    assert str(HnmError("https://a:bcd@host")) == "https://***@host"
    error = SlideError("x at https://h/x?sig=1", step="tiles")
    assert (str(error), error.step) == ("x at https://h/x?***", "tiles")


def test_a_line_without_end_is_shown_by_its_ends() -> None:
    assert str(HnmError(f"a.csv: value {'x' * 5000}; mend it")) == f"a.csv: value {'x' * 487} … {'x' * 491}; mend it"
    assert str(HnmError("\n".join(["y" * 1000] * 3))) == "\n".join(["y" * 1000] * 3)
