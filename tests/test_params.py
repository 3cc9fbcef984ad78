"""params.yaml: what is refused, and how the message helps."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hnm.errors import ParamsError
from hnm.learning.training.fit_encoder import step_tiles
from hnm.params import check_params, flat, load_params
from hnm.studies.space import with_values

ROOT = Path(__file__).parents[1]
MINIMAL: dict[str, Any] = {
    "rounds": {"0": {}},
    "later_rounds": {},
    "cohort": {"name": "c", "manifest": "slides.csv"},
    "tiles": {"mpp": 0.5, "tile_px": 224},
    "tune": {"space": {}},
}


def test_sections_that_are_left_out_have_their_defaults() -> None:
    params = check_params(MINIMAL)
    assert (params.ranking.on, params.ranking.margin, params.ranking.top_k) == ("score", 0.5, 10)
    assert (
        params.finetune.temperature,
        params.finetune.freeze_layers,
        params.simclr.views.min_crop,
    ) == (0.07, 4, 0.25)


def shipped() -> dict[str, Any]:
    """What params.yaml says, as plain mappings."""
    return dict(YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8")))


def keys_of(section: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """The path of each section and of each key below it; the rounds and what a study may set are
    values, not keys.
    """
    for name, value in section.items():
        yield (*above, name)
        if isinstance(value, dict) and name not in ("rounds", "later_rounds", "space"):
            yield from keys_of(value, *above, name)


@pytest.mark.parametrize("path", list(keys_of(shipped())), ids=".".join)
def test_a_deleted_line_selects_what_params_yaml_ships_with_or_is_missed_by_name(
    path: tuple[str, ...],
) -> None:
    raw = shipped()
    *above, name = path
    section = raw
    for key in above:
        section = section[key]
    del section[name]
    try:
        params = check_params(raw)
    except ParamsError as error:
        assert re.search(rf"\b{re.escape('.'.join(path))}\b", str(error))
    else:
        assert params == check_params(shipped())


def test_params_yaml_shows_every_param() -> None:
    """A key that stood in the code alone could be set, and nobody would see it."""

    def fields(section: dict[str, Any], *above: str) -> Iterator[str]:
        for name, value in section.items():
            inner = isinstance(value, dict) and name not in ("rounds", "later_rounds", "space")
            yield from fields(value, *above, name) if inner else [".".join((*above, name))]

    everything = set(fields(check_params(shipped()).model_dump()))
    assert everything == set(fields(shipped()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mining": {"negativ_fraction": 0.2}},
            (
                r"mining\.negativ_fraction=0\.2 is not a known param; did you mean"
                r" mining\.negative_fraction\?"
            ),
        ),
        (
            {"tissue": {"max_hole_um2": 0.0}},
            (
                r"tissue\.max_hole_um2 is gone: no hole in tissue is filled, .*;"
                r" remove the line"
            ),
        ),
        (
            {"tune": {"space": {}, "pruner": "hyperband"}},
            r"tune\.pruner=hyperband is gone: studies prune by the median alone; remove the line",
        ),
        (
            {"tune": {"space": {}, "pruner": "wilcoxon"}},
            r"tune\.pruner=wilcoxon is gone: studies prune by the median alone; remove the line",
        ),
        (
            {"tune": {"space": {}, "pruner": "mean"}},
            r"tune\.pruner='mean': input should be 'median' or 'none'",
        ),
        (
            {
                "tune": {
                    "space": {
                        "ranking.margin": {"low": 0.0, "high": 1.0, "when": {"ranking.on": "score"}}
                    }
                }
            },
            (
                r"tune\.space\.ranking\.margin\.when is gone: an entry of a study's space always"
                r" counts; begin a study for each case; remove the line"
            ),
        ),
        (
            {"tune": {"space": {"ranking.margin@scores": {"low": 0.0, "high": 1.0}}}},
            (
                r"tune: space\.ranking\.margin@scores is gone: a study's space has one entry for"
                r" each param; remove what follows the @"
            ),
        ),
        ({"minning": {}}, r"minning=\{\} is not a known param; did you mean mining\?"),
        (
            {"finetune": {"views": {"blurr": 1}}},
            r"finetune\.views\.blurr=1 is not a known param; did you mean finetune\.views\.blur\?",
        ),
        (
            {"compute": {"xyz": 1}},
            (
                r"compute\.xyz=1 is not a known param; known are compute\.device,"
                r" compute\.precision, compute\.threads"
            ),
        ),
        (
            {"mining": {"negative_fraction": 1.5}},
            r"mining\.negative_fraction=1\.5: input should be less than or equal to 1",
        ),
        ({"mining": {"threshold": float("nan")}}, r"mining\.threshold=nan"),
        (
            {"head": {"learning_rate": float("inf")}},
            r"head\.learning_rate=inf: input should be a finite number",
        ),
        ({"head": {"epochs": 2.5}}, r"head\.epochs=2\.5: input should be a valid integer"),
        ({"head": {"epochs": "40"}}, r"head\.epochs='40': input should be a valid integer"),
        (
            {"head": {"schedule": "step"}},
            r"head\.schedule='step': input should be 'cosine' or 'constant'",
        ),
        (
            {"head": {"kind": "attention"}},
            r"head\.kind='attention': input should be 'dsmil', 'abmil'",
        ),
        (
            {"head": {"kind": "transmil", "attention_features": 100}},
            r"head: attention_features=100 must be a multiple of 8 for kind transmil",
        ),
        (
            {"head": {"score_folds": 1}},
            r"head: score_folds=1 leaves no slides to train on; take 2 or more, or 0 for none",
        ),
        (
            {"mining": {"scores": "cross_fitted"}},
            (
                r"mining\.scores=cross_fitted needs head\.score_folds of 2 or more, but it is 0;"
                r" set it to 5"
            ),
        ),
        ({"ranking": {"margin": 1.5}}, r"ranking: margin=1\.5 can never be met by scores"),
        (
            {"split": {"validation_share": 0.6, "test_share": 0.4}},
            r"split: validation_share=0\.6 and test_share=0\.4 leave no train slides",
        ),
        ({"cohort": {"name": "c"}}, r"cohort\.manifest is missing; add it"),
        ({"tiles": {"tile_px": 224}}, r"tiles\.mpp is missing; add it"),
        (
            {"tiles": {"mpp": 0.5, "tile_px": 4096}},
            (
                r"embed\.batch_tiles=128 tiles of 4096 px are 2147483648 px at once, more than"
                r" 268435456; lower embed"
            ),
        ),
        (
            {"cohort": {"name": "a b", "manifest": "m"}},
            r"cohort\.name: 'a b' must be letters, digits, dots",
        ),
        (
            {"rounds": {"0": {}, "2": {"previous": "0"}}},
            r'rounds must count from "0" without a gap',
        ),
        ({"rounds": {"0": {}, "1": {"previous": "0"}}}, r"later_rounds must be the rounds after"),
    ],
)
def test_a_wrong_param_is_named_with_its_value_and_the_cure(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        check_params({**MINIMAL, **change})


def test_every_wrong_param_is_named_at_once() -> None:
    with pytest.raises(ParamsError, match=r"(?s)tiles\.tile_px=3.*\n.*compute\.threads=0"):
        check_params({**MINIMAL, "tiles": {"mpp": 0.5, "tile_px": 3}, "compute": {"threads": 0}})


def test_a_margin_above_1_is_fine_for_logits() -> None:
    assert (
        check_params({**MINIMAL, "ranking": {"on": "logit", "margin": 3.0}}).ranking.margin == 3.0
    )


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ParamsError, match=r"params\.yaml does not exist; run from the repository's root"
    ):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1\n")
    with pytest.raises(ParamsError, match=r"params\.yaml is not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1\n")
    with pytest.raises(ParamsError, match="must be a mapping of sections, but holds list"):
        load_params(tmp_path / "params.yaml")


def test_the_papers_settings_can_be_run_as_documented() -> None:
    yaml, commands = (
        YAML(typ="safe"),
        Path("docs/paper.md").read_text(encoding="utf-8").split("```")[1],
    )
    found = with_values(
        load_params(Path("params.yaml")),
        {name: yaml.load(value) for name, value in re.findall(r"-S ([\w.]+)=(\S+)", commands)},
    )
    assert (
        found.head.kind,
        found.head.epochs,
        found.head.patience,
        found.ranking.on,
        found.ranking.margin,
        found.ranking.weight,
    ) == (
        "dsmil",
        200,
        200,
        "logit",
        1.0,
        0.1,
    )
    assert (
        found.mining.policy,
        found.mining.threshold,
        found.mining.positive_fraction,
        found.mining.negative_fraction,
    ) == ("hard", 0.3, 0.2, 0.2)
    assert found.mining.negative_fraction * found.mining.growth**19 == pytest.approx(
        0.8, abs=0.01
    )  # of the twentieth round
    assert step_tiles(found.finetune) == (410, 102) and (
        found.finetune.temperature,
        found.finetune.freeze_layers,
    ) == (0.07, 0)


def test_flat_names() -> None:
    nested = {"head": {"seed": 3, "views": {"blur": [2]}}, "rounds": {}, "name": "demo"}
    assert flat(nested) == {"head.seed": 3, "head.views.blur": [2], "name": "demo"}


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            LAUGHS,
            (
                "has more than 20 levels or 10000 values, those that aliases repeat counted each"
                " time; shorten it"
            ),
        ),
        ("[" * 100_000, "has more than 20 levels"),
        ("a: &a [*a]\n", r"\*a stands within &a or before it; write the value out"),
        ("a: *b\n", r"\*b stands within &b or before it"),
        (
            "!!python/object/apply:os.system ['true']",
            "is not valid YAML: could not determine a constructor",
        ),
        ("a: 1\na: 2\n", "is not valid YAML: .*duplicate key"),
        ("a: " + "9" * 5000, "is not valid YAML: .*5000 digits"),
        ("a: 2024-13-45", "is not valid YAML: month must be in 1..12"),
        ("a: b\n? [c]\n: d\n", "keys should be strings"),
        ("a: \0", "is not valid YAML"),
        ("x: y\n" * 300_000, "has 1500000 bytes, more than the 1048576 that are read; restore it"),
    ],
)
def test_yaml_of_a_stranger(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=f"(?s){message}"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", [b"\xe9: 1", "a: 1".encode("utf-16")])
def test_params_that_are_no_utf8(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=r"is not valid YAML: 'utf-8' codec.*; save it as UTF-8"):
        load_params(tmp_path / "params.yaml")


def test_params_that_are_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="is no regular file; restore it"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("cohort", "name", "a\n"),
        ("cohort", "name", "a" * 129),
        ("cohort", "manifest", "a\nb"),
        ("cohort", "manifest", "\ud800"),
        ("encoder", "weights", "x" * 1025),
        ("encoder", "name", "a\0"),
        ("mining", "extra", ["../x"]),
        ("mining", "extra", ["a\n"]),
        ("compute", "threads", 10**20),
        ("head", "seed", 2**63),
        ("head", "epochs", 2**31),
        ("tiles", "slide_seconds", 1e300),
        ("ranking", "margin", float("inf")),
        ("tiles", "min_tissue", float("nan")),
        ("rounds", "0; touch f", {}),
        ("rounds", "0\n", {}),
    ],
)
def test_values_that_no_path_command_or_library_may_see(
    section: str, name: str, value: object
) -> None:
    raw = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    raw[section][name] = value
    with pytest.raises(ParamsError, match=section):
        check_params(raw)
