"""A command of `hnm` that waits a second for a store, where it else waits a minute: `python -m
tests.support.impatient track sync`.
"""

from hnm.cli import app
from hnm.studies import storage
from hnm.tracking import connection, time_limits

for module in (time_limits, storage):
    vars(module)["ANSWER_SECONDS"] = 1.0
# above the 0.1 s at which psycopg looks for signals: rung as often, it never looks
time_limits.AGAIN_SECONDS = 0.5
for module in (time_limits, connection):
    vars(module)["LOCK_SECONDS"] = 2.0

if __name__ == "__main__":
    app()
