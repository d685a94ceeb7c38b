"""Variables that Kubernetes sets in every container for each Service of a namespace.

For a Service called `vllm` they are `VLLM_PORT=tcp://…` and its kin, which vLLM takes for its own.
https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def is_service_link(name: str, value: str) -> bool:
    """Tell whether Kubernetes has set a variable."""
    return bool(_NAME.fullmatch(name)) or (name.endswith("_PORT") and bool(_ADDRESS.match(value)))


def of_vllm(environ: Mapping[str, str]) -> list[str]:
    """Return the names of those that vLLM would read."""
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith("VLLM_") and is_service_link(name, value)
    )
