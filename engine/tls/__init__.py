"""How sessions are secured: which policy holds for a destination, what it demands, and whether a peer met it."""
