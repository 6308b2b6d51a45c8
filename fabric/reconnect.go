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

// leastFirst is the least time for which renewals that are not answered hold up what
// else there is to send after a reconnect.
const leastFirst = time.Second

// gate has renewals go first when a lost connection is back: the answers to those that were under way are not to come
// any more, and the leases have no time to lose. Every request of the manager passes it. Others are refused, as the
// client does itself, while there is no connection, and wait until the renewals are answered.
type gate struct {
	send   jskv.RoundTripper
	nc     *nats.Conn
	resend func(context.Context) // sends renewals in doubt again and waits for the answers
	limit  func() time.Duration  // how long an answer takes on this link, for that wait

	// events tells of each change of the connection. The client sends it before the change takes effect, so that no
	// request is sent on a new connection before events holds something or busy is set.
	events chan nats.Status
	busy   atomic.Bool // the gate is not open
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	renewed chan struct{} // closed when the gate is opened; nil while there is no connection
}

// newGate starts a gate. resend is not called before something has passed it.
func newGate(nc *nats.Conn, send jskv.RoundTripper, limit func() time.Duration, resend func(context.Context)) *gate {
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
		for range g.events { // it is closed now
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

// renewFirst has the renewals sent, and then opens the gate, unless the connection has changed again.
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

// trip is the manager's jskv.RoundTripper.
func (g *gate) trip(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	if (g.busy.Load() || len(g.events) > 0) && !lease.Renewing(ctx) {
		if err := g.wait(ctx); err != nil {
			return nil, err
		}
	}
	return g.send(ctx, msg)
}

// wait waits until the renewals have been answered. Its error says that nothing was sent.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	renewed, open := g.renewed, !g.busy.Load() && len(g.events) == 0
	g.mu.Unlock()
	switch {
	case open: // meanwhile
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

// lookPause is the least time between two looks at the buckets.
const lookPause = 250 * time.Millisecond

// doubts joins reports that the buckets may not be those that were opened. No report is dropped: each is followed by
// a look that began after it, which it may share with others. It is safe for concurrent use.
type doubts struct {
	raised  atomic.Uint64 // how many reports there were
	settled atomic.Uint64 // how many of them a look has answered
	wake    chan struct{}

	mu   sync.Mutex
	news chan struct{} // closed, and made anew, when settled grows
}

func newDoubts() *doubts { return &doubts{wake: make(chan struct{}, 1), news: make(chan struct{})} }

// raise reports a doubt and returns its number. It never blocks.
func (d *doubts) raise() uint64 {
	n := d.raised.Add(1)
	pause.Wake(d.wake)
	return n
}

// pending reports whether a doubt is without its answer.
func (d *doubts) pending() bool { return d.settled.Load() < d.raised.Load() }

// wait returns when the doubt with this number is settled, or with ctx's error.
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

// run looks whenever there is a doubt, until ctx ends or a look returns jskv.ErrBucketGone, which it returns. After
// another error nothing is known, and it looks again.
func (d *doubts) run(ctx context.Context, look func(context.Context) error) error {
	for {
		select {
		case <-d.wake:
		case <-ctx.Done():
			return nil
		}
		for d.pending() {
			n := d.raised.Load() // those that came before the look
			switch err := look(ctx); {
			case err == nil:
				d.settle(n)
			case errors.Is(err, jskv.ErrBucketGone):
				return err
			}
			if !pause.For(ctx, lookPause) {
				return nil
			}
		}
	}
}

func (d *doubts) settle(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settled.Store(n)
	close(d.news)
	d.news = make(chan struct{})
}
