"""One region's engine: admission, the ready windows, dispatch to pools, settlement, the events log. No Ray."""
