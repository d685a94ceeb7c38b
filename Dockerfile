# For hosts with an NVIDIA GPU (Dockerfile.cpu for the others):
#
#   docker build -t embedding-service .
#   docker run --gpus all --init --stop-timeout 90 --shm-size 8g -p 8890:8890 \
#     --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     -e EMBEDDING_API_KEYS=sha256:... -v embedding-cache:/var/cache/embedding-service embedding-service
#
# Settings: EMBEDDING_<NAME> in the environment, or a file mounted over /etc/embedding-service/config.yaml.
# --init buries what a killed engine's own children leave behind. --shm-size (or --ipc=host) is for tensor parallelism,
# whose processes meet in shared memory. deploy/compose has all this as a file.

# vLLM's own image, because it is the combination of CUDA, torch, attention kernels and C compiler (Triton and
# torch.compile call one at run time) that vLLM releases and tests. The same wheels on nvidia/cuda would be as large and
# leave matching the CUDA version to us. The tag is the version that requirements.txt pins.
FROM vllm/vllm-openai:v0.32.0

# Requirements before sources, so that a change of ours rebuilds one small layer. vllm itself is there already.
WORKDIR /opt/embedding-service
COPY requirements.txt ./
RUN uv pip install --system --no-cache -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY embedding_service ./embedding_service
RUN uv pip install --system --no-cache --no-deps --no-build-isolation .
COPY config/qwen3-embedding-0.6b.yaml /etc/embedding-service/config.yaml

# A user by number, so that runAsNonRoot can be checked; with an entry in passwd, because torch asks for a name. Hub
# downloads and compiled kernels land in its home: keep that on a volume, owned by 10001 if it is a host folder and
# mounted without noexec. /var/lib/embedding-service is for `state_dir`, and the owner that a volume there begins with.
# Nothing else but /tmp and /dev/shm is written to.
ENV HOME=/var/cache/embedding-service
RUN groupadd --gid 10001 embedding \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir "$HOME" --shell /usr/sbin/nologin embedding \
 && install -d -o 10001 -g 10001 "$HOME" "$HOME/huggingface" \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/embedding-service
VOLUME /var/cache/embedding-service
USER 10001:10001
WORKDIR /var/cache/embedding-service

# Address and port are settled here, over what a mounted file says, because EXPOSE and HEALTHCHECK rely on them.
# Without keys the service refuses to listen beyond loopback: set EMBEDDING_API_KEYS, or EMBEDDING_ALLOW_ANONYMOUS=true.
ENV HF_HOME=/var/cache/embedding-service/huggingface \
    VLLM_CACHE_ROOT=/var/cache/embedding-service/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/embedding-service/torchinductor \
    TRITON_CACHE_DIR=/var/cache/embedding-service/triton \
    XDG_CACHE_HOME=/var/cache/embedding-service \
    VLLM_NO_USAGE_STATS=1 \
    EMBEDDING_CONFIG=/etc/embedding-service/config.yaml \
    EMBEDDING_HOST=0.0.0.0 \
    EMBEDDING_PORT=8890
EXPOSE 8890

# Alive, not ready: loading a model takes minutes, and a container restarted meanwhile would never get there. Balancers
# ask /readyz. http.client, because it heeds no proxy variables.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['EMBEDDING_PORT']), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["embedding-service"]
CMD ["serve"]
