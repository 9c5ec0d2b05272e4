# serve.py in a container (docs/deploy.md). The packages of torch bring their own CUDA libraries, so the first image also uses a GPU
# that the container is given; some clusters ask for NVIDIA's base.
#   docker build --tag boxtune .
#   docker build --tag boxtune --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#   docker run --init --publish 127.0.0.1:8080:8080 --volume "$PWD/runs/NAME/final_merged:/model:ro" --env BOXTUNE_API_KEY boxtune
ARG BASE=ubuntu:24.04
FROM ${BASE}

# On a GPU, some kernels are compiled when they are first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Packages first: this layer stays when the code changes.
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY boxtune/__init__.py boxtune/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[serve]"
COPY boxtune boxtune
COPY serve.py ./

RUN useradd --create-home --uid 10001 boxtune
USER 10001
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/ready', timeout=4)"]
# Stopping answers the requests that were accepted: give it as long as --timeout (docker stop --time 130).
ENTRYPOINT ["python", "serve.py", "--host", "0.0.0.0"]
CMD ["--ckpt", "/model"]
