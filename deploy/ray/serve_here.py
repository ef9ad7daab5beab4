"""Start the application on the Ray of RAY_ADDRESS, on a gRPC port of one's choice, until standard input ends.

`serve run deploy/ray/serve.yaml` does so for people; a port that is free now is not what a file can say.
"""

import sys

import ray
from ray import serve
from ray.serve.config import gRPCOptions

from deploy.ray.application import application


def main() -> None:
    port, http_port, store = sys.argv[1:]
    ray.init()
    serve.start(
        grpc_options=gRPCOptions(
            port=int(port),
            grpc_servicer_functions=["protos.ctm_serving_pb2_grpc.add_ThinkerServicer_to_server"],
            enable_reflection=False,
        ),
        http_options={"host": "127.0.0.1", "port": int(http_port)},
    )
    serve.run(application({"store": store, "models": ["mnist"]}), name="thinker")
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()


if __name__ == "__main__":
    main()
