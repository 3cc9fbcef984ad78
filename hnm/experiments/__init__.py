"""Tracking, studies, lineage and models for use: the only importers of mlflow, optuna and dvc."""
