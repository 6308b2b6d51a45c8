package coalesce

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
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
	window        = 2                      // unacknowledged frames at most
	leastSilence  = 100 * time.Millisecond // shortest wait for an acknowledgement before the owner is suspended
	firstSilence  = 500 * time.Millisecond // the same wait before an RTT was measured
	helloAgain    = time.Second            // shortest time between two hellos
	helloSilence  = time.Second            // a hello without an answer for so long is taken to be lost
	helloRarest   = 10 * time.Minute       // longest time between unanswered hellos; it doubles with each
	beatsMissed   = 4
	maxTermHellos = 3 // hellos that a term's beats cause at once; later ones wait for helloAt
)

// ClientConfig configures a client. Conn, Fabric, Manager and Stamp are required.
type ClientConfig struct {
	Conn   *nats.Conn
	Fabric string
	// Manager is the unique id of this client: 1 to 64 letters, digits and '_'. The ids of its leases
	// begin with it and a '-'. Operations under other leases take the direct road.
	Manager string
	Stamp   Stamp
	Shard   int
	// Unserved, if not nil, is called when operations were contended and the server has
	// reported that the shard has no owner. It must return at once.
	Unserved func()
	Logger   *slog.Logger
}

// Client sends operations to the owner of a shard. It has no goroutine of its own. A Router works
// on top of it. It is safe for concurrent use.
type Client struct {
	cfg      ClientConfig
	inbox    string
	hasOwner atomic.Bool // there is an owner to send to

	mu           sync.Mutex
	closed       bool
	subscribed   bool
	subs         []*nats.Subscription
	current      *term            // the term that operations are sent to; nil: none
	terms        map[uint64]*term // all terms that may still send an outcome
	highest      uint64           // the highest term that a beat has named; after its bye one more
	newestRev    uint64           // the highest revision that an owner has reported
	link         rtt.Estimator
	minSilence   time.Duration // the least time to wait before the direct road is taken; set by tests
	replyTimer   *time.Timer   // ends the wait for the oldest acknowledgement
	timerRunning bool          // replyTimer is running
	beatTimer    *time.Timer

	helloAt    time.Time // when the next hello may be sent
	helloPause time.Duration
	// helloTerm is the term that was last sent a hello because of its beat, and termHellos is how often it was.
	helloTerm     uint64
	termHellos    int
	helloAnswered bool        // a hello was answered, by an owner or by the server's report that there is none
	helloTimer    *time.Timer // ends the wait for a hello's answer

	suspensions []time.Time // times of the latest suspensions
	avoidUntil  time.Time   // no owner is used before this time
	avoidFor    time.Duration

	router *Router // gets the events
	due    actions
	stats  ClientStats
}

// ClientStats counts what a client has done since it was made.
type ClientStats struct {
	Term       uint64 // the term that operations are sent to; 0: none
	Frames     uint64
	Operations uint64
	Replies    uint64
	Hellos     uint64
	Suspended  uint64        // times that an owner was taken to be lost
	Fallbacks  uint64        // operations that went directly because no owner answered in time
	Held       int           // acquires that wait in this process for a place at the owner
	Turns      uint64        // acquires that hold by a turn
	Dropped    uint64        // messages that were malformed, or not expected
	RTT        time.Duration // smoothed, from a frame to its acknowledgement; 0 before the first
}

// term is what a client knows of an owner.
type term struct {
	id           uint64
	lease        string
	subject      string
	seq          uint64
	unsent       []*call // not sent yet
	unacked      []sentFrame
	late         []sentFrame       // unacknowledged when the owner was suspended last
	calls        map[callKey]*call // without a final outcome
	beatInterval time.Duration     // longest time until the next beat
}

// callKey identifies an operation within a term.
type callKey struct {
	id      string
	release bool
}

// call is an operation that is on its way to an owner or at one.
type call struct {
	item
	term  *term
	frame uint64 // the last frame that contained it; 0: not sent
	sends int
	trip  *trip
}

type sentFrame struct {
	frame uint64
	at    time.Time
	calls []*call
}

func (k *call) name() callKey { return callKey{k.op.ID, k.op.Verb == record.OpRelease} }

