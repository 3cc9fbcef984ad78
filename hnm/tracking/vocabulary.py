"""The closed vocabulary of metrics and tags, and the metrics of a stage's outputs by these names.

The metrics are made from the outputs alone. So a run that is made from the files says the same as
the run that was logged while they were written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hnm.selection import best_epoch

METRICS = {
    "epoch/loss": "training loss, the weighted sum of its parts",
    "epoch/slide_loss": "cross-entropy of the slide logit",
    "epoch/tile_loss": "cross-entropy of the highest tile logit",
    "epoch/ranking_loss": "patch ranking loss",
    "epoch/negative_loss": "contrastive loss with negatives as anchors",
    "epoch/positive_loss": "contrastive loss with positives as anchors",
    "epoch/spread": (
        "mean over pairs of views of one less their cosine; 0 where fine-tuning has collapsed"
    ),
    "epoch/validation_auc": "slide AUC on validation",
    "epoch/validation_loss": "slide log loss on validation",
    "epoch/learning_rate": "learning rate",
    "round/validation_auc": "slide AUC on validation",
    "round/validation_log_loss": "slide log loss on validation",
    "round/test_auc": "slide AUC on test",
    "round/test_tile_auc": "AUC of the test tiles of annotated slides",
    "round/positives": "positives that were mined for the round",
    "round/hard_negatives": "hard negatives that were mined for the round",
    "round/jaccard": "share of the mined tiles of this round or the one before that are of both",
    "round/churn": "share of the mined tiles that the round before had not mined in that role",
    "round/look_alike_share": "share of hard negatives on a drawn region that is no lesion",
    "round/lesion_share": "share of positives on a lesion",
    "validation/auc": (
        "slide AUC of the epoch that was kept (head) or of the round that was chosen (evaluate)"
    ),
    "validation/loss": "slide log loss of the epoch that was kept",
    "validation/log_loss": "slide log loss of the round that was chosen",
    "validation/chosen_round": "the round that validation chose",
    "validation/threshold": "the score from which a slide is called positive, chosen on validation",
    "test/auc": "slide AUC",
    "test/auc_low": "lower end of its interval",
    "test/auc_high": "upper end of its interval",
    "test/auc_gain": "slide AUC less that of round 0 on the same slides",
    "test/auc_gain_low": "lower end of its interval",
    "test/auc_gain_high": "upper end of its interval",
    "test/average_precision": "area under the precision-recall curve of slides",
    "test/sensitivity_at_specificity_90": (
        "sensitivity at a specificity of at least 0.9, from the ROC curve"
    ),
    "test/accuracy": "share of slides decided rightly at the threshold",
    "test/f1": "F1 of slides at the threshold",
    "test/sensitivity": "share of positive slides called positive at the threshold",
    "test/specificity": "share of negative slides called negative at the threshold",
    "test/brier": "mean squared error of slide scores",
    "test/log_loss": "log loss of slide scores",
    "test/ece": "expected calibration error of slide scores",
    "test/tile_auc": "AUC of the tiles of annotated slides",
    "test/tile_average_precision": "average precision of the tiles of annotated slides",
    "test/tile_average_precision_low": "lower end of its interval",
    "test/tile_average_precision_high": "upper end of its interval",
    "test/tile_froc": "mean share of lesions found at 1/4 to 8 false detections a slide",
    "test/tile_lesions_hit": (
        "share of lesions with a peak of the tile scores at the tile threshold or above"
    ),
    "test/tile_lesions_hit_low": "lower end of its interval",
    "test/tile_lesions_hit_high": "upper end of its interval",
    "test/tile_false_detections": "such peaks beside lesions, a slide",
    "test/openings": (
        "openings of the test labels that `test_ledger.csv` held when `evaluate` ran, this one"
        " included; unknown of a run made from the files"
    ),
    "test/opened_states": "different scores that were held against them by then",
    "trial/value": "what a study compares trials by: validation AUC, ties by log loss",
    "trial/cost": "encoder passes of a tile in a trial's, or a round's, fine-tuning and embedding",
    "study/trials": "finished trials of a study",
    "study/best_value": "value of its best trial",
    "study/best_auc": "validation AUC of its best trial",
    "cost/seconds": "wall-clock seconds of the stage's process",
    "cost/peak_memory_mb": (
        "largest resident memory of the stage's process or of one of its children, in 10^6 bytes"
    ),
    "cost/processor_seconds": (
        "seconds of all cores together, of the stage's process and of its children that have ended"
    ),
    "cost/read_mb": "what they have read from files and pipes, in 10^6 bytes; on Linux",
    "cost/peak_gpu_memory_mb": (
        "most memory that torch has held on a GPU, in 10^6 bytes; where it has used one"
    ),
    "cost/tiles_per_second": (
        "tiles that the stage has cut or embedded over `cost/seconds`; none where all were kept"
        " from an earlier run"
    ),
    "system/processor_percent": (
        "use of the processor by the stage and its children since the last sample; 100 is one core"
    ),
    "system/memory_mb": (
        "resident memory of the stage and its children, in 10^6 bytes; what they share counts for"
        " each"
    ),
    "system/gpu_percent": "use of the busiest GPU",
    "system/gpu_memory_mb": "memory in use on all GPUs, by whomever, in 10^6 bytes",
}
"""Metric -> meaning. Before the slash stands what a step counts (`epoch`, `round`, of `system`
samples), or where a single number comes from.
"""

TAGS = {
    "hnm.kind": (
        "`stage`: logged by the stage; `replay`: made afterwards from its outputs; `summary`: one"
        " state of the whole pipeline; or `study`, `trial`, `round` of a study"
    ),
    "hnm.stage": "the stage without its round",
    "hnm.round": "its round, where it has one",
    "hnm.stage_key": "digest of the stage's command, params and dependencies; the same in dvc.lock",
    "hnm.state_key": "of a summary: digest of the keys of all stages",
    "hnm.run.<stage>.<round>": "of a summary: id of each stage's run",
    "hnm.git_dirty": (
        "whether tracked files differed from the commit in `mlflow.source.git.commit`, dvc.lock"
        " aside"
    ),
    "hnm.dvc_experiment": (
        "name of the DVC experiment that the run belongs to, where it belongs to one"
    ),
    "hnm.not_finite": (
        "the last metric, and its step, that had no finite value and was therefore not logged"
    ),
    "hnm.study": "the study that a run belongs to",
    "hnm.study_key": (
        "what tells the study from all others: a digest of its data, space, params and code, and of"
        " its beginning"
    ),
    "hnm.trial_state": "of a trial: complete, pruned or failed",
    "hnm.record": "identity of the record that the run was brought from",
}
"""Tag -> meaning."""

MODEL_TAGS = {
    "hnm.round": "the round that it is of",
    "hnm.head": "DVC's md5 of its head, by which `hnm lineage` finds it",
    "hnm.model_digest": "SHA-256 of the model folder; the same model is registered once",
    "hnm.threshold": "the score from which a slide is called positive",
    "hnm.validation_labels": "DVC's md5 of the labels that it was validated on",
    "hnm.validation_auc": "slide AUC on validation",
    "hnm.validation_auc_low": "lower end of its interval, below which no later champion may lie",
    "hnm.validation_auc_high": "upper end of its interval",
    "hnm.validation_log_loss": "slide log loss on validation",
}
"""Tag of a version of the registered model -> meaning."""

Step = tuple[int | None, dict[str, float | None]]
"""A step, None for single numbers, and its metrics by name."""


def of_epoch(row: Mapping[str, float | None]) -> dict[str, float | None]:
    """A row of a history: `loss` is `epoch/loss`; the column `epoch` is the step."""
    return {f"epoch/{name}": value for name, value in row.items() if name != "epoch"}


def of_history(rows: Sequence[Mapping[str, float]]) -> Iterator[Step]:
    """A whole history; one with validation ends with the epoch that was kept."""
    for row in rows:
        yield int(row["epoch"]), of_epoch(row)
    if rows and "validation_auc" in rows[0]:
        best = best_epoch(rows)
        yield (
            None,
            {
                "validation/auc": best["validation_auc"],
                "validation/loss": best["validation_loss"],
            },
        )


def of_mining(content: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a summary of mined tiles. Round 1, before which nothing was mined, has no
    overlap, and an older summary may have none either.
    """
    metrics = {
        "round/positives": content["positive"]["tiles"],
        "round/hard_negatives": content["hard_negative"]["tiles"],
    }
    for name in ("jaccard", "churn"):
        if content.get(name) is not None:
            metrics[f"round/{name}"] = content[name]
    return metrics


