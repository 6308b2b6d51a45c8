#!/bin/sh
# Shows with the stock nats command who holds a lock, and who waits for it:
#
#	LOCKFABRIC_SERVER=nats://localhost:4222 ./inside.sh
#
# It needs lockfabric and nats in the PATH, and a server that both can reach.
set -eu
export NATS_URL="${LOCKFABRIC_SERVER:?name the server}"
fabric=${LOCKFABRIC_FABRIC:-lockfabric}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

step() { printf '\n$ %s\n' "$*"; "$@"; }
until_() { until "$@" >/dev/null 2>&1; do sleep 0.1; done; }
record() { nats kv get "$fabric-locks" resource-key --raw; }

# One holds the lock until descriptor 3 is closed, and another one waits for it.
mkfifo "$dir/hold"
lockfabric lock resource-key --stdin --owner Ada --meta job=demo <"$dir/hold" >"$dir/token" &
exec 3>"$dir/hold"
until_ test -s "$dir/token"
nats kv watch "$fabric-locks" >"$dir/watch" 2>&1 3>&- &
watcher=$!
lockfabric run resource-key --owner Bob -- echo "Bob has it" 3>&- >"$dir/bob" &
until_ sh -c "nats kv get '$fabric-locks' resource-key --raw | grep '\"waiters\":\\['"

step nats kv ls "$fabric-locks"
step nats kv get "$fabric-locks" resource-key
holder=$(record | sed 's/.*"holders":\[{"id":"\([^".]*\).*/\1/')
step nats kv get "$fabric-leases" "$holder"

printf '\nAda lets go of it.\n'
exec 3>&-
until_ grep PURGE "$dir/watch"
kill "$watcher"
cat "$dir/bob"
printf '\n$ nats kv watch %s\n' "$fabric-locks"
cat "$dir/watch"
