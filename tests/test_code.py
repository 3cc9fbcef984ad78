"""The code behind a result."""

from pathlib import Path

import pytest

from hnm import code
from hnm.code import code_version, imports_of


def test_the_imports_of_a_stage_leave_the_plumbing_out() -> None:
    assert imports_of("hnm.slides.tissue") == {"hnm.slides.tissue", "hnm.slides.reader", "hnm.slides.storage"}
    assert {"pipelines.head", "hnm.learning.heads.dsmil", "hnm.learning.losses"} <= imports_of("pipelines.head")


def test_the_code_version_knows_code_and_not_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = ['"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n', "# why\n\ndef f(x):\n\n    return x + 1\n", "def f(x):\n    return x + 2\n"]
    versions = []
    for text in texts:
        (tmp_path / "some_module.py").write_text(text)
        code._source.cache_clear()
        versions.append(code_version("some_module"))
    assert versions[0] == versions[1] != versions[2]
