# The publisher: flagcast-bridge, flagcast-shared and what the two declare.
# Build it from the root of the repository: docker build -f deploy/bridge.Dockerfile .

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements-uv.lock requirements.lock ./
RUN python -m pip install --no-cache-dir --require-hashes --no-deps -r requirements-uv.lock
COPY shared shared
COPY broker_bridge broker_bridge
# As constraints, the lock file picks versions and hashes for what these two need and installs nothing else.
RUN uv venv --python /usr/local/bin/python3 /opt/flagcast \
    && uv pip install --python /opt/flagcast/bin/python --no-cache --compile-bytecode \
       --constraint requirements.lock --build-constraint requirements.lock ./shared ./broker_bridge

FROM python:3.11-slim
# A volume that is mounted over these folders for the first time takes over their owner and mode.
# /project holds the signing keys and stays with the publisher; /anchor holds the public root for devices.
RUN groupadd --system --gid 10001 flagcast \
    && useradd --system --uid 10001 --gid flagcast --home-dir /project --shell /usr/sbin/nologin flagcast \
    && install -d -o flagcast -g flagcast -m 0700 /project \
    && install -d -o flagcast -g flagcast -m 0755 /anchor
COPY --from=build /opt/flagcast /opt/flagcast
ENV PATH=/opt/flagcast/bin:$PATH PYTHONUNBUFFERED=1
USER flagcast
WORKDIR /project
VOLUME ["/project", "/anchor"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["flagcast"]
CMD ["--help"]
