import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hnm.cli import app
from hnm.doctor import examine
from hnm.errors import TrackingError
from hnm.repository.outputs import Cache, md5_of
from hnm.repository.verification import verify
from hnm.store import project_store
from hnm.tracking.record import Record
from tests.support import project as tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tiny.make_project(tmp_path_factory.mktemp("project"))
    tiny.fill_cache(root)
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(shutil.copytree(finished, tmp_path / "project"))
    cache = Cache(root / ".dvc" / "cache" / "files" / "md5")
    monkeypatch.setattr(Cache, "of", lambda _: cache)
    return root


def cached(project: Path, path: str, inside: str = "") -> Path:
    md5 = md5_of(project / path / inside if inside else project / path)
    return project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def overwrite(stored: Path, content: bytes) -> None:
    """As a failing disk or a person would, past the read-only bit."""
    stored.chmod(0o644)
    stored.write_bytes(content)
    stored.chmod(0o444)


def test_a_whole_project_is_found_whole(project: Path) -> None:
    verified = verify(project, whole_cache=False)
    assert (verified.damaged, verified.changed, verified.missing) == ({}, {}, {})
    assert verified.objects == len(list((project / ".dvc" / "cache").rglob("??/*")))
    assert verified.paths == len(
        {path for _, stage in tiny.resolved() for path in (*stage["deps"], *stage["outs"])}
    )


@pytest.mark.parametrize(
    ("path", "inside"),
    [("data/mined/1/mined.parquet", ""), ("data/tiles/packs", "b.h5"), ("data/heads/1", "")],
)
def test_a_tampered_and_a_truncated_object_are_found_though_they_are_read_only(
    project: Path, path: str, inside: str
) -> None:
    stored = cached(project, path, inside)
    for content in (b"tampered", stored.read_bytes()[:-3]):
        overwrite(stored, content)
        verified = verify(project, whole_cache=False)
        assert list(verified.damaged) == [stored] and verified.damaged[stored] == md5_of(stored)
        assert not verified.changed


def test_what_is_damaged_is_removed_by_every_name_and_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `dvc repro` leaves it: output, cache and store are one file, and any of them would be
    handed out again.
    """
    monkeypatch.chdir(project)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("HNM_STORE", raising=False)
    stored, out, store = (
        cached(project, "data/tiles/packs", "b.h5"),
        project / "data" / "tiles" / "packs" / "b.h5",
        project_store(),
    )
    result = store.path("tiles", "a" * 64, ".h5")
    result.parent.mkdir(parents=True)
    for path in (out, result):
        path.unlink(missing_ok=True)
        path.hardlink_to(stored)
    assert store.holds(result)
    overwrite(stored, b"tampered")
    before = {path for path in project.rglob("*") if path.is_file() and ".hnm" not in path.parts}
    assert CliRunner().invoke(app, ["verify"]).exit_code == 1
    outcome = CliRunner().invoke(app, ["verify", "--remove"])
    assert (
        outcome.exit_code == 0
        and outcome.output.splitlines()[-1]
        == "3 damaged files are removed; dvc repro makes them anew, or dvc pull brings them"
    )
    assert (
        before - {path for path in project.rglob("*") if path.is_file()} == {stored, out}
        and not result.exists()
    )


def test_an_object_of_another_version_is_hashed_on_demand(project: Path) -> None:
    other = project / ".dvc" / "cache" / "files" / "md5" / "ab" / ("cd" * 15)
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"of another version")
    assert verify(project, whole_cache=False).damaged == {}
    assert list(verify(project, whole_cache=True).damaged) == [other]


def test_what_changed_or_went_in_the_workspace_is_named(project: Path) -> None:
    wanted = md5_of(project / "vetoes")
    (project / "vetoes" / "vetoes.csv").write_text("other\n")
    (project / "data" / "scores" / "0" / "slides.parquet").unlink()
    verified = verify(project, whole_cache=False)
    assert verified.changed["vetoes"] == (wanted, md5_of(project / "vetoes"))
    assert set(verified.missing) == {"data/scores/0/slides.parquet"} and set(verified.changed) == {
        "vetoes",
        "data/scores",
    }


def test_without_a_lock_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(
        TrackingError,
        match=r"dvc\.lock holds no stage; run dvc repro, or check out a version that has it",
    ):
        verify(tmp_path, whole_cache=False)


def says(project: Path, thing: str) -> str:
    finding = next(finding for finding in examine(project) if finding.thing == thing)
    return f"{'fine' if finding.fine else 'not fine'}: {finding.says}"


def test_the_doctor_tells_what_is_where(project: Path) -> None:
    assert says(project, "outputs").startswith("fine: all ")
    shutil.rmtree(project / "data" / "heads" / "1")
    assert "are in the cache alone, the first data/heads/1; run dvc checkout" in says(
        project, "outputs"
    )
    lost = cached(project, "data/tiles/packs", "a.h5")
    lost.unlink()
    assert not Cache.of(project).holds(md5_of(project / "data" / "tiles" / "packs"))
    shutil.rmtree(project / "data" / "tiles" / "packs")
    assert "1 of " in says(
        project, "outputs"
    ) and "neither here nor in the cache, the first data/tiles/packs; run dvc pull" in says(
        project, "outputs"
    )


def test_the_doctor_knows_slides_params_and_waiting_runs(project: Path) -> None:
    assert says(project, "params") == "fine: cohort demo, 3 rounds"
    assert says(project, "slides").startswith(
        "not fine: the manifest data/demo/slides.csv does not exist; none is needed as long as the"
        " stages cohort and tiles"
    )
    (project / "data" / "demo").mkdir()
    (project / "data" / "demo" / "a.svs").touch()
    (project / "data" / "demo" / "slides.csv").write_text(
        "slide_id,path,label\na,a.svs,0\nb,b.svs,1\nc,s3://far/c.svs,1\n"
    )
    assert "1 of 3 are not where the manifest says, the first b.svs; mount their folder" in says(
        project, "slides"
    )
    elsewhere, text = (
        shutil.move(project / "data" / "demo", project.parent / "demo"),
        (project / "params.yaml").read_text(),
    )
    (project / "params.yaml").write_text(
        text.replace("data/demo/slides.csv", f"{elsewhere}/slides.csv")
    )
    assert "1 of 3 are not where the manifest says" in says(project, "slides")
    assert says(project, "runs") == "fine: none waits"
    (project / ".hnm" / "spool" / "1-head").mkdir(parents=True)
    (project / ".hnm" / "spool" / "1-head" / "events.jsonl").touch()
    assert says(project, "runs") == "not fine: 1 wait in .hnm/spool; run hnm track sync"
    record = Record.create(project, "head-r1")
    record.append("start", name="head-r1")
    record.set_aside(["no such experiment", "no such run"])
    assert (
        says(project, "runs")
        == "not fine: 1 wait in .hnm/spool; run hnm track sync. not brought: 1 in .hnm/refused, the"
        " first head-r1 (no such experiment and 1 more); mend the cause and run `hnm track sync"
        " --retry`, or delete what lies there"
    )


def test_the_doctor_wants_a_remote_that_is_not_believed(project: Path) -> None:
    config = project / ".dvc" / "config"
    assert says(project, "remote").startswith("not fine: there is no default remote")
    config.write_text(
        config.read_text() + "    remote = store\n['remote \"store\"']\n    url = /mnt/store\n"
    )
    assert (
        says(project, "remote")
        == "not fine: store is believed without hashing what it sends; dvc remote modify store"
        " verify true"
    )
    config.write_text(config.read_text() + "    verify = true\n")
    assert says(project, "remote") == "fine: store, /mnt/store"
