"""Options that all commands of the operator share: where the admin API is, and its key."""

from pathlib import Path
from typing import Annotated

import typer

KEY_VARIABLE = "FAIRLEAD_ADMIN_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="FAIRLEAD_URL", help="Where the admin API is: the gateway, or the address of `admin.port`."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help=f"File with the admin key; otherwise it is read from {KEY_VARIABLE}."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON and nothing else.")]
