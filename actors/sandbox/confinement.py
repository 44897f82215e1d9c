"""What a process gives up before it runs a program that nobody has read. Linux; standard library only.

Capabilities and the means to regain them; and by Landlock, where the kernel has it: files other than Python's own and
the system's libraries, all writing, other processes (their memory, signals to them), TCP. Nothing here can be undone.
"""

import ctypes
import os
import struct
import sys

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CAPABILITY_VERSION_3 = 0x20080522
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (shared libraries), read files, read folders
# Bits that a kernel's Landlock knows, by its version: file access, TCP, what is shut in (abstract sockets, signals).
_NUM_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATER_FILE_BITS = 16
_LIBC = ctypes.CDLL(None, use_errno=True)


def hide_memory() -> None:
    """No process without capabilities can read this one's memory, or trace it, from here on."""
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def confine() -> bool:
    """True when Landlock took effect; without it only capabilities are gone.

    Raises OSError when the kernel has Landlock and refuses a rule.
    """
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _LIBC.capset(header, bytes(24))
    version = _LIBC.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    file_bits = (1 << _NUM_FILE_BITS.get(version, _LATER_FILE_BITS)) - 1
    attributes = struct.pack("=QQQ", file_bits, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    for folder in _readable_folders():
        _allow_reading(folder, ruleset=ruleset)
    _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)
    return True


def _readable_folders() -> set[str]:
    """Python, its packages, and the system's libraries and time zones."""
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, *(path for path in sys.path if "-packages" in path)}
    return own | {"/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/lib", "/lib64"}


def _allow_reading(folder: str, *, ruleset: int) -> None:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _checked(_LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", _READ, descriptor), 0))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock")
    return result
