#!/bin/sh
# Unpack the real servers that some tests and benches use into .tools/: knot (authoritative DNS), unbound (validating
# resolver), postfix, exim and opensmtpd (receivers), opendkim (a verifier), and chromium (a browser). Debian packages,
# unpacked and not installed: nothing is configured or started. Done once per list of packages, a second run does
# nothing.
#
#   .tools/usr/sbin/knotd, unbound   want LD_LIBRARY_PATH=.tools/usr/lib/<machine>-linux-gnu
#   .tools/usr/sbin/opendkim         wants LD_LIBRARY_PATH=.tools/usr/lib/<machine>-linux-gnu:.tools/usr/lib
#   .tools/usr/sbin/smtp-sink        wants LD_LIBRARY_PATH=.tools/usr/lib/postfix:.tools/usr/lib/<machine>-linux-gnu
#   .tools/usr/lib/chromium/chromium is started by tests/support/browser.py
#   .tools/usr/sbin/exim4            wants LD_LIBRARY_PATH=.tools/usr/lib/<machine>-linux-gnu:.tools/lib/<machine>-linux-gnu
set -eu

# Each line is what can be installed together: two mail servers exclude each other.
together="knot unbound postfix opendkim opendkim-tools chromium chromium-driver
opensmtpd
exim4-daemon-light"
packages=$(echo $together)
tools=$(cd "$(dirname "$0")/.." && pwd)/.tools
[ "$(cat "$tools/.complete" 2>/dev/null || true)" = "$packages" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    apt-get -qq update >/dev/null
fi

download="$tools/download.$$"
mkdir -p "$download"
trap 'rm -rf "$download"' EXIT INT TERM

# What this machine would have to install for them; they themselves also if it has them.
missing=$(echo "$together" | while read -r group; do
    apt-get install --simulate --no-install-recommends $group | awk '$1 == "Inst" { print $2 }'
done)
(cd "$download" &&
    apt-get -qq download -o APT::Sandbox::User=root $(printf '%s\n' $packages $missing | sort -u) >/dev/null)
printf '%s\n' "$download"/*.deb | xargs -P 2 -I {} dpkg -x {} "$tools"
# What Debian gives another user's or group's rights runs with those of the test.
find "$tools" -type f -perm /6000 -exec chmod ug-s {} +
echo "$packages" >"$tools/.complete"
