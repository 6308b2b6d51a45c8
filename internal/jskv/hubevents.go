package jskv

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/pause"
)

const (
	// reconnectSpread is over how long the watchers are replaced after a
	// reconnect, since a restarted server gets all its clients at once.
	reconnectSpread = 200 * time.Millisecond

	// goneProbe is a key to read when the question is only whether the bucket
	// exists. It is valid and need not exist.
	goneProbe = "-"
)

// goneChecks are the pauses before each look for the bucket after the server
// has announced its end or its change, which it does when that is not over yet.
var goneChecks = [...]time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, time.Second}

// listen starts the goroutine that hears of reconnects and of the stream's deletion
// or change. The announcement of these is a hint that saves waiting for the next
// poll: without permission to subscribe to it, it is done without.
func (h *Hub) listen(ctx context.Context) {
	nc := h.bucket.nc
	connected := nc.StatusChanged(nats.CONNECTED)
	changed := make(chan *nats.Msg, 8)
	var subs []*nats.Subscription
	for _, what := range []string{"DELETED.", "UPDATED."} {
		if sub, err := nc.ChanSubscribe("$JS.EVENT.ADVISORY.STREAM."+what+h.bucket.stream, changed); err == nil {
			subs = append(subs, sub)
		}
	}
	h.done.Go(func() {
		defer nc.RemoveStatusListener(connected)
		for _, sub := range subs {
			defer func() { _ = sub.Unsubscribe() }()
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-connected:
				h.reconnected()
			case <-changed:
				h.checkGone(ctx)
			}
		}
	})
}

// reconnected replaces all watchers and has all keys read soon: entries may
// have been missed, and a consumer that was without its client for more than
// 5 s does not exist any more.
func (h *Hub) reconnected() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.nextOpen = 0, time.Time{}
	for _, g := range h.groups {
		h.breakGroup(g, pause.Near(reconnectSpread))
	}
	for _, k := range h.keys {
		if k.hot > 0 || h.pace(k) < never {
			h.schedule(k, reconnectSpread)
		}
	}
	h.lookWithin(reconnectSpread)
	wake(h.wakeOpener)
}

// checkGone follows an announcement that the bucket is deleted or changed. One that
// is found may be another by the same name.
func (h *Hub) checkGone(ctx context.Context) {
	h.doubt() // at once, for who goes by what was true before
	for _, after := range goneChecks {
		if !pause.For(ctx, after) {
			return
		}
		rctx, cancel := context.WithTimeout(ctx, readTimeout)
		_, err := h.bucket.Get(rctx, goneProbe)
		cancel()
		if errors.Is(err, ErrBucketGone) {
			h.bucketGone()
			return
		}
		h.doubt()
	}
}

// bucketGone notes and reports that the bucket is gone. The watchers follow a
// stream that is no more; replacing them is how the hub learns of a new one by the
// same name.
func (h *Hub) bucketGone() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	if !h.gone {
		h.gone = true
		for _, g := range h.groups {
			h.breakGroup(g, pause.Near(openRetry))
		}
	}
	h.mu.Unlock()
	h.doubt()
}
