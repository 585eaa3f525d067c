#!/usr/bin/env bash
# Install the Debian packages whose commands are missing, as root; otherwise say what to install.
#   scripts/system-packages.sh COMMAND=PACKAGE…
set -euo pipefail

packages=()
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
done
((${#packages[@]})) || exit 0

if ! command -v apt-get >/dev/null || ((EUID != 0)); then
    echo "Please install what is missing, as root: apt-get install ${packages[*]}" >&2
    exit 1
fi

# A package such as nginx starts its server, open to every address, when it is installed. Only its program is wanted.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${packages[@]}" </dev/null
