"""How a part of control says no to a request, from wherever it stands."""

from router.port import Reject


class Refused(Exception):
    """Turned away; the port hands `reject` over as a value."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.message)
        self.reject = reject
