"""What MLflow's scoring server does not do for whoever asks it."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from hnm.errors import ParamsError
from hnm.models.predictor import NO_URLS, SlidePredictor
from tests.support import model as tiny_model


@pytest.fixture
def predictor(tmp_path: Path) -> SlidePredictor:
    predictor = SlidePredictor()
    predictor.load_context(
        SimpleNamespace(artifacts={"model": str(tiny_model.make_model(tmp_path))})
    )
    return predictor


def asked(predictor: SlidePredictor, *paths: str) -> list[tuple[str, str]]:
    answers = predictor.predict(SimpleNamespace(), pd.DataFrame({"path": list(paths)}))
    return list(zip(answers["path"], answers["reason"], strict=True))


def test_urls_are_refused_and_paths_are_read(
    predictor: SlidePredictor, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    tiny.aperio(tmp_path / "glass.svs", tiny.painted(128, 384))
    answers = asked(
        predictor,
        "http://169.254.169.254/latest/a.svs",
        str(tmp_path / "glass.svs"),
        "S3://bucket/b.svs",
    )
    assert answers[0] == ("http://169.254.169.254/latest/a.svs", NO_URLS)
    assert answers[2] == ("S3://bucket/b.svs", NO_URLS)
    assert answers[1][1].startswith("it has no tissue")
    assert "start it with HNM_SERVE_URLS=1" in NO_URLS


def test_urls_alone_start_no_worker(predictor: SlidePredictor) -> None:
    assert asked(predictor, "file:///etc/passwd") == [("file:///etc/passwd", NO_URLS)]


def test_who_starts_the_server_may_allow_them(
    predictor: SlidePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNM_SERVE_URLS", "1")
    ((_, reason),) = asked(predictor, "file:///etc/passwd.svs")
    assert reason.startswith("slides are not fetched by 'file', only by s3")
    monkeypatch.setenv("HNM_SERVE_URLS", "yes")
    with pytest.raises(ParamsError, match="HNM_SERVE_URLS='yes' is neither 0 nor 1"):
        asked(predictor, "file:///etc/passwd.svs")
