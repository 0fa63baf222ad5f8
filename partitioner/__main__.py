"""`python -m partitioner` and the console script."""

from __future__ import annotations

from protocol.terminal import run


def main() -> None:
    """Run the command line; always leaves through SystemExit."""
    run(_app)


def _app() -> None:
    from partitioner.cli import app  # in here, so that an interrupt while it loads ends like any other

    app()


if __name__ == "__main__":
    main()
