#!/usr/bin/env bash
# Install the Debian packages whose commands or libraries are missing, as root; otherwise say what to install.
#   scripts/system-packages.sh COMMAND=PACKAGE… LIBRARY.so.N=PACKAGE…
set -euo pipefail
# Not every user's PATH has the folders of the system's own programs, and nobody's that of PostgreSQL's server.
PATH="$PATH:/usr/sbin:/sbin"
for folder in /usr/lib/postgresql/*/bin; do PATH="$PATH:$folder"; done

present() {
    case "$1" in
    *.so.*) ldconfig -p | grep -F "$1 " >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

packages=()
for pair in "$@"; do
    present "${pair%%=*}" || packages+=("${pair#*=}")
done
((${#packages[@]})) || exit 0
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

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
