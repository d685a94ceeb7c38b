"""Optional, to save processor time on a slow machine: workers forked from a process that has imported vLLM already.

    python -m tests.acceptance.zygote SOCKET            # serves forks
    python -m tests.acceptance.zygote SOCKET serve ...  # the gateway's command line, its workers taken from there

The gateway and the worker are the installed ones, unchanged; only `exec` and the imports behind it are left out.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import sys
import threading
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
    client = path + ".client"
    Path(client).write_text(CLIENT % path)
    Path(client).chmod(0o755)
    sys.executable = client
    sys.argv = ["embedding-service", *sys.argv[2:]]
    from embedding_service.cli import main

    main()


def reap(pid: int, peer: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        peer.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
    peer.close()


def serve(path: str) -> None:
    import vllm.model_executor.models.bert
    import vllm.model_executor.models.qwen2
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.model_executor.models import registry

    from embedding_service.families.models import plugin
    from embedding_service.worker import __main__ as worker
    from embedding_service.worker import loop, vllm_backend  # noqa: F401

    registry._run_in_subprocess = lambda fn: fn()
    plugin.register()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    Path(path).unlink(missing_ok=True)
    listener.bind(path)
    listener.listen()
    print("zygote ready", threading.active_count(), flush=True)
    while True:
        peer, _ = listener.accept()
        first, ancillary, *_ = peer.recvmsg(1 << 20, socket.CMSG_SPACE(12))
        size = int.from_bytes(first[:4], "big")
        data = first[4:]
        while len(data) < size:
            data += peer.recv(size - len(data))
        fds = array.array("i")
        fds.frombytes(ancillary[0][2][:12])
        told = json.loads(data)
        pid = os.fork()
        if pid:
            for fd in fds:
                os.close(fd)
            threading.Thread(target=reap, args=(pid, peer), daemon=True).start()
            continue
        listener.close()
        peer.close()
        os.setsid()
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.environ.clear()
        os.environ.update(told["env"])
        os.chdir(told["cwd"])
        try:
            status = worker.main()
        except BaseException:  # noqa: BLE001
            import traceback

            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    (gateway if len(sys.argv) > 2 else serve)(sys.argv[1])
