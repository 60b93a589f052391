#!/bin/sh
# Unpack the real servers that some tests and benches use into .tools/: knot (authoritative DNS), unbound (validating
# resolver), postfix and opensmtpd (receivers) and opendkim (a verifier). Debian packages, unpacked and not installed:
# nothing is configured or started. Done once per list of packages, a second run does nothing.
#
#   .tools/usr/sbin/knotd, unbound   want LD_LIBRARY_PATH=.tools/usr/lib/<machine>-linux-gnu
#   .tools/usr/sbin/opendkim         wants LD_LIBRARY_PATH=.tools/usr/lib/<machine>-linux-gnu:.tools/usr/lib
#   .tools/usr/sbin/smtp-sink        wants LD_LIBRARY_PATH=.tools/usr/lib/postfix:.tools/usr/lib/<machine>-linux-gnu
set -eu

packages="knot unbound postfix opensmtpd opendkim opendkim-tools"
tools=$(cd "$(dirname "$0")/.." && pwd)/.tools
[ "$(cat "$tools/.complete" 2>/dev/null || true)" = "$packages" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    apt-get -qq update >/dev/null
fi

download="$tools/download.$$"
mkdir -p "$download"
trap 'rm -rf "$download"' EXIT INT TERM

# What this machine would have to install for each (two mail servers exclude each other); they themselves also if it
# has them.
missing=$(for package in $packages; do
    apt-get install --simulate --no-install-recommends "$package" | awk '$1 == "Inst" { print $2 }'
done)
for package in $(printf '%s\n' $packages $missing | sort -u); do
    (cd "$download" && apt-get -qq download -o APT::Sandbox::User=root "$package" >/dev/null)
done
for package in "$download"/*.deb; do
    dpkg -x "$package" "$tools"
done
echo "$packages" >"$tools/.complete"
