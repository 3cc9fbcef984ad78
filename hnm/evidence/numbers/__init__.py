"""Numbers with intervals, and what follows from them: thresholds, comparisons, pooled folds,
verdicts.
"""
