"""Cross-validation: the loop once for each fold and seed."""
