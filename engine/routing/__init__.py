"""From a recipient domain to the hosts that take its mail, and the site whose limits apply."""
