"""Campaigns: from a template and a file of recipients to accepted chunks, and from a stored record to a message."""
