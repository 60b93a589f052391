"""A throughput trial of a fleet, as `sendfleet bench` runs it: the load, what is measured, and the report."""