// NewClient returns a client. The client subscribes to its inbox at once. It subscribes to the owner's beats when
// it first needs an owner.
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
	sub, err := cfg.Conn.Subscribe(c.inbox+">", c.onMessage)
	if err != nil {
		return nil, err
	}
	c.subs = append(c.subs, sub)
	return c, nil
}

// Close ends the client. The owner may still carry out what was sent.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.hasOwner.Store(false)
	for _, t := range []*time.Timer{c.replyTimer, c.beatTimer, c.helloTimer} {
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
	if c.current != nil {
		st.Term = c.current.id
	}
	if c.router != nil {
		for _, q := range c.router.queues {
			st.Held += len(q.waiting)
		}
	}
	return st
}

// unlock sends what the window allows, unlocks mu, and then makes the calls that are due.
func (c *Client) unlock() {
	if c.current != nil && !c.closed {
		c.send(c.current)
	}
	due := c.due
	c.due = actions{}
	c.mu.Unlock()
	due.do(c.router)
}

// findOwner sends a hello if no owner is known and it is time for one. Called with mu held.
func (c *Client) findOwner() {
	now := time.Now()
	if c.closed || c.current != nil || now.Before(c.helloAt) || now.Before(c.avoidUntil) {
		return
	}
	c.helloAt = now.Add(helloAgain)
	if !c.subscribed {
		sub, err := c.cfg.Conn.Subscribe(BeatSubject(c.cfg.Fabric, c.cfg.Shard), c.onBeat)
		if err != nil {
			return
		}
		c.subs, c.subscribed = append(c.subs, sub), true
	}
	c.stats.Hellos++
	if c.cfg.Conn.PublishRequest(HelloSubject(c.cfg.Fabric, c.cfg.Shard), c.inbox+"h", nil) != nil {
		return
	}
	if c.helloTimer != nil {
		c.helloTimer.Stop()
	}
	c.helloTimer = time.AfterFunc(helloSilence, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.current == nil { // this user may lack the right to send a hello, or the owner that got it is stopped
			c.helloPause = min(max(2*c.helloPause, helloAgain), helloRarest)
			c.helloAt = time.Now().Add(c.helloPause)
		}
	})
}

// onMessage is called for every message to the client's inbox.
func (c *Client) onMessage(m *nats.Msg) {
	kind := strings.TrimPrefix(m.Subject, c.inbox)
	nobody := len(m.Data) == 0 && m.Header.Get("Status") == "503"
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.closed:
	case kind == "r":
		c.takeReply(m.Data)
	case kind == "h" && nobody && c.helloTimer != nil:
		c.helloTimer.Stop()
		c.helloPause, c.helloAnswered = 0, true
		go c.cfg.Unserved()
	case kind == "h":
		c.helloAnswered = true
		c.takeBeat(m.Data)
	case strings.HasPrefix(kind, "f.") && nobody:
		c.onNoResponders(strings.TrimPrefix(kind, "f."))
	default:
		c.stats.Dropped++
	}
}

// onBeat is called for every beat.
func (c *Client) onBeat(m *nats.Msg) {
	c.mu.Lock()
	defer c.unlock()
	if !c.closed && (c.helloAnswered || !c.helloOnBeat(m.Data)) {
		c.takeBeat(m.Data)
	}
}

// helloOnBeat sends a hello because of a beat, as long as no hello was answered: a client may
// hear beats of an owner that does not get the client's messages. An unanswered hello may also have gone to a former
// owner, so each term gets a few hellos. It returns true if the beat itself must not be used. Called with mu held.
func (c *Client) helloOnBeat(data []byte) bool {
	b, err := decodeBeat(data)
	if err != nil || b.bye {
		return false
	}
	if b.term != c.helloTerm {
		c.helloTerm, c.termHellos = b.term, 0
	}
	if c.termHellos < maxTermHellos {
		c.termHellos++
		c.helloAt = time.Time{}
	}
	c.findOwner()
	return true
}

