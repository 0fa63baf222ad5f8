"""`python -m edge_agent` and the console script `edge-agent`."""

from edge_agent.cli import app
from protocol.terminal import run


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
