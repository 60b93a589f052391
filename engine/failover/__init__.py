"""Leases, replication, adoption and hand-over between regions: a protocol without I/O (docs/failover.md)."""
