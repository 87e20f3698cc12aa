# A worker of fedbus, with torch and the digits data; the evaluator's trainer needs the same.
# Build it from the top folder of the repository:
#
#   docker build -f deploy/worker.Dockerfile -t fedbus-worker:0.1.0 .
#
# BASE      any Debian-like image with Python 3.11 or later and its venv module.
# OFFLINE   not empty: install from the wheels in deploy/wheels only, so the build needs no network.
# EXTRAS    what of fedbus is installed; EXTRAS=digits makes an image without torch, for tasks in numpy.
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG OFFLINE=""
ARG EXTRAS=torch,digits
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels
RUN python3 -m venv /opt/fedbus
COPY deploy/wheels /wheels
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY core core
COPY services services
COPY worker worker
RUN ${OFFLINE:+env PIP_NO_INDEX=1} /opt/fedbus/bin/pip install -c constraints.txt ".[${EXTRAS}]"

FROM ${BASE}
RUN groupadd --gid 10001 fedbus \
    && useradd --uid 10001 --gid 10001 --create-home fedbus \
    && install -d -m 0700 -o fedbus -g fedbus /stack /invite /state
COPY --from=build /opt/fedbus /opt/fedbus
COPY deploy/healthcheck.py /opt/fedbus/healthcheck.py
ENV PATH=/opt/fedbus/bin:$PATH PYTHONUNBUFFERED=1 FEDBUS_STATE=/state
USER fedbus
WORKDIR /home/fedbus
CMD ["fedbus-worker", "--help"]
