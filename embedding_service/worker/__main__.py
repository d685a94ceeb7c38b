"""The worker process: load a model, warm it up, say hello, then work until a `Stop` comes.

Started by `engine/process.py` as `python -m embedding_service.worker`. Its options arrive as one
line of JSON on standard input, which then stays open: its end means that the gateway is gone.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback

import msgspec
import zmq

from embedding_service.engine import protocol
from embedding_service.engine.step_record import StepRecord
from embedding_service.settings.model import ModelOptions
from embedding_service.worker import loading
from embedding_service.worker.inbox import Counters, Receiver
from embedding_service.worker.loop import Worker

EXIT_NOT_LOADED = 4
# No message is ever dropped; at the end a second is left to send the last ones.
_SOCKET_OPTIONS = {zmq.SNDHWM: 0, zmq.RCVHWM: 0, zmq.LINGER: 1000}


def _die_with_the_gateway() -> None:
    """End the whole process group when standard input ends; see the module's docstring."""
    while sys.stdin.buffer.read(4096):
        pass
    os.killpg(0, signal.SIGKILL)


def _connect(socket: zmq.Socket[bytes], address: str) -> zmq.Socket[bytes]:
    for option, value in _SOCKET_OPTIONS.items():
        socket.setsockopt(option, value)
    socket.connect(address)
    return socket


def main() -> int:
    """Run one worker; return its exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=protocol.Launch)
    threading.Thread(target=_die_with_the_gateway, name="guard", daemon=True).start()
    jobs = _connect(zmq.Context().socket(zmq.PAIR), launch.jobs_address)
    receiver = Receiver(jobs, launch, Counters())
    receiver.start()
    # A context of its own for the results: ending it waits until the last message is out.
    outgoing = zmq.Context()
    results = _connect(outgoing.socket(zmq.PUSH), launch.results_address)
    status = _work(launch, receiver, results)
    results.close()
    outgoing.term()
    return status


def _work(launch: protocol.Launch, receiver: Receiver, results: zmq.Socket[bytes]) -> int:
    """Load the model and serve it until a `Stop` comes; return the exit status."""
    options = ModelOptions.model_validate(launch.model)
    try:
        backend = loading.load(options)
        dimension = loading.warm_up(backend)
    except Exception as error:  # noqa: BLE001 - the gateway gets one line, and the log the rest
        traceback.print_exc()
        reason = loading.explain(error, options)
        failed = protocol.Failed(launch.generation, 0, "startup", reason)
        results.send_multipart(protocol.encode(failed))
        return EXIT_NOT_LOADED
    gc.collect()
    gc.freeze()
    hello = protocol.Hello(launch.generation, backend.facts(dimension))
    results.send_multipart(protocol.encode(hello, backend.tokenizer_json))
    record = StepRecord(launch.step_path)
    Worker(backend, receiver, results, record, gather_s=options.batch_timeout_ms / 1000).run()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # vLLM's atexit hooks can hang; nothing of ours is left to do
