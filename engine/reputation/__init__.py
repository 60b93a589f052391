"""What a source has earned: the logic behind its owner, the EgressIp actor."""
