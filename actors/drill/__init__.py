"""Drills: a fault made on purpose on a temporary fleet or on the live one, and what is seen of it (docs/drills.md)."""
