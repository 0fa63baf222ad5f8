"""`python -m cloud_gateway` and the console script `cloud-gateway`."""

from protocol.terminal import run


def main() -> None:
    """Run the command line; always leaves through SystemExit."""
    run(_app)


def _app() -> None:
    from cloud_gateway.cli import app  # in here, so that an interrupt while it loads ends like any other

    app()


if __name__ == "__main__":
    main()
