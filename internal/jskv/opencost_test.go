package jskv_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

var tombstones = flag.Int("tombstones", 10_000, "tombstones in the bucket of TestOpeningCostsTheSameAfterABusyDay")

// leave puts n tombstones of leases into the bucket, as a day of short runs does.
func leave(t *testing.T, nc *nats.Conn, leases *jskv.Bucket, n int) {
	t.Helper()
	js, err := nc.JetStream(nats.PublishAsyncMaxPending(4096), nats.MaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	value := `{"v":1,"id":"%[1]s","state":"dead","reason":"closed","by":"host:1","at":1795381826727,"ttl":30000,"margin":1500,"host":"host","pid":1,"seen":%[2]d}`
	for i := range n {
		id := fmt.Sprintf("lease%017d", i)
		msg := &nats.Msg{Subject: "$KV." + leases.Name() + "." + id, Data: fmt.Appendf(nil, value, id, 1795381826727799+i), Header: nats.Header{"Nats-TTL": {"24h"}}}
		if _, err := js.PublishMsgAsync(msg, nats.StallWait(patience)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(10 * patience):
		t.Fatal("the tombstones are not written")
	}
}

// Opening a fabric that exists asks a fixed number of questions and gets as many
// answers, however many leases have ended since yesterday.
func TestOpeningCostsTheSameAfterABusyDay(t *testing.T) {
	srv := startServer(t)
	nc := dial(t, srv)
	b := open(t, nc, jskv.Config{})
	leases := b.Leases
	update(t, b.Locks[0], "k", "v", 0) // it is in use
	cost := func() (out, in uint64) {
		// A request that is repeated because the machine is busy counts for nothing.
		for range 5 {
			nc := dial(t, srv)
			open(t, nc, jskv.Config{})
			s := nc.Stats()
			nc.Close()
			if out == 0 || s.OutMsgs < out {
				out, in = s.OutMsgs, s.InMsgs
			}
		}
		return out, in
	}
	out, in := cost()
	leave(t, nc, leases, *tombstones)
	start := time.Now()
	out2, in2 := cost()
	t.Logf("opening with %d tombstones: %d messages out, %d in; %v each", *tombstones, out2, in2, time.Since(start)/5)
	if out2 != out || in2 != in || out > 6 {
		t.Errorf("opening costs %d messages out and %d in, with %d tombstones %d and %d", out, in, *tombstones, out2, in2)
	}
}
