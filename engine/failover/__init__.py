"""Leases, replication, adoption and hand-over between regions: a protocol without I/O.

Not wired to the actors. `python -m tests.simulation` runs random schedules against it and still finds violations.
"""
