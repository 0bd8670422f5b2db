"""What the connections of one listener share: their bounds, and whether it is about to close."""

from dataclasses import dataclass, field

from router.config.sections import Limits, Listen
from router.edge.cors import Cors
from router.edge.held_bytes import HeldBytes


@dataclass(slots=True)
class Listener:
    """Read by every connection, changed by the composition root. A new limit holds for new connections."""

    header_bytes: int = 65536
    """Largest request line and headers together."""
    send_timeout_s: float = 60.0
    """After this time in which a client has taken nothing of its answer, it is cut off."""
    held: HeldBytes = field(default_factory=lambda: HeldBytes(0))
    """What slow clients have not read counts here."""
    cors: Cors | None = None
    """None: browsers may use it from pages of its own origin only."""
    keep_alive_s: float = 75.0
    """How long an idle connection stays open."""
    closing: bool = False
    """Each answer that begins from now on is the last on its connection, and says so."""

    def configure(self, listen: Listen, limits: Limits) -> None:
        """Bounds as the configuration has them now."""
        self.keep_alive_s = listen.keep_alive_s
        self.header_bytes = limits.header_bytes
        self.send_timeout_s = limits.send_timeout_s
