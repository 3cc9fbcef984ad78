"""Predictions to numbers with intervals, pages and pictures."""
