"""Check functions that misbehave on request; imported by sandbox children under test."""

import os
import signal
import sys
import time

_HOARD: list[bytearray] = []
_CALLS: list[int] = []
_STARTED = time.process_time()


def check(command: str, argument: str) -> tuple[str, float, str]:
    """Does what `command` says; an obedient command is "right" and returns its argument as the reason."""
    if command == "hang":
        time.sleep(3600)
    elif command == "spin":
        while True:
            pass
    elif command == "compute":
        while time.process_time() < float(argument) + _STARTED:
            pass
    elif command == "power":
        return "ok", 0.0, str(9 ** (9**9) % 7)  # C code that holds the interpreter lock
    elif command == "memory":
        bytearray(1 << 40)
    elif command == "swallowed_memory":
        try:
            blocks = [bytearray(1 << 20)]
            while True:
                blocks.append(bytearray(len(blocks[-1]) * 2))
        except Exception:  # noqa: BLE001 (what sympy does)
            return "ok", 0.0, "wrong"
    elif command == "hoard":
        _HOARD.append(bytearray(int(argument)))
    elif command == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif command == "crash_once":
        # The marker file is made by the test: the first child removes it and dies.
        if os.path.exists(argument):
            os.remove(argument)
            os.kill(os.getpid(), signal.SIGKILL)
    elif command == "exit":
        os._exit(3)
    elif command == "cpu_limit":
        os.kill(os.getpid(), signal.SIGXCPU)
    elif command == "print":
        print("noise on stdout" * 1000, flush=True)
        print("noise on stderr" * 1000, file=sys.stderr, flush=True)
    elif command == "read":
        return "ok", 1.0, repr(sys.stdin.read())
    elif command == "nan":
        return "ok", float("nan"), "nonsense"
    elif command == "modules":
        return "ok", 1.0, " ".join(name for name in ("ray", "torch", "numpy", "sympy") if name in sys.modules)
    elif command == "variable":
        return "ok", 1.0, os.environ.get(argument, "absent")
    elif command == "count":
        _CALLS.append(1)
        return "ok", 1.0, f"{os.getpid()} {len(_CALLS)}"
    elif command == "interrupt_parent":
        os.kill(os.getppid(), signal.SIGUSR1)
        time.sleep(0.5)
    return "ok", 1.0, argument
