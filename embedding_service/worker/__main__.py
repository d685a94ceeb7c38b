"""The worker process: load a model, warm it up, say hello, then work until told to stop.

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
from embedding_service.worker.inbox import Progress, Receiver
from embedding_service.worker.loop import Worker

EXIT_NOT_LOADED = 4


def _die_with_the_gateway() -> None:
    """End the whole process group when standard input ends; see the module's docstring."""
    while sys.stdin.buffer.read(4096):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run one worker; return its exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=protocol.Launch)
    threading.Thread(target=_die_with_the_gateway, name="guard", daemon=True).start()
    # A context of its own for the results: ending it waits until the last message is out.
    outgoing = zmq.Context()
    jobs, results = zmq.Context().socket(zmq.PAIR), outgoing.socket(zmq.PUSH)
    for socket, address in ((jobs, launch.jobs_address), (results, launch.results_address)):
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(address)
    receiver = Receiver(jobs, launch, Progress())
    receiver.start()
    options = ModelOptions.model_validate(launch.model)
    try:
        backend = loading.load(options)
        dimension = loading.warm_up(backend)
    except Exception as error:  # noqa: BLE001 - whatever it is, the gateway gets one line and the log the rest
        traceback.print_exc()
        failed = protocol.Failed(launch.generation, 0, "startup", loading.explain(error, options))
        results.send_multipart(protocol.encode(failed))
        results.close()
        outgoing.term()
        return EXIT_NOT_LOADED
    gc.collect()
    gc.freeze()
    hello = protocol.Hello(launch.generation, backend.facts(dimension))
    results.send_multipart(protocol.encode(hello, backend.tokenizer_json))
    record = StepRecord(launch.step_path)
    Worker(backend, receiver, results, record, gather_s=options.batch_timeout_ms / 1000).run()
    results.close()
    outgoing.term()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # vLLM's atexit hooks can hang; nothing of ours is left to do
