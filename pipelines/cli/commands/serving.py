"""`wovr serve-policy`: what a policy would do, asked over a network."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.cli.terminal import console, path, plainly
from wovr_core.setting_errors import SettingsError

app = typer.Typer()


@app.command("serve-policy")
def serve_policy(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY...",
            help="models:/NAME@ALIAS, models:/NAME/VERSION, s3://BUCKET/NAME/DIGEST, or an artifact's folder. Clients "
            "that name none get the first.",
        ),
    ],
    address: Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere; needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    state: Annotated[
        Path, typer.Option(parser=path, help="Folder of blinding tokens and the log of their answers.")
    ] = Path("runs/policy-server"),
    poll: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks at an alias.")] = 5.0,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Requests that are answered together, at most.")] = 16,
    window: Annotated[float, typer.Option(min=0, max=1000, help="Milliseconds to wait for such company.")] = 3.0,
    most: Annotated[int, typer.Option(min=1, max=100, help="Policies in memory, at most.")] = 4,
    resize: Annotated[bool, typer.Option("--resize", help="Fit square pictures of another size.")] = False,
) -> None:
    """Serve policies to robots: openpi's websocket at /, OpenVLA's POST /act, and POST /v1/act.

    An alias is followed: a new champion is loaded beside the old one and takes over without a request lost.

    Keys are in $WOVR_POLICY_KEYS, those that may mint tokens for blinded trials in $WOVR_POLICY_ADMIN_KEYS (or in files
    that $WOVR_POLICY_KEYS_FILE and $WOVR_POLICY_ADMIN_KEYS_FILE name). Without keys it listens on this machine only.

    Try it: `wovr serve-policy models:/tabletop-policy@champion`, then `curl localhost:8000/v1/metadata`. It stops with
    Ctrl-C or SIGTERM, once what is in flight is answered. More is in docs/policy-server.md.
    """
    with plainly():
        try:
            from components.serving.policy.server import ServerOptions, quiet_logs, serve
        except ModuleNotFoundError as error:
            raise SettingsError(f"{error.name} is not installed: pip install 'wovr[serving]'") from error

        quiet_logs()
        options = ServerOptions(
            policies=tuple(dict.fromkeys(policies)),
            state=state,
            address=address,
            port=port,
            poll=poll,
            window=window / 1000,
            batch=batch,
            most=most,
            resize=resize,
        )
        names = escape(", ".join(options.policies))
        serve(
            options, on_start=lambda port: console.print(f"serving {names} at http://{address}:{port}", soft_wrap=True)
        )
