"""`python -m edge_agent` and the console script `edge-agent`."""

from protocol.terminal import run


def main() -> None:
    """Run the command line; always leaves through SystemExit."""
    run(_app)


def _app() -> None:
    from edge_agent.cli import app  # in here, so that an interrupt while it loads ends like any other

    app()


if __name__ == "__main__":
    main()
