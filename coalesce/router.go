package coalesce

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// RouterConfig configures a router.
type RouterConfig struct {
	// Belt sends every operation on both roads at once, for tests.
	Belt bool
	// Always sends every operation to the owner while there is one, even if its key is not
	// contended. It is for tests and measurements.
	Always bool
}

// Router is an engine.Doer that chooses between the direct and the coalesced road for each operation.
// It is safe for concurrent use.
type Router struct {
	engine    *engine.Engine
	client    *Client
	cfg       RouterConfig
	ownerHere atomic.Bool // this process is the owner
	hasWork   atomic.Bool // acquires or trips are not empty

	// The client's mutex guards all fields below.
	routes         map[string]*route
	trips          map[*trip]struct{} // not over yet
	lastNumber     uint64             // of the newest trip
	acquires       map[string]*trip   // by id: acquires that are not answered or hold by a turn
	queues         map[string]*queue  // by key
	passedReleases map[string][]*trip // by key: releases whose turn was passed, and that may not be done yet
	tick           *time.Timer
}

// route describes a contended key.
type route struct {
	alone int // consecutive grants for which no other entry was in the record
	used  time.Time
}

// A key goes back to the direct road after maxAlone grants without another entry, or after maxIdle without use.
const (
	maxAlone  = 8
	maxIdle   = 30 * time.Second
	maxRoutes = 1 << 12
)

// NewRouter returns a router over this process's engine and a client. The engine's configuration must set
// Contended to the router's.
func NewRouter(e *engine.Engine, c *Client, cfg RouterConfig) *Router {
	r := &Router{
		engine: e, client: c, cfg: cfg, routes: map[string]*route{}, trips: map[*trip]struct{}{}, acquires: map[string]*trip{}, queues: map[string]*queue{},
		passedReleases: map[string][]*trip{},
	}
	c.mu.Lock()
	c.router = r
	if cfg.Belt || cfg.Always {
		c.findOwner()
	}
	c.mu.Unlock()
	return r
}

// Close ends the router and its client. Requests without an answer end with
// engine.ErrClosed. The caller closes the engine.
func (r *Router) Close() {
	c := r.client
	c.Close()
	c.mu.Lock()
	defer c.unlock()
	if r.tick != nil {
		r.tick.Stop()
	}
	for t := range r.trips {
		r.forgetOpenCalls(t)
		r.answer(t, engine.Outcome{}, engine.ErrClosed)
	}
}

// SetHere says whether this process is the owner. If it is, all its operations take the direct road: the same engine also
// carries out the operations of other processes.
func (r *Router) SetHere(on bool) { r.ownerHere.Store(on) }

// Contended is called by the engine: other processes use the key, too.
func (r *Router) Contended(key string) {
	c := r.client
	c.mu.Lock()
	defer c.mu.Unlock() // not c.unlock, because the caller holds a lock of the engine
	switch {
	case c.closed || r.ownerHere.Load():
	case c.current == nil:
		c.findOwner()
	default:
		r.route(key).alone = 0
	}
}

// route returns the route of a key, and makes it if there is none. Called with mu held.
func (r *Router) route(key string) *route {
	now := time.Now()
	rt := r.routes[key]
	if rt == nil {
		for k, old := range r.routes {
			if len(r.routes) < maxRoutes {
				break
			}
			if now.Sub(old.used) > maxIdle || len(r.routes) >= 2*maxRoutes {
				delete(r.routes, k)
			}
		}
		rt = &route{}
		r.routes[key] = rt
	}
	rt.used = now
	return rt
}

// Submit implements engine.Doer.
func (r *Router) Submit(reqs ...*engine.Request) {
	if !r.needsRouting() {
		r.engine.Submit(reqs...)
		return
	}
	c := r.client
	c.mu.Lock()
	for _, q := range reqs {
		if r.submit(q) {
			c.due.submit(q)
		}
	}
	c.unlock()
}

// SubmitInOrder is the engine's SubmitInOrder if all requests take the direct road, and Submit if not.
func (r *Router) SubmitInOrder(reqs ...*engine.Request) {
	if !r.needsRouting() {
		r.engine.SubmitInOrder(reqs...)
		return
	}
	r.Submit(reqs...)
}

// SubmitHere is the engine's SubmitHere for a request that takes the direct road alone, and Submit for any other.
func (r *Router) SubmitHere(q *engine.Request) (over bool) {
	if r.needsRouting() {
		r.client.mu.Lock()
		direct := r.submit(q)
		r.client.unlock()
		if !direct {
			return
		}
	}
	return r.engine.SubmitHere(q)
}

// needsRouting reports whether the coalesced road may be used, or work is left on it. With Always it also looks for an owner.
func (r *Router) needsRouting() bool {
	served, here := r.client.hasOwner.Load(), r.ownerHere.Load()
	if r.cfg.Always && !served && !here {
		r.client.mu.Lock()
		r.client.findOwner()
		r.client.mu.Unlock()
	}
	return served && !here || r.hasWork.Load()
}

