"""The commands of `sendfleet`, as functions over a port to the fleet: nothing here knows how a fleet runs."""
