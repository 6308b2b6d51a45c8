package coalesce

import (
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/internal/rtt"
)

// Times of a client.
const (
	window       = 2                      // frames that are not acknowledged
	leastSilence = 100 * time.Millisecond // after which a frame's operations go directly
	firstSilence = 500 * time.Millisecond // the same, before anything was measured
	helloAgain   = time.Second            // after nobody was there
	helloSilence = time.Second            // after which a hello is taken to be lost
	helloRarest  = 10 * time.Minute       // between two of those that get no answer; each time twice as long as before
	beatsMissed  = 4
	invitations  = 3 // hellos to an owner whose beats are heard, before they become rare
)

// ClientConfig is what a client is made of. Conn, Fabric, Manager and Stamp are needed.
type ClientConfig struct {
	Conn   *nats.Conn
	Fabric string
	// Manager is the id of this client among all: 1 to 64 letters, digits and '_'. The ids of its leases
	// begin with it and a '-'; other leases go directly.
	Manager string
	Stamp   Stamp
	Shard   int
	// Unserved is called, if it is not nil, when operations were contended and nobody serves the
	// shard: the connection said so. It must return at once.
	Unserved func()
	Logger   *slog.Logger
}

// Client sends operations to the owner of a shard. It has no goroutine of its own; a Router works
// on top of it. It is safe for concurrent use.
type Client struct {
	cfg    ClientConfig
	inbox  string
	served atomic.Bool // there is an owner to send to

	mu      sync.Mutex
	closed  bool
	listens bool
	subs    []*nats.Subscription
	now     *term            // that is sent to, nil if there is none
	terms   map[uint64]*term // all that something may still come of
	highest uint64           // term that was heard of
	seen    uint64           // newest revision that an owner told
	link    rtt.Estimator
	least   time.Duration // of silence and of waiting before the direct road is taken; of tests
	timer   *time.Timer   // of the oldest frame without an answer
	timing  bool          // it is running
	beatDue *time.Timer

	helloAt    time.Time // when the next one may be sent
	helloPause time.Duration
	// invited is the term that was asked last since its beat was heard, and invitations how often.
	invited     uint64
	invitations int
	heardBack   bool        // a hello was answered, be it that nobody is there
	hello       *time.Timer // running while one is out

	suspensions []time.Time // the last ones
	restUntil   time.Time   // no owner is used before
	rest        time.Duration

	router *Router // told of events
	due    actions
	stats  ClientStats
}

// ClientStats counts what a client has done since it was made.
type ClientStats struct {
	Term       uint64 // that is sent to, 0 = none
	Frames     uint64
	Operations uint64
	Replies    uint64
	Hellos     uint64
	Suspended  uint64        // times that an owner was taken to be lost
	Fallbacks  uint64        // operations that went directly because no owner answered in time
	Held       int           // acquires that wait in this process for a place at the owner
	Turns      uint64        // acquires that hold by a turn
	Dropped    uint64        // messages that were malformed, or from nobody who was asked
	RTT        time.Duration // smoothed, from a frame to its acknowledgement; 0 before the first
}

// term is an owner as a client knows it.
type term struct {
	id      uint64
	lease   string
	subject string
	seq     uint64
	out     []*call // not sent yet
	unacked []sent
	calls   map[callKey]*call // without a final outcome
	next    time.Duration     // until the next beat, at most
}

// callKey names an operation in a term.
type callKey struct {
	id      string
	release bool
}

// call is an operation on its way to, or at, an owner.
type call struct {
	item
	term  *term
	frame uint64 // that brought it last, 0 = not sent
	sends int
	trip  *trip
}

type sent struct {
	frame uint64
	at    time.Time
	calls []*call
}

func (k *call) name() callKey { return callKey{k.op.ID, k.op.Verb == record.OpRelease} }

