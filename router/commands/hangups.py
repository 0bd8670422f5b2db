"""A SIGHUP that comes while the gateway starts.

Imports nothing that may start a thread: the signal would still end one that is there before `hold_hangups`.
"""

import signal


def hold_hangups() -> None:
    """Hold a SIGHUP that comes while the gateway starts, which would end the process; `app.run` lets it in.

    Held by the kernel, so that the configuration is read again for it once the gateway serves. To be called before
    the rest of the gateway is imported: each later thread inherits it, and numpy starts some.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
