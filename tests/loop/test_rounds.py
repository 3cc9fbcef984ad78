"""A trial is the pipeline itself: its numbers, what trials share, and that it cannot see the test
split.
"""

import math
from collections import Counter
from pathlib import Path

import h5py
import pandas as pd
import pytest
import torch

from hnm.errors import MiningError, ParamsError, StudyError
from hnm.files import digest_of, read_json
from hnm.learning.encoder import TileEncoder
from hnm.loop.rounds import Loop, RoundResult, Upstream, check_one_process
from hnm.loop.seal import sealed
from hnm.store import Store
from hnm.studies.space import with_seed, with_values
from hnm.tables import LABELS, MINED
from tests.support.rounds import run_stages
from tests.support.study import make_upstream, tiny_params


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "data"
    make_upstream(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def kept(store: Store, kind: str) -> set[str]:
    return {
        folder.name
        for folder in (store.root / "trials" / kind).glob("*/*")
        if not folder.name.startswith(".")
    }


@pytest.mark.parametrize("kind", ["dsmil", "mined"])
def test_a_trial_yields_what_the_stages_yield(
    kind: str, data: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = with_values(tiny_params(), {"ranking.margin": 0.25, "head.kind": kind})
    rounds = list(Loop(Upstream(data.parent), store).rounds(params))
    monkeypatch.setenv("HNM_STORE", str(tmp_path / "store"))
    paths = run_stages(data.parent, tmp_path / "copy", params)
    assert [result.round for result in rounds] == [0, 1]
    for number, result in enumerate(rounds):
        history = pd.read_csv(paths.head(number).folder / "history.csv")
        best = history.sort_values(
            ["validation_auc", "validation_loss", "epoch"], ascending=[False, True, True]
        ).iloc[0]
        assert (result.auc, result.log_loss) == pytest.approx(
            (best["validation_auc"], best["validation_loss"]), abs=1e-15
        )
        assert digest_of(result.slide_scores) == digest_of(paths.head(number).slide_scores)
        assert digest_of(result.tile_scores) == digest_of(paths.head(number).tile_scores)
        assert digest_of(result.mined) == digest_of(paths.head(number).mined)


def test_a_trial_that_changes_mining_alone_trains_no_head_of_round_0(
    data: Path, store: Store
) -> None:
    loop = Loop(Upstream(data.parent), store)
    first = list(loop.rounds(tiny_params()))
    before = {kind: kept(store, kind) for kind in ("heads", "mined", "encoders")}
    second = list(loop.rounds(with_values(tiny_params(), {"mining.negative_fraction": 0.8})))
    made = {kind: len(kept(store, kind) - before[kind]) for kind in before}
    assert made == {"heads": 1, "mined": 1, "encoders": 1}
    assert second[0] == first[0] and second[1].slide_scores != first[1].slide_scores
    assert (
        list(loop.rounds(tiny_params())) == first
        and {kind: kept(store, kind) for kind in before} != before
    )


def test_mining_that_finds_the_same_tiles_trains_nothing(data: Path, store: Store) -> None:
    loop = Loop(Upstream(data.parent), store)
    list(loop.rounds(tiny_params()))
    before = kept(store, "encoders"), kept(store, "heads")
    list(
        loop.rounds(with_values(tiny_params(), {"mining.skip_fraction": 0.25}))
    )  # of another policy
    assert (kept(store, "encoders"), kept(store, "heads")) == before


def test_hard_negatives_of_another_project_train_another_encoder(tmp_path: Path) -> None:
    """The budget does not count them; the cost does; and another version of them is another
    study.
    """
    make_upstream(tmp_path / "data")
    upstream, kept_by = Upstream(tmp_path), Store(tmp_path / "store")
    own = list(Loop(upstream, kept_by).rounds(tiny_params()))
    make_upstream(tmp_path / "elsewhere" / "data")
    other = tmp_path / "extra" / "other"
    other.mkdir()
    (tmp_path / "elsewhere" / "data" / "tiles" / "packs").rename(other / "packs")
    negatives = MINED.read(own[1].mined).query("role == 'hard_negative'")
    renamed = negatives.assign(slide_id="x_" + negatives["slide_id"])
    for slide_id in set(negatives["slide_id"]):
        (other / "packs" / f"{slide_id}.h5").rename(other / "packs" / f"x_{slide_id}.h5")
        with h5py.File(other / "packs" / f"x_{slide_id}.h5", "r+") as pack:
            pack.attrs["slide_id"] = f"x_{slide_id}"
    MINED.write(renamed, other / "mined.parquet")
    before, after = upstream.digests, Upstream(tmp_path).digests
    assert {name for name in before if before[name] != after[name]} == {"extra"}
    both = list(
        Loop(Upstream(tmp_path), kept_by).rounds(
            with_values(tiny_params(), {"mining.extra": ("other",)})
        )
    )
    assert MINED.read(both[1].mined).equals(MINED.read(own[1].mined)) and both[1].cost > own[1].cost
    assert digest_of(both[1].slide_scores) != digest_of(own[1].slide_scores)
    assert read_json(both[1].mined.with_name("summary.json"), StudyError)["extra"]["other"][
        "hard_negatives"
    ] == len(negatives)


def test_the_cost_counts_the_encoder_s_passes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that is trained is one pass forward and two backward; each mined tile is looked at
    once before, each tile is embedded after.
    """
    passes: Counter[str] = Counter()
    forward = TileEncoder.forward

    def counted(self: TileEncoder, tiles: torch.Tensor) -> torch.Tensor:
        kind = (
            "embedded"
            if torch.is_inference_mode_enabled()
            else "trained"
            if torch.is_grad_enabled()
            else "looked at"
        )
        passes[kind] += len(tiles)
        return forward(self, tiles)

    monkeypatch.setattr(TileEncoder, "forward", counted)
    rounds = Loop(Upstream(data.parent), Store(tmp_path / "store")).rounds(tiny_params())
    assert next(rounds).cost == 0
    passes.clear()
    result = next(rounds)
    mined = MINED.read(result.mined)
    steps = max(
        math.ceil(count / 2) for count in mined["role"].value_counts()
    )  # of two tiles of each role, and two views of each
    assert passes["trained"] == 2 * 4 * steps and passes["looked at"] == len(mined)
    assert (
        result.cost
        == 3 * passes["trained"] + passes["looked at"] + Upstream(data.parent).tile_count
    )
    assert (
        0 <= passes["embedded"] - Upstream(data.parent).tile_count < 16
    )  # the last batch is filled up


def test_another_seed_is_another_trial(data: Path, store: Store) -> None:
    loop = Loop(Upstream(data.parent), store)
    first, other = next(loop.rounds(tiny_params())), next(loop.rounds(with_seed(tiny_params(), 1)))
    assert first.slide_scores != other.slide_scores and first.log_loss != other.log_loss


def test_a_step_that_fails_says_so_and_leaves_nothing(data: Path, store: Store) -> None:
    rounds = Loop(Upstream(data.parent), store).rounds(
        with_values(tiny_params(), {"mining.threshold": 0.999})
    )
    next(rounds)
    before = kept(store, "mined")
    with pytest.raises(MiningError, match=r"above mining\.threshold=0\.999"):
        next(rounds)
    assert kept(store, "mined") == before


def test_an_upstream_that_is_missing_is_named(tmp_path: Path, store: Store) -> None:
    with pytest.raises(
        StudyError,
        match=r"index\.parquet does not exist, but a study starts from it; run dvc repro first",
    ):
        Loop(Upstream(tmp_path), store)


def test_test_labels_cannot_be_opened(
    data: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the loop that reaches for them, directly, by a link, or through annotations,
    fails.
    """
    (tmp_path / "link.csv").symlink_to(data / "cohort" / "labels" / "test.csv")
    annotation = data / "cohort" / "annotations" / "test_1.geojson"
    reaches = (
        lambda: LABELS.read(data / "cohort" / "labels" / "test.csv"),
        lambda: LABELS.read(tmp_path / "link.csv"),
        annotation.read_text,
    )
    for reach in reaches:
        reach()  # anyone may, outside of a trial

        def curious(*args: object, reach: object = reach, **sections: object) -> None:
            reach()  # type: ignore[operator]

        monkeypatch.setattr("hnm.loop.rounds.train_head", curious)
        with pytest.raises(
            StudyError, match=r"holds the truth of the test split, which a study must not see"
        ):
            next(Loop(Upstream(data.parent), Store(tmp_path / "store")).rounds(tiny_params()))
        reach()


def test_a_seal_leaves_the_rest_open(data: Path) -> None:
    with sealed(Upstream(data.parent).test_truth):
        assert len(LABELS.read(Upstream(data.parent).paths.cohort.validation_labels)) == 6
        with (
            pytest.raises(StudyError),
            (data / "cohort" / "labels" / ".." / "labels" / "test.csv").open(),
        ):
            pass


@pytest.mark.parametrize(
    ("better", "worse"),
    [((0.75, 9.0), (0.625, 0.1)), ((0.75, 0.2), (0.75, 0.3)), ((0.5, 50.0), (0.5, 60.0))],
)
def test_a_value_orders_by_auc_and_then_by_log_loss(
    better: tuple[float, float], worse: tuple[float, float]
) -> None:
    values = [
        RoundResult(0, *numbers, Path(), Path(), Path(), 0.0).value(0.5 / 9)
        for numbers in (better, worse)
    ]
    assert values[0] > values[1]
    assert RoundResult(0, 0.75, 1.0, Path(), Path(), Path(), 0.0).value(0.125) == 0.75 - 0.125 / 4


def test_the_smallest_step_of_auc_is_half_a_pair(data: Path) -> None:
    assert Upstream(data.parent).split.smallest_auc_step == 0.5 / 9


def test_what_would_train_in_several_processes_is_refused() -> None:
    check_one_process(tiny_params())
    with pytest.raises(
        ParamsError,
        match=(
            r"compute\.processes=2: each trial of a study and each fold trains in one process; set"
            r" it to 1"
        ),
    ):
        check_one_process(with_values(tiny_params(), {"compute.processes": 2}))


def test_what_is_torn_of_a_trial_is_noticed_and_made_again(data: Path, tmp_path: Path) -> None:
    """Whether its digest was recorded or, as by an earlier version, was not."""
    store = Store(tmp_path / "store")

    def aucs() -> list[float]:
        return [result.auc for result in Loop(Upstream(data.parent), store).rounds(tiny_params())]

    first = aucs()
    for kind, name, recorded in (
        ("heads", "slides.parquet", False),
        ("heads", "head/history.csv", True),
        ("mined", "mined.parquet", False),
    ):
        path = sorted((store.root / "trials" / kind).glob(f"*/*/{name}"))[0]
        before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
        path.write_bytes(path.read_bytes()[:-7])
        if not recorded:
            shard, key = path.relative_to(store.root / "trials" / kind).parts[:2]
            (store.root / ".hnm-sums" / "trials" / kind / shard / key).unlink()
        assert aucs() == first
        assert {file: file.read_bytes() for file in before} == before, name
