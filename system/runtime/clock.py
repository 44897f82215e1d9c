"""The clock of the driver process. In tests the event loop's is virtual, and everything here follows it."""

import asyncio
import time


def now() -> float:
    """Seconds of the running event loop's clock; outside of one, of the clock that event loops run on."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()
