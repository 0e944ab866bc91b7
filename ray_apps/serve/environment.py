"""What Ray Serve's processes are told by the environment that Ray is started in, for there is no other way to.

Requests and pieces of answers go between the proxy and the ingress by gRPC, and within each process from one event loop
to no other, which takes less of the processors than Serve does by itself. Knows nothing of Ray.
"""

import os

from ray_apps.serve import connection

VARIABLES = {
    connection.CALLBACK_VARIABLE: connection.CALLBACK,
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "2147483647",  # the limits of bodies are ours; by default 4 MiB
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Serve starts a proxy anew that takes longer, and so again and again where the processors are busy; by default 5 s.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def export() -> None:
    """Let what this process starts have them, except those that are set already."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
