"""Models for use: a round as a model folder, in MLflow's registry, and served."""
