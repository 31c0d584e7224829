# The device agent: flagcast-agent, flagcast-shared and what the two declare, nothing of the publisher.
# Build it from the root of the repository: docker build -f deploy/agent.Dockerfile .

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements-uv.lock requirements.lock ./
RUN python -m pip install --no-cache-dir --require-hashes --no-deps -r requirements-uv.lock
COPY shared shared
COPY device_agent device_agent
# As constraints, the lock file picks versions and hashes for what these two need and installs nothing else.
RUN uv venv --python /usr/local/bin/python3 /opt/flagcast \
    && uv pip install --python /opt/flagcast/bin/python --no-cache --compile-bytecode \
       --constraint requirements.lock --build-constraint requirements.lock ./shared ./device_agent

FROM python:3.11-slim
# A volume that is mounted over these folders for the first time takes over their owner and mode.
RUN groupadd --system --gid 10001 flagcast \
    && useradd --system --uid 10001 --gid flagcast --home-dir /var/lib/flagcast --shell /usr/sbin/nologin flagcast \
    && install -d -o flagcast -g flagcast -m 0750 /var/lib/flagcast \
    && install -d -o flagcast -g flagcast -m 0750 /run/flagcast
COPY --from=build /opt/flagcast /opt/flagcast
ENV PATH=/opt/flagcast/bin:$PATH PYTHONUNBUFFERED=1
USER flagcast
WORKDIR /var/lib/flagcast
VOLUME ["/var/lib/flagcast", "/run/flagcast"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["flagcast-agent"]
CMD ["run", "--dir", "/var/lib/flagcast"]
