#!/usr/bin/env bash
# Builds both images, starts deploy/compose.yaml without Jaeger under a project name of its own, runs two rounds through
# the containers, prints the table of the run, and removes the containers, volumes and network that it made.
#
#   COMPOSE        the compose command.  [default: docker compose, else podman-compose]
#   TASK           the task that is trained.  [default: digits; digits-linear and noop need no torch]
#   SKIP_BUILD=1   take the images that are there.
#   KEEP=1         leave everything running at the end.
#   BASE, OFFLINE, WORKER_EXTRAS, CONTAINERS_CONF: as deploy/.env.example and podman-restricted.conf say.
#
# Without a registry: a base image of your own and wheels made before by
#   pip download -c constraints.txt -d deploy/wheels hatchling '.[torch,digits]'
#   BASE=localhost/IMAGE OFFLINE=1 make containers
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${COMPOSE:-}" ]; then
  if docker compose version >/dev/null 2>&1; then
    COMPOSE="docker compose"
  elif command -v podman-compose >/dev/null; then
    COMPOSE="podman-compose"
  else
    echo "error: neither docker compose nor podman-compose is here" >&2
    exit 2
  fi
fi
if [ -n "${CONTAINERS_CONF:-}" ]; then
  CONTAINERS_CONF="$(realpath "$CONTAINERS_CONF")"
  export CONTAINERS_CONF
fi
task="${TASK:-digits}"
project="fedbus-check-$$"
export BROKER_PUBLISH="127.0.0.1:" OTLP_ENDPOINT=""
# podman-compose cannot share a namespace by a service's name, only by a container's.
override="$(mktemp --suffix=.yaml)"
files=(-f deploy/compose.yaml)
case "$COMPOSE" in
  *podman-compose*)
    printf 'services:\n  enroll:\n    pid: "container:%s_broker_1"\n' "$project" > "$override"
    files+=(-f "$override")
    ;;
esac

compose() {
  # COMPOSE may be two words.
  # shellcheck disable=SC2086
  $COMPOSE -p "$project" "${files[@]}" "$@"
}

finish() {
  code=$?
  if [ "$code" -ne 0 ]; then
    compose logs 2>&1 | tail -n 60 || true
  fi
  if [ -z "${KEEP:-}" ]; then
    compose down -v >/dev/null 2>&1 || echo "warning: could not remove all of $project" >&2
  fi
  rm -f "$override"
  exit "$code"
}
trap finish EXIT

healthy() {
  for _ in $(seq 60); do
    if compose exec -T "$1" python /opt/fedbus/healthcheck.py "$2" >/dev/null 2>&1; then
      echo "$1 is well"
      return
    fi
    sleep 1
  done
  echo "error: $1 is not well after 60 tries" >&2
  return 1
}

if [ -z "${SKIP_BUILD:-}" ]; then
  echo "building the images"
  compose build broker w1
fi
echo "starting the containers"
# Step by step: not every compose implementation waits for `service_healthy`.
compose up -d --no-build broker
healthy broker broker
compose up -d --no-build planner aggregator evaluator enroll
for service in planner aggregator evaluator enroll; do
  healthy "$service" "$service"
done
compose up -d --no-build invite w1 w2
healthy w1 worker
healthy w2 worker

echo "running two rounds of $task"
compose exec -T planner sh -c 'cat > plan.yaml' <<PLAN
task: $task
rounds: 2
data: {partition: iid, parts: 2}
cohort: {min: 2}
close: {quorum: 2, deadline_s: 180}
PLAN
compose exec -T planner fedbus round start plan.yaml --name check --watch
compose exec -T planner fedbus round list
compose exec -T planner fedbus round show check
compose exec -T planner fedbus round show check/2
echo "two rounds went through the containers"
