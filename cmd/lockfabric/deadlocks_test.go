//go:build unix

package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestDeadlocksCommand(t *testing.T) {
	t.Parallel()
	m := manager(t, fabric.WithDeadlockDelay(0))
	code, stdout, stderr := run(t, lockfabric(t, "deadlocks"))
	if code != 0 || stdout != "nobody who holds something waits for long\n" {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
	if code, _, stderr := run(t, lockfabric(t, "deadlocks", "--watch", "--every", "0s")); code != 64 || !strings.Contains(stderr, "--every=0s") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	seen := start(t, lockfabric(t, "--output", "json", "deadlocks", "--watch", "--every", "50ms"))
	seen.expect(`{"units":[],"deadlocks":[]}`)
	first, err := m.Acquire(t.Context(), "k1", fabric.WithOwner("alice"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = m.Acquire(t.Context(), "k2", fabric.WithOwner("bob")); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = m.Acquire(t.Context(), "k2", fabric.WithOwner("alice")) }()
	if line := seen.line(); !strings.Contains(line, `"owner":"alice"`) {
		t.Errorf("seen: %s", line)
	}
	code, stdout, stderr = run(t, lockfabric(t, "--output", "json", "deadlocks"))
	var w fabric.Waits
	if err := json.Unmarshal([]byte(stdout), &w); err != nil || code != 0 || len(w.Units) != 1 || len(w.Deadlocks) != 0 || w.Units[0].Waits[0].Key != "k2" || w.Units[0].Holds[0] != first.ID() ||
		len(w.Units[0].Waits[0].Blockers) != 1 || w.Units[0].Waits[0].Blockers[0].Owner != "bob" || w.Units[0].Waits[0].Blockers[0].Waiting {
		t.Errorf("exit code %d, %v, %s%s", code, err, stdout, stderr)
	}
	code, stdout, _ = run(t, lockfabric(t, "deadlocks"))
	if code != 0 || !strings.Contains(stdout, "alice") || !strings.Contains(stdout, "k2 (X)") {
		t.Errorf("exit code %d, %s", code, stdout)
	}
	seen.signal(killable)
	seen.exits(0)
}
