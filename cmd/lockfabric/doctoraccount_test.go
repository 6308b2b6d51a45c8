//go:build unix

package main

import (
	"strings"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

// Doctor names a limit of the account before the first program meets it.
func TestDoctorAccountWithoutRoom(t *testing.T) {
	t.Parallel()
	named := natsserver.NewAccount("SMALL")
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, StoreDir: t.TempDir(), Accounts: []*natsserver.Account{named},
		Users: []*natsserver.User{{Username: "u", Password: "u", Account: named}}})
	account, err := srv.LookupAccount("SMALL")
	if err != nil {
		t.Fatal(err)
	}
	limit := func(l natsserver.JetStreamAccountLimits) {
		if err := account.UpdateJetStreamLimits(map[string]natsserver.JetStreamAccountLimits{"": l}); err != nil {
			t.Fatal(err)
		}
	}
	none := natsserver.JetStreamAccountLimits{MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1}
	few := none
	few.MaxStreams = 1
	if err := account.EnableJetStream(map[string]natsserver.JetStreamAccountLimits{"": few}, nil); err != nil {
		t.Fatal(err)
	}
	d := examine(t, as("u", srv.ClientURL()))
	d.exits(78)
	d.has("limits", doctor.Problem, "can't be created", "the account may have 1 and has 0", "raise that limit")

	few = none
	few.MaxConsumers = 1000
	limit(few)
	examine(t, as("u", srv.ClientURL())).exits(0)
	code, _, stderr := run(t, bare(t, "--server", as("u", srv.ClientURL()), "run", "k", "--", "true"))
	if code != 0 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// Full storage is called so, with what helps.
func TestFullStorageIsNamed(t *testing.T) {
	t.Parallel()
	named := natsserver.NewAccount("FULL")
	srv := testserver.Start(t, &natsserver.Options{JetStream: true, StoreDir: t.TempDir(), Accounts: []*natsserver.Account{named},
		Users: []*natsserver.User{{Username: "u", Password: "u", Account: named}}})
	account, err := srv.LookupAccount("FULL")
	if err != nil {
		t.Fatal(err)
	}
	limits := natsserver.JetStreamAccountLimits{MaxMemory: -1, MaxStore: 50_000, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1}
	if err := account.EnableJetStream(map[string]natsserver.JetStreamAccountLimits{"": limits}, nil); err != nil {
		t.Fatal(err)
	}
	url := as("u", srv.ClientURL())
	js := made(t, url)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "fill", Subjects: []string{"fill"}}); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1000, 50} {
		for err = nil; err == nil; {
			_, err = js.Publish(t.Context(), "fill", make([]byte, size))
		}
	}
	code, _, stderr := run(t, bare(t, "--server", url, "--fabric", fabricName(t), "--timeout", "10s", "run", "k", "--wait", "10s", "--", "true"))
	if code != 69 || !strings.Contains(stderr, "storage is full") || !strings.Contains(stderr, "free storage") || strings.Contains(stderr, "--tlsfirst") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
