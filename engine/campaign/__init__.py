"""Campaigns: from a template and a file of recipients to accepted chunks and rendered messages."""
