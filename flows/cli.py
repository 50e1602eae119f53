"""The `saeinterp` command: the only front door.

Prefect is imported inside commands, after its settings are in the environment: it reads them at import.
"""

from __future__ import annotations

import json
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel

import saeinterp
from flows import report_commands
from flows.artifact_commands import app as artifacts_app
from flows.catalogue import FLOWS, configuration, preset_files
from flows.environment import prepare_environment
from flows.import_commands import app as import_app
from flows.ops_commands import app as ops_app
from flows.sae_commands import app as sae_app
from flows.terminal import BAD_USAGE, COMPLETED, FAILED, Root, complain, err, guard, out
from saeinterp.artifacts import ArtifactStore
from saeinterp.errors import ConfigError, SaeinterpError

app = typer.Typer(
    name="saeinterp",
    help="Train TopK sparse autoencoders on a language model, grade, explain, score and compare them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(sae_app)
app.add_typer(import_app)
app.add_typer(ops_app)
app.add_typer(artifacts_app)

FlowName = Annotated[str, typer.Argument(help=f"One of: {', '.join(FLOWS)}.", metavar="FLOW")]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", help="YAML file, or preset:NAME for one that ships with the package.", metavar="FILE"
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", help="Override one value, such as training.k=16. May be repeated.", metavar="A.B=VALUE"
    ),
]


def _version(show: bool) -> None:
    if show:
        out.print(saeinterp.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debug messages and tracebacks.")] = False,
) -> None:
    os.environ.setdefault("SAEINTERP_VERBOSE", "1" if verbose else "")