def of_evaluation(content: Mapping[str, Any]) -> Iterator[Step]:
    """The metrics of a metrics.json: each round by its number, then the chosen one. Numbers without
    a name in the vocabulary stay in the file.
    """
    for round_, numbers in content["rounds"].items():
        metrics = {
            **_named("round/validation_", numbers["validation"]),
            **_named("round/test_", numbers["test"]),
            **_named("round/test_tile_", numbers["test_tiles"]),
        }
        mined = _named("round/", numbers.get("mined", {}))
        metrics |= {name: value for name, value in mined.items() if value is not None}
        yield int(round_), metrics
    chosen = content["rounds"][str(content["chosen_round"])]
    gains = {
        name.replace("test_auc", "auc_gain"): gain
        for name, gain in content["gain"].items()
        if name.startswith("test_auc")
    }
    yield (
        None,
        {
            "validation/chosen_round": content["chosen_round"],
            "validation/threshold": content["threshold"],
            **_named("validation/", chosen["validation"]),
            **_named("test/", content["test"]),
            **_named("test/tile_", content["test_tiles"]),
            **_named("test/", gains),
        },
    )


def _named(prefix: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that have a name in the vocabulary, by this name."""
    names = {name: f"{prefix}{name}" for name in numbers}
    return {names[name]: value for name, value in numbers.items() if names[name] in METRICS}
