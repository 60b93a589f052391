"""The fleet's configuration: schema, loading, units, and where each value comes from."""
