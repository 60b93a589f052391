"""Warm-up of new sources: stages per provider, advanced by what was delivered."""
