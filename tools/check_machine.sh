#!/bin/sh
# Name the Debian packages that this machine lacks for building sendfleet, in one line that can be pasted.
# Usage: tools/check_machine.sh [PYTHON]. Exit status 1 if something is missing.
set -eu

python=${1:-python3}
missing=

if ! command -v "$python" >/dev/null; then
    missing="python3 python3-venv python3-dev"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "sendfleet needs Python 3.11 or newer; $python is $("$python" -V). Name another one: make PYTHON3=..." >&2
    exit 1
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] || missing="$missing python3-dev"
fi
command -v gcc >/dev/null || missing="$missing gcc"
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"

if [ -n "$missing" ]; then
    echo "Debian packages are missing. Install them, then run make again:" >&2
    echo "    sudo apt-get install -y$(printf ' %s' $missing)" >&2
    exit 1
fi
