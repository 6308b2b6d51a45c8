package main

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/kv"
)

// leases follows how long the holders on the local server may take their locks for
// theirs. When its files are gone it can't be asked for that any more.
type leases struct {
	nc *nats.Conn

	mu   sync.Mutex
	live map[string]leaseTime
}

// leaseTime is when a lease was last seen renewed, and for how long.
type leaseTime struct {
	seen  time.Time
	lasts time.Duration
}

// leasesSuffix is what the buckets of leases of all fabrics have in common.
var leasesSuffix = kv.LeasesBucket("")

// followLeases listens to the writes of leases, and reads those of before in the
// background.
func followLeases(ctx context.Context, srv *embedded.Server) (*leases, error) {
	nc, err := srv.Connect(nats.Name("lockfabric local server"), nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	l := &leases{nc: nc, live: map[string]leaseTime{}}
	if _, err = nc.Subscribe("$KV.*.*", func(m *nats.Msg) { l.see(m.Subject, m.Data) }); err == nil {
		err = nc.Flush()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	go l.readAll(ctx)
	return l, nil
}

// see notes a write, whether or not the server accepts it: a renewal that it refuses
// makes us wait longer than need be. A tombstone counts only where the holder itself
// has written it.
func (l *leases) see(subject string, value []byte) {
	parts := strings.Split(subject, ".")
	if len(parts) != 3 || !strings.HasSuffix(parts[1], leasesSuffix) {
		return
	}
	info, err := lease.Decode(parts[2], value)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch key := parts[1] + "." + info.ID; {
	case !info.Dead:
		l.live[key] = leaseTime{time.Now(), info.TTL + info.Margin}
	case info.Reason != lease.ReasonExpired:
		delete(l.live, key)
	}
}

// readAll takes what the store has for live. What is told twice is counted from
// the later time.
func (l *leases) readAll(ctx context.Context) {
	js, err := jetstream.New(l.nc)
	if err != nil {
		return
	}
	for name := range js.KeyValueStoreNames(ctx).Name() {
		if !strings.HasSuffix(name, leasesSuffix) {
			continue
		}
		bucket, err := js.KeyValue(ctx, name)
		if err != nil {
			continue
		}
		all, err := bucket.WatchAll(ctx, jetstream.IgnoreDeletes())
		if err != nil {
			continue
		}
		for e := range all.Updates() {
			if e == nil {
				break
			}
			l.see("$KV."+name+"."+e.Key(), e.Value())
		}
		_ = all.Stop()
	}
}

// last returns by when every lease has ended if none is renewed after now, now if
// there is none.
func (l *leases) last(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.live, func(_ string, t leaseTime) bool { return now.Sub(t.seen) > t.lasts })
	end := now
	for _, t := range l.live {
		if e := now.Add(t.lasts); e.After(end) {
			end = e
		}
	}
	return end
}
