"""`python -m partitioner` and the console script."""

from __future__ import annotations

from partitioner.cli import app


def main() -> None:
    """Run the command line; always leaves through SystemExit."""
    app()


if __name__ == "__main__":
    main()