// submit starts a trip for a request. It returns true if the request takes the direct road alone: then the caller gives it
// to the engine. Called with mu held.
func (r *Router) submit(q *engine.Request) (direct bool) {
	coalesced := r.goesToOwner(q)
	release := q.Op.Verb == record.OpRelease
	asked := r.acquires[q.Op.ID]
	if q.Op.Verb == record.OpTry || q.Op.Verb == record.OpAcquire && q.Op.Owner != "" {
		r.retryIfBlockedByReleased(q)
	}
	if release && asked != nil && asked.answered {
		r.forgetOpenCalls(asked)
	}
	if q.Guest != nil || r.client.closed || !coalesced {
		r.sendReleasesFirst(q.Key)
		r.recordTurn(q)
		return true
	}
	r.lastNumber++
	t := &trip{req: q, number: r.lastNumber, startedAt: time.Now()}
	q.Via = t
	r.trips[t] = struct{}{}
	r.hasWork.Store(true)
	if release {
		r.engine.NoteHold(q.Op.Hold)
		t.call = r.sendToOwner(t, q.Op)
	} else {
		if asked != nil { // a repeated request with this id
			t.sinceRev, t.wentDirect = asked.sinceRev, true
		}
		r.acquires[q.Op.ID] = t
		r.enqueue(t)
	}
	if r.cfg.Belt {
		r.goDirect(t)
	}
	r.armTick()
	return false
}

// retryIfBlockedByReleased makes a request end with ErrGone, so that its caller tries again, if it is refused because of an
// entry whose release this process has already started. The entry is released once more, on the direct road.
// Called with mu held.
func (r *Router) retryIfBlockedByReleased(q *engine.Request) {
	var ghosts []string
	for _, owed := range r.engine.Owed(q.Op.Lease) {
		if owed.Key == q.Key {
			ghosts = append(ghosts, owed.Op.ID)
		}
	}
	for t := range r.trips {
		if t.isRelease() && t.req.Key == q.Key {
			ghosts = append(ghosts, t.req.Op.ID)
		}
	}
	if len(ghosts) == 0 {
		return
	}
	done := q.Done
	q.Done = func(out engine.Outcome, err error) {
		var no *engine.RefusedError
		if errors.As(err, &no) && (no.Verdict == record.Held || no.Verdict == record.AlreadyHeld) && slices.Contains(ghosts, no.Blocker.ID) {
			r.client.mu.Lock()
			for t := range r.trips { // a release that is under way may find no entry any more
				t.maybeDone = t.maybeDone || t.isRelease() && t.req.Op.ID == no.Blocker.ID
			}
			r.client.unlock()
			r.engine.ReleaseInBackground(q.Key, no.Blocker.Lease(), no.Blocker.ID, 0)
			err = engine.ErrGone
		}
		done(out, err)
	}
}

// Routed reports whether operations on the key take the coalesced road at present.
func (r *Router) Routed(key string) bool {
	if r.cfg.Belt || r.cfg.Always {
		return true
	}
	if !r.needsRouting() {
		return false
	}
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	return r.currentRoute(key) != nil
}

// currentRoute returns the route of a key whose requests go to the owner, and nil for a key whose requests go directly. It
// drops an old route. Called with mu held.
func (r *Router) currentRoute(key string) *route {
	rt := r.routes[key]
	if rt != nil && (rt.alone >= maxAlone || time.Since(rt.used) > maxIdle) {
		delete(r.routes, key)
		return nil
	}
	return rt
}

// goesToOwner decides whether a request is sent to the owner, or held back behind others that may be. Called with mu held.
func (r *Router) goesToOwner(q *engine.Request) bool {
	c := r.client
	if c.closed || q.Keeper != nil {
		return false
	}
	rt, behind := r.currentRoute(q.Key), false // first, as the other checks cost more
	if held := r.queues[q.Key]; held != nil {
		behind = len(held.waiting) > 0 && q.Op.Verb == record.OpAcquire
	}
	chosen := c.current != nil && !r.ownerHere.Load() && (rt != nil || r.cfg.Belt || r.cfg.Always)
	if !behind && !chosen || !canCarry(q.Key, &q.Op) || !isLeaseOf(q.Op.Lease, c.cfg.Manager) {
		return false
	}
	if rt != nil {
		rt.used = time.Now()
	}
	return true
}

// Withdraw implements engine.Doer.
func (r *Router) Withdraw(q *engine.Request, cause error) {
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	switch t, _ := q.Via.(*trip); {
	case t == nil:
		c.due.add(action{withdraw: q, cause: cause})
	case !t.answered && t.cause == nil:
		r.withdraw(t, cause)
	}
}

// Look handles a hint that the key's record has changed. See engine.Engine.Look.
func (r *Router) Look(key string, rev uint64) {
	r.engine.Look(key, rev)
	if !r.hasWork.Load() {
		return
	}
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	for _, t := range r.tripsInOrder(key) {
		if t.call != nil && t.cause == nil && !t.isRelease() {
			r.goDirect(t) // a process that grants by a direct write does not tell the owner
		}
	}
}

// ReleaseInBackground is the engine's ReleaseInBackground. It ends the acquire on both roads.
func (r *Router) ReleaseInBackground(key, lease, id string, atLeast uint64) {
	if !r.takeBackByID(id) {
		r.engine.ReleaseInBackground(key, lease, id, atLeast)
	}
}

// UndoInBackground is the engine's UndoInBackground. It ends the acquire on both roads.
func (r *Router) UndoInBackground(key string, op record.Op, atLeast uint64) {
	if !r.takeBackByID(op.ID) {
		r.engine.UndoInBackground(key, op, atLeast)
	}
}

// takeBackByID releases an acquire that an owner may still write, or that holds by a turn. It reports whether there is one
// with this id.
func (r *Router) takeBackByID(id string) bool {
	if !r.hasWork.Load() {
		return false
	}
	r.client.mu.Lock()
	defer r.client.unlock()
	t := r.acquires[id]
	switch {
	case t == nil:
		return false
	case t.answered:
		r.takeBack(t)
	case t.cause == nil:
		r.answer(t, engine.Outcome{}, engine.ErrGone)
	}
	return true
}

// Stats returns the client's counters.
func (r *Router) Stats() ClientStats { return r.client.Stats() }
