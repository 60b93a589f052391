"""Frozen values that every room shares. Imports only the standard library and msgpack."""
