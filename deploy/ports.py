"""Ports for programs that must be told theirs before they listen."""

import random
import socket
from contextlib import ExitStack

_BELOW_EPHEMERAL = range(20000, 32768)
"""The system gives none of these to a connection or to port 0, so what is free now is still free in a while."""


def free_ports(count: int) -> list[int]:
    """Of this machine, all different, that nobody listens on."""
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(_BELOW_EPHEMERAL, len(_BELOW_EPHEMERAL)):
            try:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"got {len(ports)} free ports of {_BELOW_EPHEMERAL}, expected {count}")
