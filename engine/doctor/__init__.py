"""What receivers will think of a domain's mail, found out before they do: `sendfleet doctor`."""