// NewClient returns a client. It subscribes to its subjects at once, and to the owner's beats when
// it needs an owner for the first time.
func NewClient(cfg ClientConfig) (*Client, error) {
	if !validManager(cfg.Manager) {
		return nil, errors.New("coalesce: a manager's id is 1 to 64 letters, digits and '_'")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Unserved == nil {
		cfg.Unserved = func() {}
	}
	c := &Client{cfg: cfg, inbox: inbox(cfg.Fabric, cfg.Shard, cfg.Manager), terms: map[uint64]*term{}}
	sub, err := cfg.Conn.Subscribe(c.inbox+">", c.receive)
	if err != nil {
		return nil, err
	}
	c.subs = append(c.subs, sub)
	return c, nil
}

// Close ends the client. What it has sent may still be carried out.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.served.Store(false)
	for _, t := range []*time.Timer{c.timer, c.beatDue, c.hello} {
		if t != nil {
			t.Stop()
		}
	}
	for _, sub := range c.subs {
		_ = sub.Unsubscribe()
	}
}

// Stats returns the counters.
func (c *Client) Stats() ClientStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.stats
	st.RTT, _ = c.link.RTT()
	if c.now != nil {
		st.Term = c.now.id
	}
	if c.router != nil {
		for _, q := range c.router.queues {
			st.Held += len(q.held)
		}
	}
	return st
}

// Plus adds up the counters of a client that is no more.
func (st ClientStats) Plus(past ClientStats) ClientStats {
	st.Frames, st.Operations, st.Replies = st.Frames+past.Frames, st.Operations+past.Operations, st.Replies+past.Replies
	st.Hellos, st.Suspended = st.Hellos+past.Hellos, st.Suspended+past.Suspended
	st.Fallbacks, st.Turns, st.Dropped = st.Fallbacks+past.Fallbacks, st.Turns+past.Turns, st.Dropped+past.Dropped
	return st
}

// unlock lets mu go and does what is due then.
func (c *Client) unlock() {
	if c.now != nil && !c.closed {
		c.send(c.now)
	}
	due := c.due
	c.due = actions{}
	c.mu.Unlock()
	due.do(c.router)
}

// want looks for an owner, if none is known. Called with mu held.
func (c *Client) want() {
	now := time.Now()
	if c.closed || c.now != nil || now.Before(c.helloAt) || now.Before(c.restUntil) {
		return
	}
	c.helloAt = now.Add(helloAgain)
	if !c.listens {
		sub, err := c.cfg.Conn.Subscribe(BeatSubject(c.cfg.Fabric, c.cfg.Shard), c.heard)
		if err != nil {
			return
		}
		c.subs, c.listens = append(c.subs, sub), true
	}
	c.stats.Hellos++
	if c.cfg.Conn.PublishRequest(HelloSubject(c.cfg.Fabric, c.cfg.Shard), c.inbox+"h", nil) != nil {
		return
	}
	if c.hello != nil {
		c.hello.Stop()
	}
	c.hello = time.AfterFunc(helloSilence, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.now == nil { // perhaps it may not be asked, or who was chosen to answer is stopped
			c.helloPause = min(max(2*c.helloPause, helloAgain), helloRarest)
			c.helloAt = time.Now().Add(c.helloPause)
		}
	})
}

// receive is called for every message to this client.
func (c *Client) receive(m *nats.Msg) {
	kind := strings.TrimPrefix(m.Subject, c.inbox)
	nobody := len(m.Data) == 0 && m.Header.Get("Status") == "503"
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.closed:
	case kind == "r":
		c.take(m.Data)
	case kind == "h" && nobody && c.hello != nil:
		c.hello.Stop()
		c.helloPause, c.heardBack = 0, true
		go c.cfg.Unserved()
	case kind == "h":
		c.heardBack = true
		c.meet(m.Data)
	case strings.HasPrefix(kind, "f.") && nobody:
		c.unheard(strings.TrimPrefix(kind, "f."))
	default:
		c.stats.Dropped++
	}
}

// heard is called for every beat.
func (c *Client) heard(m *nats.Msg) {
	c.mu.Lock()
	defer c.unlock()
	if !c.closed && (c.heardBack || !c.invite(m.Data)) {
		c.meet(m.Data)
	}
}

// invite has an owner asked whose beat was heard, as long as nothing has come back: a client may
// hear owners that don't hear it. Whoever was to become the owner may have been asked before, and does
// not answer. It reports whether the beat is one to wait for an answer to. Called with mu held.
func (c *Client) invite(data []byte) bool {
	b, err := decodeBeat(data)
	if err != nil || b.bye {
		return false
	}
	if b.term != c.invited {
		c.invited, c.invitations = b.term, 0
	}
	if c.invitations < invitations {
		c.invitations++
		c.helloAt = time.Time{}
	}
	c.want()
	return true
}

