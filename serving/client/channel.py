"""How a client's connection is set up."""

import json
from typing import Any

DEFAULT_ADDRESS = "127.0.0.1:50051"

OPTIONS: tuple[tuple[str, Any], ...] = (("grpc.max_receive_message_length", -1),)
"""Predictions and details of many rows outgrow gRPC's 4 MB; the server bounds what it sends."""

BALANCED: tuple[tuple[str, Any], ...] = (
    *OPTIONS,
    (
        "grpc.service_config",
        # A server that drains says so to whoever watches its health, and from then on gets no more of their calls.
        json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}),
    ),
)
"""The same over every address that a name has and that says it serves, call by call."""

CALL_SECONDS = 10.0
"""For the calls that answer at once."""

POLL_SECONDS = 0.1
"""Between two looks at what is waited for."""


def not_ready(model: str, address: str, within: float, met: str) -> str:
    """The sentence for a server that was waited for in vain."""
    return f"{model or 'the server'} at {address} is not ready after {within:g} s: {met}"
