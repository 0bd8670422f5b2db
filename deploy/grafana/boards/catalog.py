"""All dashboards, by the name of their file."""

from deploy.grafana.boards.board import document
from deploy.grafana.boards.fairness import FAIRNESS
from deploy.grafana.boards.fleet import FLEET
from deploy.grafana.boards.gateway import GATEWAY
from deploy.grafana.boards.routing import ROUTING
from deploy.grafana.boards.workers import WORKERS

BOARDS = (FLEET, FAIRNESS, ROUTING, WORKERS, GATEWAY)


def documents() -> dict[str, str]:
    """File name without its ending, and the JSON that Grafana reads."""
    return {board.name: document(board) for board in BOARDS}
