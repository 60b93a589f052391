"""`python -m actors` is the `sendfleet` command."""

from actors.command import main

main()
