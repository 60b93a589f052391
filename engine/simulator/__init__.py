"""The engine's scheduler, reputation, warm-up and shaping on a virtual clock, against modelled providers."""
