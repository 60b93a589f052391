"""SMTP to the outside: opening sessions, and what a reply means."""
