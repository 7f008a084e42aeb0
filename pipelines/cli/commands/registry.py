"""`wovr rollback`, `adopt` and `metrics`: the registered models, their champions and how they stand."""

from typing import Annotated

import typer
from rich.markup import escape

from pipelines.cli.terminal import console, plainly
from wovr_core.setting_types import alias_name, model_name
from wovr_core.settings import PromoteSettings

app = typer.Typer()

Model = Annotated[str | None, typer.Argument(help="The registered model; tabletop-policy by default.")]
Alias = Annotated[str, typer.Option(help="The alias that promotions move.")]


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for those who read the log of promotions later.")],
    model: Model = None,
    alias: Alias = "champion",
) -> None:
    """Give the alias of a registered model back to the champion before.

    Again: to the one before that. The registry is MLflow's of $MLFLOW_TRACKING_URI, or of runs/mlflow.db.
    """
    with plainly():
        from components.platform.registry import rollback

        console.print(escape(str(rollback(_model(model), alias_name(alias), reason=reason))), soft_wrap=True)


@app.command()
def adopt(
    reason: Annotated[str, typer.Option(help="Why, for those who read the log of promotions later.")],
    model: Model = None,
    alias: Alias = "champion",
) -> None:
    """Accept that somebody has moved the alias of a registered model by hand."""
    with plainly():
        from components.platform.registry import adopt

        console.print(escape(str(adopt(_model(model), alias_name(alias), reason=reason))), soft_wrap=True)


@app.command()
def metrics(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where Prometheus asks.")] = 9464,
    address: Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere.")] = "127.0.0.1",
    model: Annotated[str | None, typer.Argument(help="A registered model; all by default.")] = None,
) -> None:
    """Tell Prometheus how trainings, promotions and the champion stand, as MLflow ($MLFLOW_TRACKING_URI) knows them."""
    with plainly():
        model = _model(model)
        from components.serving.exporter import serve_metrics

        console.print(f"metrics at http://{address}:{port}/metrics")
        serve_metrics(model, port=port, address=address)


def _model(name: str | None) -> str:
    return model_name(PromoteSettings().model if name is None else name)
