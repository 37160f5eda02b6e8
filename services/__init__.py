"""The three services, and the worker that the trainer starts.

This comes before any of them imports gRPC, which reads it once: its handlers of fork() are left out. They
start gRPC's threads again in the child, which then may crash or hang before it becomes the program that was
to be started. uvloop forks, and so every so many-th worker of the trainer was lost (grpcio 1.85).
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