// meet takes in that an owner is there, or goes. Called with mu held.
func (c *Client) meet(data []byte) {
	b, err := decodeBeat(data)
	if err != nil || b.stamp != c.cfg.Stamp || b.min > frameVersion || b.max < frameVersion {
		c.stats.Dropped++
		return
	}
	t := c.terms[b.term]
	switch {
	case b.term < c.highest, leaseOf(b.lease, c.cfg.Manager):
		return // of an owner that was deposed, or is this process
	case b.bye:
		c.highest = b.term + 1 // nobody is to come back to it
		if t != nil && t == c.now {
			c.lose(t)
		}
		return
	case t == nil:
		t = &term{
			id: b.term, lease: b.lease, subject: opSubject(c.cfg.Fabric, c.cfg.Shard, b.term), calls: map[callKey]*call{},
		}
		c.terms[b.term] = t
	}
	c.highest = b.term
	if t.next = time.Duration(b.next) * time.Millisecond; t.next <= 0 {
		t.next = beatIdle
	}
	if c.hello != nil {
		c.hello.Stop()
	}
	c.helloPause = 0
	if c.now != t && time.Now().After(c.restUntil) {
		if c.now != nil {
			c.lose(c.now)
		}
		c.now = t
		c.served.Store(true)
		c.forget()
	}
	c.expectBeat()
}

// forget drops terms that nothing can come of any more. Called with mu held.
func (c *Client) forget() {
	for id, t := range c.terms {
		if t != c.now && len(t.calls) == 0 {
			delete(c.terms, id)
		}
	}
}

// expectBeat has the owner suspended when its beats fail to come. Called with mu held.
func (c *Client) expectBeat() {
	t := c.now
	if t == nil {
		return
	}
	if c.beatDue != nil {
		c.beatDue.Stop()
	}
	c.beatDue = time.AfterFunc(max(beatsMissed*t.next+leastSilence, c.least), func() {
		c.mu.Lock()
		defer c.unlock()
		if c.now == t && !c.closed {
			c.suspend(t)
		}
	})
}

// suspend takes the owner to be lost until it is heard of again. Called with mu held.
func (c *Client) suspend(t *term) {
	c.stats.Suspended++
	now := time.Now()
	c.suspensions = append(c.suspensions, now)
	if n := len(c.suspensions); n >= 3 {
		if now.Sub(c.suspensions[n-3]) < flapping {
			c.rest = min(max(2*c.rest, flapping), flappingMost)
			c.restUntil = now.Add(c.rest)
			c.suspensions = nil
		} else {
			c.rest = 0
			c.suspensions = c.suspensions[n-2:]
		}
	}
	c.lose(t)
}

// An owner that is lost so often in that time is not used for as long, and longer each time.
const (
	flapping     = 10 * time.Second
	flappingMost = time.Minute
)

// lose hands everything that is at an owner back to the router. Called with mu held.
func (c *Client) lose(t *term) {
	if c.now == t {
		c.now = nil
		c.served.Store(false)
		if c.beatDue != nil {
			c.beatDue.Stop()
		}
	}
	t.out, t.unacked = nil, nil
	for key, k := range t.calls {
		if k.sends == 0 {
			delete(t.calls, key)
			c.router.concluded(k, &outcome{kind: notDone})
		} else {
			if c.router.lost(k); k.name().release || k.trip.answered {
				delete(t.calls, key) // what becomes of it does not matter
			}
		}
	}
	if c.router != nil {
		c.router.unholdAll()
	}
}

// unheard takes in that a frame reached nobody. Called with mu held.
func (c *Client) unheard(frame string) {
	termText, seqText, _ := strings.Cut(frame, ".")
	id, err1 := strconv.ParseUint(termText, 10, 64)
	seq, err2 := strconv.ParseUint(seqText, 10, 64)
	t := c.terms[id]
	if err1 != nil || err2 != nil || t == nil {
		return
	}
	for _, k := range t.calls {
		if k.frame == seq && k.sends == 1 {
			k.sends = 0 // it is nowhere
		}
	}
	if t == c.now {
		c.suspend(t)
	}
}
