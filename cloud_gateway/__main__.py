"""`python -m cloud_gateway` and the console script `cloud-gateway`."""

from cloud_gateway.cli import app
from protocol.terminal import run


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
