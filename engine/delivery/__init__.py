"""The delivery pool: sessions to one provider, from every source of a node."""
