"""`python -m hnm.cli`, where the command is not on the path."""

from hnm.cli import app

app()
