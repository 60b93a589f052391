"""All logic of sendfleet in plain Python: no Ray, no actor."""
