"""Write every dashboard to the folder that Grafana reads."""

import argparse
from pathlib import Path

from deploy.grafana.boards.catalog import documents

FOLDER = Path(__file__).parents[1] / "dashboards"


def main() -> None:
    """Run the command."""
    command = argparse.ArgumentParser(prog="python -m deploy.grafana.boards", description=__doc__)
    command.add_argument("--into", type=Path, default=FOLDER)
    folder: Path = command.parse_args().into
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