@app.command()
def demo(
    root: Root = None,
    overrides: Overrides = None,
    full: Annotated[
        bool | None,
        typer.Option("--full/--small", help="Corpus size; default is full where the CPU multiplies bfloat16 fast."),
    ] = None,
) -> None:
    """Compare two explainers on a packaged language model: the whole road in a few minutes, offline."""
    guard(lambda: prepare_environment(root))
    from saeinterp.subject import fast_bfloat16

    fast = fast_bfloat16()
    preset = "demo" if (fast if full is None else full) else "demo-small"
    if preset == "demo-small" and full is None:
        out.print(
            "This CPU has no matrix unit for bfloat16 (AMX): the demo takes its smaller corpus (--full overrides)."
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _execute("compare-explainers", f"preset:{preset}", overrides or [], root)


@app.command()
def run(flow: FlowName, config: ConfigFile = None, overrides: Overrides = None, root: Root = None) -> None:
    """Run a flow in this process; artifacts that are already there are not made again."""
    _execute(flow, config, overrides or [], root)


@app.command()
def probe(
    table: Annotated[
        Path, typer.Argument(help="Labelled texts: .jsonl, .csv or .parquet.", metavar="TABLE", show_default=False)
    ],
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = None,
) -> None:
    """Probe SAEs for the labels of a table: `run probe-latents` with `probing.file` set to TABLE."""
    _execute("probe-latents", config, [*(overrides or []), f"probing.file={json.dumps(str(table))}"], root)


@app.command()
def submit(
    flow: Annotated[
        str,
        typer.Argument(
            help="A flow, or FLOW/DEPLOYMENT. A flow alone means its only deployment, else its `gpu`.",
            metavar="FLOW[/DEPLOYMENT]",
            show_default=False,
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="A preset instead of the deployment's parameters.", metavar="NAME"),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="A YAML file instead of the deployment's parameters.", metavar="FILE"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--set",
            "-s",
            help="Change one value, such as training.k=16. May be repeated.",
            metavar="A.B=VALUE",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow the run until it ends; the exit code says how it did.")
    ] = False,
) -> None:
    """Start a deployed flow on its worker. Parameters are checked here, before a run exists; paths are the worker's."""
    guard(prepare_environment)
    from flows.submitting import submit_run

    raise typer.Exit(
        guard(lambda: submit_run(flow, preset=preset, source=config, assignments=overrides or [], watch=watch))
    )


@app.command()
def plan(
    flow: FlowName,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = None,
    scale: Annotated[
        bool, typer.Option("--scale", help="FLOPs and GPU-hours by arithmetic, also of models that are not here.")
    ] = False,
    gpu: Annotated[
        str,
        typer.Option("--gpu", help="With --scale: a card of deployments/sizes.yaml, or NAME=FLOPS.", metavar="CARD"),
    ] = "H100",
    utilisation: Annotated[
        float, typer.Option("--utilisation", help="With --scale: share of the card's peak that is taken to be reached.")
    ] = 0.3,
    as_json: Annotated[bool, typer.Option("--json", help="With --scale: every step as JSON.")] = False,
) -> None:
    """Show what a run would do: steps, what is already there, bytes, LLM requests, what is missing. Runs nothing."""
    settings = _config(flow, config, overrides or [])
    if scale:
        os.environ["HF_HUB_OFFLINE"] = "1"  # arithmetic needs no hub
    guard(lambda: prepare_environment(root))
    if scale:
        from flows import scale as scales

        def work() -> None:
            found = scales.make_scale(_flow(flow), settings, card=gpu, utilisation=utilisation)
            if as_json:
                typer.echo(scales.as_json(found))
            else:
                scales.print_scale(found, console=out)

        guard(work)
        return
    if as_json:
        complain(
            ConfigError("goes with --scale", field="--json", got="no --scale", expected="--scale --json"), BAD_USAGE
        )
    from flows.plan import print_plan

    guard(lambda: print_plan(_flow(flow), settings, store=ArtifactStore(), console=out))


@app.command()
def doctor(
    endpoint: Annotated[
        list[str] | None,
        typer.Option("--endpoint", help="Also check an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."),
    ] = None,
    root: Root = None,
) -> None:
    """Check this machine: versions, GPU, Prefect server and who may use it, LLM endpoints, disk; each with a remedy."""
    guard(lambda: prepare_environment(root))
    from flows.doctor import examine, print_findings

    problems = print_findings(examine(endpoints=endpoint or [], store=ArtifactStore()), console=out)
    raise typer.Exit(FAILED if problems else COMPLETED)


@app.command()
def presets() -> None:
    """List the presets that ship with the package."""
    for path in preset_files():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        out.print(f"{path.stem:<24} {first}", markup=False)


for command in (report_commands.report, report_commands.view, report_commands.export):
    app.command()(command)


def run_module(flow: Any, model: type[BaseModel]) -> None:
    """`python -m flows.NAME [--config FILE] [--set A.B=VALUE]`: the same options as `saeinterp run`."""
    name = next(name for name, (_, known) in FLOWS.items() if known is model)

    def command(config: ConfigFile = None, overrides: Overrides = None, root: Root = None) -> None:
        _execute(name, config, overrides or [], root)

    command.__doc__ = flow.description
    typer.run(command)


def _flow(name: str) -> Any:
    module, _, attribute = FLOWS[name][0].partition(":")
    return getattr(import_module(module), attribute)


def _config(flow: str, source: str | None, overrides: list[str]) -> BaseModel:
    try:
        return configuration(flow, source, overrides)
    except ConfigError as error:
        complain(error, BAD_USAGE)


def _execute(name: str, source: str | None, overrides: list[str], root: str | None) -> NoReturn:
    settings = _config(name, source, overrides)
    guard(lambda: prepare_environment(root))
    # Tracks layers worked on at once; read when the flow's task runner is made.
    os.environ.setdefault("SAEINTERP_WORKERS", str(settings.launch.parallel))  # type: ignore[attr-defined]
    logging.captureWarnings(True)
    from flows.console import leave_on_interrupt, watch

    def work() -> int:
        with leave_on_interrupt(), watch(err):
            state = _flow(name)(settings, return_state=True)
        outcome = state.result(raise_on_failure=False)
        if isinstance(outcome, SaeinterpError):
            raise outcome
        return _close(state, outcome)

    code = guard(work)
    raise typer.Exit(code)


def _close(state: Any, outcome: Any) -> int:
    from flows.console import print_ending

    return COMPLETED if print_ending(state, outcome, out=out, err=err) else FAILED


if __name__ == "__main__":
    app()
