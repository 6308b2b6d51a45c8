//go:build unix

package main

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/kv"
)

func TestRefusalNamesHostAndProcess(t *testing.T) {
	t.Parallel()
	holder := start(t, lockfabric(t, "run", "k", "--", self(t), "child", "TERM"))
	holder.ready()
	code, _, stderr := run(t, lockfabric(t, "run", "k", "--wait", "0", "--", "true"))
	if who := " on " + hostname() + " pid " + strconv.Itoa(holder.cmd.Process.Pid); code != 75 || !strings.Contains(stderr, who) {
		t.Errorf("exit code %d, %s, want one with %q", code, stderr, who)
	}
	holder.signal(killable)
	holder.exits(0)
}

func TestRefusedConnectionIsCalledSo(t *testing.T) {
	t.Parallel()
	code, _, stderr := run(t, bare(t, "--server", "nats://127.0.0.1:1", "ls"))
	if code != 69 || !strings.Contains(stderr, "connection refused") || strings.Contains(stderr, "no servers available") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// What is wrong with a bucket has its remedy; that JetStream runs is known by then.
func TestUnsafeBucketHasOneRemedy(t *testing.T) {
	t.Parallel()
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: kv.LocksBucket(fabricName(t)), MaxBytes: 1 << 20, TTL: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := run(t, lockfabric(t, "ls"))
	if code != 69 || strings.Contains(stderr, "runs with JetStream") || strings.Contains(stderr, "check --server") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// Whom locks without a server exclude is said by the first run, and never again.
func TestScopeIsSaidOnce(t *testing.T) {
	t.Parallel()
	m := freshMachine(t)
	for i, args := range [][]string{{"ls"}, {"run", "k", "--", "true"}, {"run", "k", "--", "true"}} {
		code, _, stderr := run(t, m.command(args...))
		if said := strings.Contains(stderr, "this user on this host"); code != 0 || said != (i == 1) {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
}

// A silent server is tried for as long as --timeout says, not for one attempt.
func TestSilentServerIsTriedForTheWholeTimeout(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	code, _, stderr := run(t, bare(t, "--server", silentServer(t), "--timeout", "7s", "ls"))
	if took := time.Since(begun); code != 69 || took < 7*time.Second || !strings.Contains(stderr, "--timeout=7s") {
		t.Errorf("exit code %d after %v, %s", code, took, stderr)
	}
}
