"""A trained model on slides of anybody: no pipeline, no params.yaml and no labels are needed."""
