#!/usr/bin/env bash
# Say at once everything that this machine lacks, and how Debian calls it.
#   scripts/preflight.sh python [node] [curl] [go] [systemd]
set -euo pipefail

python="${PYTHON:-python3}"
missing=()

lacks() { missing+=("  $1"); }

for need in "$@"; do
    case "$need" in
    python)
        if ! command -v "$python" >/dev/null; then
            lacks "$python: Python 3.11 or newer (apt-get install python3, or set PYTHON=/path/to/python3)"
        elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            lacks "$python is $("$python" -V 2>&1 | head -n 1); 3.11 or newer is needed (or set PYTHON=/path/to/python3)"
        elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
            lacks "$python has no venv module (apt-get install python3-venv)"
        fi
        ;;
    node)
        command -v node >/dev/null || lacks "node: Node.js 20 or newer, for the Node SDKs' tests (apt-get install nodejs)"
        command -v npm >/dev/null || lacks "npm: for the Node SDKs' tests (apt-get install npm)"
        ;;
    curl)
        command -v curl >/dev/null || lacks "curl: for the tests that use it (apt-get install curl)"
        ;;
    go)
        command -v go >/dev/null || lacks "go: for the tests' Go programs (apt-get install golang-go)"
        ;;
    systemd)
        command -v systemd-analyze >/dev/null || lacks "systemd-analyze: checks the unit files (apt-get install systemd)"
        ;;
    *)
        echo "scripts/preflight.sh: unknown need '$need'; one of: python node curl go systemd" >&2
        exit 2
        ;;
    esac
done

if ((${#missing[@]})); then
    echo "This machine lacks:" >&2
    printf '%s\n' "${missing[@]}" >&2
    exit 1
fi
