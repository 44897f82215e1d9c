"""The signal on which a process writes the stacks of its threads to its standard error, whatever it is doing.

Every actor catches it from its start on; system/runtime/process_stacks.py sends it where py-spy may not look.
"""

import faulthandler
import signal

STACK_SIGNAL = signal.SIGUSR2


def catch_stack_signal() -> None:
    """From now on; the signal would end a process that does not catch it."""
    faulthandler.register(STACK_SIGNAL, file=2, all_threads=True)
