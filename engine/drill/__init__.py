"""Drills: a fault on purpose, measured. Everything about them that needs no running fleet."""
