"""Provider profiles: what each mailbox provider allows, as data with sources."""
