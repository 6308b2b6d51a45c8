package jskv_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// check repeats CheckAt while the server says that the key is busy.
func check(t *testing.T, b *jskv.Bucket, key string, rev uint64) error {
	t.Helper()
	at, err := settled(t, func() (uint64, error) { return b.CheckAt(testContext(t), key, rev) })
	if err == nil && at <= rev {
		t.Errorf("checked at %d, which is not after %d", at, rev)
	}
	return err
}

// The result of a check for each state of a key; a check changes none.
func TestCheckAt(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, b *jskv.Bucket) {
		expectConflict(t, check(t, b, "a", 7), "a", 7, 0)
		first := update(t, b, "a", "one", 0)
		other := update(t, b, "b", "other", 0)
		for range 3 {
			if err := check(t, b, "a", first); err != nil {
				t.Errorf("at its revision: %v", err)
			}
		}
		expectConflict(t, check(t, b, "a", first-1), "a", first-1, first)
		expectConflict(t, check(t, b, "a", other), "a", other, first)
		second := update(t, b, "a", "two", first) // which no check has hindered
		expectConflict(t, check(t, b, "a", first), "a", first, second)
		gone, err := settled(t, func() (uint64, error) { return b.Purge(testContext(t), "a", second, jskv.MarkerTTL) })
		if err != nil {
			t.Fatal(err)
		}
		expectConflict(t, check(t, b, "a", second), "a", second, gone)
		if err := check(t, b, "a", gone); err != nil {
			t.Errorf("at a delete marker: %v", err)
		}
		again := update(t, b, "a", "one", gone)
		expectConflict(t, check(t, b, "a", gone), "a", gone, again)
		expectConflict(t, check(t, b, "a", first), "a", first, again)

		listed := 0
		if err := b.Entries(testContext(t), ">", func(e jskv.Entry) bool { listed++; return true }); err != nil || listed != 2 {
			t.Errorf("%d keys are listed, %v", listed, err)
		}
	})
}

// M41: what is checked is one key of this bucket; servers don't check what matches a wildcard safely.
func TestM41_ACheckIsOfOneKey(t *testing.T) {
	nc := dial(t, startServer(t))
	b := open(t, nc, jskv.Config{}).Locks[0]
	first := update(t, b, "a", "one", 0)
	for _, key := range []string{"*", "a.*", ">", "", "a..b"} {
		if _, err := b.CheckAt(testContext(t), key, first); !errors.Is(err, kv.ErrRejected) {
			t.Errorf("check of %q: %v", key, err)
		}
	}
	if _, err := b.CheckAt(testContext(t), "never", 0); !errors.Is(err, kv.ErrRejected) {
		t.Errorf("check of an absence: %v", err)
	}
}

// What the servers make of the header that a check goes by.
func TestServerFact_ExpectedSubject(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, b *jskv.Bucket) {
		code := func(h nats.Header) jetstream.ErrorCode {
			t.Helper()
			reply, err := nc.RequestMsgWithContext(testContext(t), &nats.Msg{Subject: "$KV." + b.Name() + ".=v", Header: h})
			if err != nil {
				t.Fatal(err)
			}
			var ack struct{ Error jetstream.APIError }
			if err := json.Unmarshal(reply.Data, &ack); err != nil {
				t.Fatal(err)
			}
			return ack.Error.ErrorCode
		}
		subject := "$KV." + b.Name() + ".k"
		update(t, b, "k", "one", 0)
		if c := code(nats.Header{"Nats-Expected-Last-Subject-Sequence-Subject": {subject}}); c != 10193 {
			t.Errorf("a subject without a sequence: code %d", c)
		}
		h := nats.Header{"Nats-Expected-Last-Subject-Sequence": {"7"}, "Nats-Expected-Last-Subject-Sequence-Subject": {subject}}
		if c := code(h); c != 10071 {
			t.Errorf("a wrong sequence: code %d", c)
		}
	})
}

// Checks of one key exclude each other on replicas, and nowhere else; each of them that
// is acknowledged was right at some instant while it was under way.
func TestServerFact_ChecksAreRightAndExcludeEachOther(t *testing.T) {
	onServers(t, func(t *testing.T, nc *nats.Conn, b *jskv.Bucket) {
		ctx, cancel := context.WithTimeout(testContext(t), patience)
		defer cancel()
		alone := nc.ConnectedClusterName() == ""
		var written atomic.Uint64 // the newest acknowledged revision
		written.Store(update(t, b, "k", "start", 0))
		var right, stale, busy atomic.Int64
		enough := func() bool {
			return right.Load() >= 50 && stale.Load() >= 50 && (busy.Load() > 0 || alone)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for rev := written.Load(); ctx.Err() == nil && !enough(); {
					before := written.Load()
					switch _, err := b.CheckAt(ctx, "k", rev); {
					case err == nil && rev < before:
						t.Errorf("revision %d was confirmed, and %d had been acknowledged before", rev, before)
						return
					case err == nil:
						right.Add(1)
					case errors.Is(err, jskv.ErrConflict):
						stale.Add(1)
						rev = written.Load()
					case errors.Is(err, jskv.ErrBusy):
						busy.Add(1)
						time.Sleep(time.Millisecond)
					case ctx.Err() == nil:
						t.Errorf("check: %v", err)
						return
					}
				}
			})
		}
		for n := 0; ctx.Err() == nil && !enough(); n++ {
			written.Store(update(t, b, "k", fmt.Sprint(n), written.Load()))
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		if alone && busy.Load() > 0 {
			t.Errorf("%d checks were put off without replicas", busy.Load())
		}
		if !enough() {
			t.Errorf("only %d confirmed, %d stale, %d busy", right.Load(), stale.Load(), busy.Load())
		}
	})
}
