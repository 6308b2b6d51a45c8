package fabric

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// leastFirst is the shortest time for which unanswered renewals delay other requests after a reconnect.
const leastFirst = time.Second

// gate sends renewals first when a lost connection is restored. The answers to unanswered renewals will not come any
// more, and the leases may end soon. Every request of the manager passes the gate. While there is no connection, other
// requests are refused, as the client itself does. After the reconnect, they wait until the renewals are answered.
type gate struct {
	send   jskv.Requester
	nc     *nats.Conn
	resend func(context.Context) // sends unanswered renewals again and waits for the answers
	limit  func() time.Duration  // limit for this wait: how long an answer takes on this link

	// events reports each change of the connection. The client sends the event before the change takes effect. So no
	// request is sent on a new connection before events contains something or busy is set.
	events chan nats.Status
	busy   atomic.Bool // the gate is closed
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	renewed chan struct{} // closed when the gate is opened; nil while there is no connection
}

// newGate starts a gate. It does not call resend before a request has passed the gate.
func newGate(nc *nats.Conn, send jskv.Requester, limit func() time.Duration, resend func(context.Context)) *gate {
	if send == nil {
		send = nc.RequestMsgWithContext
	}
	ctx, stop := context.WithCancel(context.Background())
	g := &gate{
		send: send, nc: nc, resend: resend, limit: limit, stop: stop, done: make(chan struct{}),
		events: nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED),
	}
	go g.run(ctx)
	return g
}

// close ends the gate's goroutine and leaves the gate open.
func (g *gate) close() {
	g.stop()
	<-g.done
}

func (g *gate) run(ctx context.Context) {
	defer close(g.done)
	defer g.open()
	defer func() {
		g.nc.RemoveStatusListener(g.events)
		for range g.events { // events is closed now
		}
	}()
	for {
		select {
		case <-g.events:
		case <-ctx.Done():
			return
		}
		g.busy.Store(true)
		switch status := g.nc.Status(); {
		case status == nats.CLOSED: // the client refuses everything
			g.open()
		case status != nats.CONNECTED:
		default:
			g.renewFirst(ctx)
		}
	}
}

// renewFirst sends the renewals again and then opens the gate.
func (g *gate) renewFirst(ctx context.Context) {
	g.mu.Lock()
	g.renewed = make(chan struct{})
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, max(g.limit(), leastFirst))
	defer cancel()
	g.resend(ctx)
	g.open()
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy.Store(false)
	if g.renewed != nil {
		close(g.renewed)
		g.renewed = nil
	}
}

// request is the manager's jskv.Requester.
func (g *gate) request(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	if (g.busy.Load() || len(g.events) > 0) && !lease.Renewing(ctx) {
		if err := g.wait(ctx); err != nil {
			return nil, err
		}
	}
	return g.send(ctx, msg)
}

// wait waits until the renewals are answered. An error means that nothing was sent.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	renewed, open := g.renewed, !g.busy.Load() && len(g.events) == 0
	g.mu.Unlock()
	switch {
	case open: // opened in the meantime
		return nil
	case renewed == nil:
		return nats.ErrReconnectBufExceeded
	}
	select {
	case <-renewed:
		return nil
	case <-ctx.Done():
		return nats.ErrReconnectBufExceeded
	}
}

// lookPause is the shortest time between two checks of the buckets.
const lookPause = 250 * time.Millisecond

// doubts collects reports that the buckets may not be those that were opened. No report is lost: after each report a
// check begins, and several reports may share a check. It is safe for concurrent use.
type doubts struct {
	raised  atomic.Uint64 // number of reports
	settled atomic.Uint64 // number of reports that a check has answered
	wake    chan struct{}

	mu   sync.Mutex
	news chan struct{} // closed and replaced when settled grows
}

func newDoubts() *doubts { return &doubts{wake: make(chan struct{}, 1), news: make(chan struct{})} }

// raise reports a doubt and returns its number. It never blocks.
func (d *doubts) raise() uint64 {
	n := d.raised.Add(1)
	pause.Wake(d.wake)
	return n
}

func (d *doubts) pending() bool { return d.settled.Load() < d.raised.Load() }

// wait returns nil when the doubt with this number is settled, or ctx's error.
func (d *doubts) wait(ctx context.Context, n uint64) error {
	for {
		d.mu.Lock()
		news := d.news
		d.mu.Unlock()
		if d.settled.Load() >= n {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run calls look for each doubt, until ctx ends or look returns jskv.ErrBucketGone, which run returns. After another
// error nothing is known, and it calls look again.
func (d *doubts) run(ctx context.Context, look func(context.Context) error) error {
	for {
		select {
		case <-d.wake:
		case <-ctx.Done():
			return nil
		}
		for d.pending() {
			n := d.raised.Load() // the doubts from before this check
			switch err := look(ctx); {
			case err == nil:
				d.mu.Lock()
				d.settled.Store(n)
				close(d.news)
				d.news = make(chan struct{})
				d.mu.Unlock()
			case errors.Is(err, jskv.ErrBucketGone):
				return err
			}
			if !pause.For(ctx, lookPause) {
				return nil
			}
		}
	}
}
