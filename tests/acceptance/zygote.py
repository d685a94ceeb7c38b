"""Workers forked from a process that has imported vLLM already, which saves time on slow machines.

    python -m tests.acceptance.zygote SOCKET            # serves forks
    python -m tests.acceptance.zygote SOCKET serve ...  # the gateway, its workers taken from there

The gateway and the worker are unchanged; only `exec` and the imports behind it are left out.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import sys
import threading
import traceback
from pathlib import Path

CLIENT = """#!/usr/bin/python3 -SE
import array, json, os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.connect(%r)
data = json.dumps({"env": dict(os.environ), "cwd": os.getcwd()}).encode()
s.sendmsg([len(data).to_bytes(4, "big") + data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
for fd in (0, 1, 2): os.close(fd)
got = s.recv(4)
os._exit(int.from_bytes(got, "big") if len(got) == 4 else 70)
"""


def gateway(path: str) -> None:
    """Run the gateway's command line with a client of the socket in place of Python."""
    client = path + ".client"
    Path(client).write_text(CLIENT % path)
    Path(client).chmod(0o755)
    sys.executable = client
    sys.argv = ["embedding-service", *sys.argv[2:]]
    from embedding_service.cli import main

    main()


def reap(pid: int, peer: socket.socket) -> None:
    """Tell a client how its worker ended."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        peer.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
    peer.close()


def load() -> None:
    """Import what each worker would."""
    import vllm.model_executor.models.bert
    import vllm.model_executor.models.qwen2
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.model_executor.models import registry

    from embedding_service.families.models import plugin
    from embedding_service.worker import __main__, loop, vllm_backend  # noqa: F401

    registry._run_in_subprocess = lambda fn: fn()
    plugin.register()


def receive(peer: socket.socket) -> tuple[dict, array.array]:
    """Return a client's environment and folder, and its three files."""
    first, ancillary, *_ = peer.recvmsg(1 << 20, socket.CMSG_SPACE(12))
    size, data = int.from_bytes(first[:4], "big"), first[4:]
    while len(data) < size:
        data += peer.recv(size - len(data))
    files = array.array("i")
    files.frombytes(ancillary[0][2][:12])
    return json.loads(data), files


def become(told: dict, files: array.array) -> int:
    """Run the worker in this forked process, as if the client had started it."""
    from embedding_service.worker import __main__ as worker

    os.setsid()
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["cwd"])
    try:
        return worker.main()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1


def serve(path: str) -> None:
    """Fork a worker for each client."""
    load()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    Path(path).unlink(missing_ok=True)
    listener.bind(path)
    listener.listen()
    print("zygote ready", threading.active_count(), flush=True)
    while True:
        peer, _ = listener.accept()
        told, files = receive(peer)
        pid = os.fork()
        if not pid:
            listener.close()
            peer.close()
            status = become(told, files)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        for file in files:
            os.close(file)
        threading.Thread(target=reap, args=(pid, peer), daemon=True).start()


if __name__ == "__main__":
    (gateway if len(sys.argv) > 2 else serve)(sys.argv[1])
