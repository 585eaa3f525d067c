"""Run a program under the system call rules of a unit file, as systemd would: ``sandbox.py UNIT PROGRAM [ARGUMENT…]``.

``SystemCallFilter=``, ``RestrictAddressFamilies=`` and ``MemoryDenyWriteExecute=`` are put into force by libseccomp, as
systemd does it. So it can be tested that the program lives with them where no systemd runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

ALLOW = 0x7FFF0000
REFUSE = 0x00050000 | errno.EPERM
EQUAL, MASKED_EQUAL = 4, 7
WRITE, EXECUTE = 2, 4
PR_SET_NO_NEW_PRIVS = 38


class Comparison(ctypes.Structure):
    """libseccomp's ``scmp_arg_cmp``."""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def members(group: str) -> set[str]:
    """Return the system calls of one of systemd's groups, and of the groups in it."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    found: set[str] = set()
    for line in listed.stdout.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            found |= members(name)
        elif name and not name.startswith("#"):
            found.add(name)
    return found


def settings(unit: Path, name: str) -> list[str]:
    """Return the values of all of a setting's lines, in order."""
    lines = unit.read_text("utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def allowed(unit: Path) -> set[str]:
    """Return the system calls that a unit's ``SystemCallFilter=`` lines leave."""
    calls: set[str] = set()
    for line in settings(unit, "SystemCallFilter"):
        words = line.lstrip("~").split()
        listed = set[str]().union(*(members(word) if word.startswith("@") else {word} for word in words))
        calls = calls - listed if line.startswith("~") else calls | listed
    return calls


def conditions(unit: Path) -> dict[str, list[Comparison]]:
    """Return the calls that are allowed only if one of these is true of an argument."""
    families = [getattr(socket, word) for line in settings(unit, "RestrictAddressFamilies") for word in line.split()]
    found = {"socket": [Comparison(0, EQUAL, int(family), 0) for family in families]}
    if settings(unit, "MemoryDenyWriteExecute") == ["yes"]:
        # The third argument of both is the protection.
        both = WRITE | EXECUTE
        found["mmap"] = [Comparison(2, MASKED_EQUAL, both, bits) for bits in (0, WRITE, EXECUTE)]
        found["mprotect"] = [Comparison(2, MASKED_EQUAL, EXECUTE, 0)]
    return found


def confine(unit: Path) -> None:
    """Put the rules into force for this process and what it becomes."""
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(REFUSE))
    conditional = conditions(unit)
    for call in sorted(allowed(unit)):
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            continue  # of another architecture
        for only in conditional.get(call, ()):
            assert seccomp.seccomp_rule_add_array(rules, ALLOW, number, 1, ctypes.byref(only)) == 0, call
        if call not in conditional:
            assert seccomp.seccomp_rule_add_array(rules, ALLOW, number, 0, None) == 0, call
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert seccomp.seccomp_load(rules) == 0


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