// takeBeat handles a beat, or a hello's answer: an owner is there, or ends its term. Called with mu held.
func (c *Client) takeBeat(data []byte) {
	b, err := decodeBeat(data)
	if err != nil || b.stamp != c.cfg.Stamp || b.min > frameVersion || b.max < frameVersion {
		c.stats.Dropped++
		return
	}
	t := c.terms[b.term]
	switch {
	case b.term < c.highest, isLeaseOf(b.lease, c.cfg.Manager):
		return // from a deposed owner, or from this process
	case b.bye:
		c.highest = b.term + 1 // this term must not be used again
		if t != nil && t == c.current {
			c.loseOwner(t)
		}
		return
	case t == nil:
		t = &term{
			id: b.term, lease: b.lease, subject: opSubject(c.cfg.Fabric, c.cfg.Shard, b.term), calls: map[callKey]*call{},
		}
		c.terms[b.term] = t
	}
	c.highest = b.term
	if t.beatInterval = time.Duration(b.next) * time.Millisecond; t.beatInterval <= 0 {
		t.beatInterval = beatIdle
	}
	if c.helloTimer != nil {
		c.helloTimer.Stop()
	}
	c.helloPause = 0
	if c.current != t && time.Now().After(c.avoidUntil) {
		if c.current != nil {
			c.loseOwner(c.current)
		}
		c.current = t
		c.hasOwner.Store(true)
		c.forgetTerms()
		if c.router != nil {
			c.router.onOwner()
		}
	}
	c.armBeatTimer()
}

// forgetTerms removes the terms that can send no outcome any more. Called with mu held.
func (c *Client) forgetTerms() {
	for id, t := range c.terms {
		if t != c.current && len(t.calls) == 0 {
			delete(c.terms, id)
		}
	}
}

// armBeatTimer starts the timer that suspends the owner when its beats stop. Called with mu held.
func (c *Client) armBeatTimer() {
	t := c.current
	if t == nil {
		return
	}
	if c.beatTimer != nil {
		c.beatTimer.Stop()
	}
	c.beatTimer = time.AfterFunc(max(beatsMissed*t.beatInterval+leastSilence, c.minSilence), func() {
		c.mu.Lock()
		defer c.unlock()
		if c.current == t && !c.closed {
			c.suspend(t)
		}
	})
}

// suspend treats the owner as lost until its next beat, or for longer if that happens often. Called with mu held.
func (c *Client) suspend(t *term) {
	c.stats.Suspended++
	now := time.Now()
	c.suspensions = append(c.suspensions, now)
	if n := len(c.suspensions); n >= 3 {
		if now.Sub(c.suspensions[n-3]) < flapping {
			c.avoidFor = min(max(2*c.avoidFor, flapping), flappingMost)
			c.avoidUntil = now.Add(c.avoidFor)
			c.suspensions = nil
		} else {
			c.avoidFor = 0
			c.suspensions = c.suspensions[n-2:]
		}
	}
	c.loseOwner(t)
}

// A client that suspends an owner three times within flapping uses none for that time. The time doubles with each
// repetition, up to flappingMost.
const (
	flapping     = 10 * time.Second
	flappingMost = time.Minute
)

// inOrder returns the calls of a term in the order of their requests.
func (t *term) inOrder() []*call {
	return slices.SortedFunc(maps.Values(t.calls), func(a, b *call) int { return inOrder(a.trip, b.trip) })
}

// loseOwner ends the use of a term and hands all its calls back to the router. Called with mu held.
func (c *Client) loseOwner(t *term) {
	if c.current == t {
		c.current = nil
		c.hasOwner.Store(false)
		if c.beatTimer != nil {
			c.beatTimer.Stop()
		}
	}
	t.late, t.unacked, t.unsent = t.unacked, nil, nil
	for _, k := range t.inOrder() {
		if k.sends == 0 {
			delete(t.calls, k.name())
			c.router.ownerAnswered(k, &outcome{kind: notDone})
		} else {
			if c.router.callLost(k); k.name().release || k.trip.answered {
				delete(t.calls, k.name()) // its outcome does not matter
			}
		}
	}
}

// onNoResponders handles the server's report that a frame had no receiver. Called with mu held.
func (c *Client) onNoResponders(frame string) {
	termText, seqText, _ := strings.Cut(frame, ".")
	id, err1 := strconv.ParseUint(termText, 10, 64)
	seq, err2 := strconv.ParseUint(seqText, 10, 64)
	t := c.terms[id]
	if err1 != nil || err2 != nil || t == nil {
		return
	}
	for _, k := range t.calls {
		if k.frame == seq && k.sends == 1 {
			k.sends = 0 // no owner has it
		}
	}
	if t == c.current {
		c.suspend(t)
	}
}
