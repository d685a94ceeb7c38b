"""A job on a cluster of two nodes within this machine, one of which is killed in the middle.

Run by tests/bulk/test_ray.py as a process of its own: INPUT OUT ROWS_PER_PART [kill].
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from embedding_service import telemetry
from embedding_service.bulk import run
from embedding_service.bulk.options import BulkOptions
from embedding_service.settings.gateway import Settings

SETTINGS = Settings(
    engine="fake", model_name="fake", engine_args={"step_s": 0.02, "dimension": 384}
)


def main() -> None:
    name, out, rows_per_part = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    telemetry.configure("info", "json")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20}
    )
    second = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    ray.init(address=cluster.address, log_to_driver=False)

    def kill() -> None:
        while len(list(out.glob("part-*"))) < 3:
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)
        sys.stdout.write("killed\n")

    if "kill" in sys.argv:
        threading.Thread(target=kill, daemon=True).start()
    options = BulkOptions(rows_per_part=rows_per_part)
    work = run.Work([name], None, options, out, settings=SETTINGS, ray=cluster.address)
    try:
        asyncio.run(run.do(work, telemetry.get_logger()))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
