"""Leases, replication and adoption between regions: a protocol without I/O.

Promises: docs/failover.md; decisions: docs/adr/0024-failover.md.
engine/region/cover.py joins it to a region, actors/fleet.py to the fleet, engine/spool/standby.py to the disk.

`python -m tests.simulation` runs random schedules of faults against it.
"""
