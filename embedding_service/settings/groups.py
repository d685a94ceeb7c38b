"""Which settings belong together, by what a person wants of them: the order of help and schema.

`common` are shown by `serve --help`, the others by `serve --help-all`. A new setting gets its name
here, in one of the two; `tests/settings/test_groups.py` names one that has no group.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple


class Group(NamedTuple):
    """Settings under one heading."""

    title: str
    common: tuple[str, ...]
    further: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All settings of the group."""
        return self.common + self.further


def _group(title: str, common: str, further: str) -> Group:
    return Group(title, tuple(common.split()), tuple(further.split()))


GROUPS = (
    _group(
        "Model",
        "model_name model_path models",
        "aliases task revision required trust_remote_code engine instruction_template "
        "default_instruction matryoshka expected_dimension score_label token_ids calibration_file "
        "canary_file default_truncate unknown_model echo_model",
    ),
    _group(
        "Device and memory",
        "device dtype max_model_len replicas gpu_memory_utilization",
        "devices tensor_parallel_size max_batch_size batch_timeout_ms enforce_eager engine_args",
    ),
    _group(
        "Listening",
        "host port",
        "uds root_path trusted_proxies cors_origins docs ui workers runtime_dir",
    ),
    _group(
        "Keys and rates",
        "api_keys_file allow_anonymous rate_limit_requests",
        "api_keys api_keys_env rate_limit_tokens rate_limit_paths",
    ),
    _group(
        "Cache",
        "cache_max_bytes",
        "redis_url cache_ttl_s cache_max_entries cache_isolation cache_shared redis_prefix",
    ),
    _group(
        "Limits",
        "max_inputs",
        "max_queued_tokens max_request_tokens max_body_bytes max_text_characters over_long_texts "
        "max_concurrent_requests max_body_values max_inflight_body_bytes max_response_bytes "
        "max_inflight_response_bytes",
    ),
    _group(
        "Files and batches",
        "state_dir",
        "max_file_bytes max_files max_stored_bytes file_ttl_s max_batches max_batch_lines",
    ),
    _group(
        "Timeouts",
        "request_timeout_s",
        "startup_timeout_s header_timeout_s body_timeout_s send_timeout_s drain_timeout_s "
        "drain_grace_s keep_alive_s",
    ),
    _group("Observing", "log_level", "metrics log_format otlp_endpoint service_name"),
    _group(
        "Old systems",
        "preset",
        "environment model_checksum records sparse_token_mapping sparse_index_space",
    ),
)
NAMES = tuple(chain.from_iterable(group.names for group in GROUPS))


def group_of(name: str) -> Group | None:
    """Return the group of a setting, if it has one."""
    return next((group for group in GROUPS if name in group.names), None)
