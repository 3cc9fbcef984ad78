"""A command of `hnm` that waits a second for a store, where it else waits a minute: `python -m
tests.support.impatient track sync`.
"""

from hnm.cli import app
from hnm.studies import storage
from hnm.tracking import connection
from hnm.tracking import time_limits as patience

patience.ANSWER_SECONDS = storage.ANSWER_SECONDS = 1.0
patience.AGAIN_SECONDS = (
    0.5  # above the 0.1 s at which psycopg looks for signals: rung as often, it never looks
)
connection.LOCK_SECONDS = patience.LOCK_SECONDS = 2.0

if __name__ == "__main__":
    app()
