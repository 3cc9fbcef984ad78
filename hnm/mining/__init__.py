"""Tile scores to mined sets, and what a person can see and veto."""
