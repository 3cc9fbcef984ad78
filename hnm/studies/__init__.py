"""Studies: Optuna searches params by validation; the only importers of optuna."""
