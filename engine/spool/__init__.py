"""The durable queue of one region: an LMDB index, append-only body segments, group commit, recovery, audit."""
