"""The identity of a study: everything that must stay the same while it goes on."""

import uuid
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection

from hnm.causes import causes_of
from hnm.errors import StudyError
from hnm.files import key_of
from hnm.loop.rounds import Upstream
from hnm.params import Params
from hnm.studies.space import TUNABLE, space_of
from hnm.studies.storage import open_storage, usable

SHARED = (*TUNABLE, "embed", "compute")
"""Sections of params.yaml that a trial uses."""


def identity_of(params: Params, upstream: Upstream) -> dict[str, str]:
    """Returns a digest of each part of a study's identity, by name: its data, its space, all
    other params that a trial uses, the code and the libraries.

    The machine is no part of it: workers of one study may run on several kinds of processor.
    """
    tune = params.tune
    used: dict[str, Any] = {
        name: getattr(params, name).model_dump(mode="json") for name in SHARED
    } | {
        "rounds": len(params.rounds),
        "seeds": tune.seeds,
        "folds": tune.folds,
        "fold_seed": tune.seed if tune.folds else None,
        "cost": [tune.cost, tune.max_cost],
    }
    for name in tune.space:
        *sections, leaf = name.split(".")
        section = used
        for part in sections:
            section = section[part]
        section.pop(leaf)
    causes = causes_of("hnm.loop.rounds")
    return {
        **upstream.digests,
        "params": key_of(params=used),
        "space": key_of(space=_raw_space(params)),
        "code": key_of(code=causes["code"]),
        "libraries": key_of(libraries=causes["libraries"]),
    }


def open_study(url: str, name: str, params: Params, upstream: Upstream) -> optuna.Study:
    """Returns the study, which is made where it is new.

    Raises:
        StudyError: the study was begun with other data, params or code.
    """
    identity = identity_of(params, upstream)
    tune = params.tune
    directions = [StudyDirection.MAXIMIZE]
    if tune.cost == "objective":
        directions.append(StudyDirection.MINIMIZE)
    with usable(url, OSError):
        study = optuna.create_study(
            storage=open_storage(url, make=True),
            study_name=name,
            directions=directions,
            load_if_exists=True,
        )
        if "identity" not in study.user_attrs:
            attributes = {
                # tells the runs of a study that is deleted and begun anew from those before
                "begun": uuid.uuid4().hex,
                "rounds": len(params.rounds) * tune.seeds * max(tune.folds, 1),
                "max_cost": tune.max_cost,
                "defaults": space_of(params).defaults,
                "space": _raw_space(params),
                "identity": identity,  # last: others ask for this one
            }
            for attribute, value in attributes.items():
                study.set_user_attr(attribute, value)
    check_identity(study, identity)
    return study


def check_identity(study: optuna.Study, identity: Mapping[str, str]) -> None:
    """Raises `StudyError` unless `identity` is the one that the study was begun with."""
    before = study.user_attrs["identity"]
    if changed := sorted(
        part for part in identity.keys() | before.keys() if identity.get(part) != before.get(part)
    ):
        raise StudyError(
            f"the study {study.study_name} was begun with other {', '.join(changed)}, so its values"
            " say nothing of these; begin another by --study"
        )


def _raw_space(params: Params) -> Any:
    return params.tune.model_dump(mode="json")["space"]
