"""Shaping: what a provider's replies change in the rate and the connections of a source, and how it is undone."""
