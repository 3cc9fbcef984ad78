"""Runs in MLflow: what each stage logs, and how it gets there without delaying a stage."""
