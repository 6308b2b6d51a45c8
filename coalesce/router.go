package coalesce

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// RouterConfig says how a router works.
type RouterConfig struct {
	// Belt sends every operation on both roads at once, for tests.
	Belt bool
	// Always sends every operation to the owner while there is one, also for keys that nobody else
	// wants, for tests and measurements.
	Always bool
}

// Router is an engine.Doer that takes, for each operation, the direct road or that over the owner.
// It is safe for concurrent use.
type Router struct {
	engine *engine.Engine
	client *Client
	cfg    RouterConfig
	here   atomic.Bool // the owner is this process
	owes   atomic.Bool // there is something in asked or trips

	// All below is guarded by the client's mutex.
	routes map[string]*route
	trips  map[*trip]struct{} // that are not over
	asked  map[string]*trip   // acquires that are not answered, or hold by a turn, by id
	queues map[string]*queue  // by key
	passes map[string][]*trip // by key: releases whose turn went on, and that are not known to be done
	tick   *time.Timer
}

// route is what is known of a key that was contended.
type route struct {
	alone int // grants in a row that found nobody else
	used  time.Time
}

// A key goes back to the direct road after so many grants that found nobody else, or unused for so long.
const (
	aloneMost = 8
	idleMost  = 30 * time.Second
	maxRoutes = 1 << 12
)

// NewRouter returns a router over the process's engine and a client. The engine's configuration has
// Contended call the router's.
func NewRouter(e *engine.Engine, c *Client, cfg RouterConfig) *Router {
	r := &Router{
		engine: e, client: c, cfg: cfg, routes: map[string]*route{}, trips: map[*trip]struct{}{}, asked: map[string]*trip{}, queues: map[string]*queue{},
		passes: map[string][]*trip{},
	}
	c.mu.Lock()
	c.router = r
	if cfg.Belt || cfg.Always {
		c.want()
	}
	c.mu.Unlock()
	return r
}

// Close ends the router's work, and its client. Requests that are not answered end with
// engine.ErrClosed. The engine is the caller's to close.
func (r *Router) Close() {
	c := r.client
	c.Close()
	c.mu.Lock()
	defer c.unlock()
	if r.tick != nil {
		r.tick.Stop()
	}
	for t := range r.trips {
		r.settle(t)
		r.answer(t, engine.Outcome{}, engine.ErrClosed)
	}
}

// SetHere says whether the owner is this process: then everything is direct, and meets what comes
// from others in the same engine.
func (r *Router) SetHere(on bool) { r.here.Store(on) }

// Contended is for engine.Config: this process is not alone on the key.
func (r *Router) Contended(key string) {
	c := r.client
	c.mu.Lock()
	defer c.mu.Unlock() // not unlock: the caller holds a lock of the engine
	switch {
	case c.closed || r.here.Load():
	case c.now == nil:
		c.want()
	default:
		r.route(key).alone = 0
	}
}

// route returns the key's, made new if need be. Called with mu held.
func (r *Router) route(key string) *route {
	now := time.Now()
	rt := r.routes[key]
	if rt == nil {
		for k, old := range r.routes {
			if len(r.routes) < maxRoutes {
				break
			}
			if now.Sub(old.used) > idleMost || len(r.routes) >= 2*maxRoutes {
				delete(r.routes, k)
			}
		}
		rt = &route{}
		r.routes[key] = rt
	}
	rt.used = now
	return rt
}

// Submit is that of engine.Doer.
func (r *Router) Submit(reqs ...*engine.Request) {
	if !r.busy() {
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

// SubmitInOrder is that of the engine where there is nothing but the direct road, and Submit elsewhere.
func (r *Router) SubmitInOrder(reqs ...*engine.Request) {
	if !r.busy() {
		r.engine.SubmitInOrder(reqs...)
		return
	}
	r.Submit(reqs...)
}

// SubmitHere is that of the engine for what takes the direct road alone, and Submit for the rest.
func (r *Router) SubmitHere(q *engine.Request) (over bool) {
	if r.busy() {
		r.client.mu.Lock()
		direct := r.submit(q)
		r.client.unlock()
		if !direct {
			return
		}
	}
	return r.engine.SubmitHere(q)
}

// busy reports whether there is anything but the direct road. It asks for an owner where one is always wanted.
func (r *Router) busy() bool {
	served, here := r.client.served.Load(), r.here.Load()
	if r.cfg.Always && !served && !here {
		r.client.mu.Lock()
		r.client.want()
		r.client.mu.Unlock()
	}
	return served && !here || r.owes.Load()
}

// submit has a request carried out, unless it takes the direct road alone: then the caller gives it to the engine.
// Called with mu held.
func (r *Router) submit(q *engine.Request) (direct bool) {
	coalesced := r.coalesced(q)
	release := q.Op.Verb == record.OpRelease
	asked := r.asked[q.Op.ID]
	if q.Op.Verb == record.OpTry || q.Op.Verb == record.OpAcquire && q.Op.Owner != "" {
		r.passGhosts(q)
	}
	if release && asked != nil && asked.answered {
		r.settle(asked)
	}
	if q.Guest != nil || r.client.closed || !coalesced {
		r.lead(q.Key)
		r.advance(q)
		return true
	}
	t := &trip{req: q, since: time.Now()}
	q.Via = t
	r.trips[t] = struct{}{}
	r.owes.Store(true)
	if release {
		r.engine.NoteHold(q.Op.Hold)
		t.call = r.ask(t, q.Op)
	} else {
		if asked != nil { // the same again
			t.seen, t.wentDirect = asked.seen, true
		}
		r.asked[q.Op.ID] = t
		r.enter(t)
	}
	if r.cfg.Belt {
		r.goDirect(t)
	}
	r.arm()
	return false
}

// passGhosts has a request asked for again that is refused by what this process had released before: the release has
// not come there yet. It is taken back at once. Called with mu held.
func (r *Router) passGhosts(q *engine.Request) {
	var ghosts []string
	for _, owed := range r.engine.Owed(q.Op.Lease) {
		if owed.Key == q.Key {
			ghosts = append(ghosts, owed.Op.ID)
		}
	}
	for t := range r.trips {
		if t.releases() && t.req.Key == q.Key {
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
			for t := range r.trips { // one that is under way may find nothing any more
				t.missed = t.missed || t.releases() && t.req.Op.ID == no.Blocker.ID
			}
			r.client.unlock()
			r.engine.ReleaseInBackground(q.Key, no.Blocker.Lease(), no.Blocker.ID, 0)
			err = engine.ErrGone
		}
		done(out, err)
	}
}

// Routed reports whether what is asked of the key now takes another road than the direct one.
func (r *Router) Routed(key string) bool {
	if r.cfg.Belt || r.cfg.Always {
		return true
	}
	if !r.busy() {
		return false
	}
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	return r.currentRoute(key) != nil
}

// currentRoute returns the route of a key whose requests go to the owner, nil of one whose requests go directly. It drops
// a route that is old. Called with mu held.
func (r *Router) currentRoute(key string) *route {
	rt := r.routes[key]
	if rt != nil && (rt.alone >= aloneMost || time.Since(rt.used) > idleMost) {
		delete(r.routes, key)
		return nil
	}
	return rt
}

// coalesced decides whether a request is sent to the owner. Called with mu held.
func (r *Router) coalesced(q *engine.Request) bool {
	c := r.client
	if c.now == nil || c.closed || r.here.Load() || q.Keeper != nil || !carries(q.Key, &q.Op) || !leaseOf(q.Op.Lease, c.cfg.Manager) {
		return false
	}
	if r.cfg.Belt || r.cfg.Always {
		return true
	}
	rt := r.currentRoute(q.Key)
	if rt != nil {
		rt.used = time.Now()
	}
	return rt != nil
}

// Withdraw is that of engine.Doer.
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

// Look is for hints that the key's record has changed: see engine.Engine.Look.
func (r *Router) Look(key string, rev uint64) {
	r.engine.Look(key, rev)
	if !r.owes.Load() {
		return
	}
	c := r.client
	c.mu.Lock()
	defer c.unlock()
	for t := range r.trips {
		if t.req.Key == key && t.call != nil && t.cause == nil && !t.releases() {
			r.goDirect(t) // whoever let it in does not tell the owner
		}
	}
}

// ReleaseInBackground is that of the engine, on every road that the id has taken.
func (r *Router) ReleaseInBackground(key, lease, id string, atLeast uint64) {
	if !r.givesUp(id) {
		r.engine.ReleaseInBackground(key, lease, id, atLeast)
	}
}

// UndoInBackground is that of the engine, on every road that the id has taken.
func (r *Router) UndoInBackground(key string, op record.Op, atLeast uint64) {
	if !r.givesUp(op.ID) {
		r.engine.UndoInBackground(key, op, atLeast)
	}
}

// givesUp takes an acquire back that an owner may still write, or that holds by a turn. It reports whether it is one.
func (r *Router) givesUp(id string) bool {
	if !r.owes.Load() {
		return false
	}
	r.client.mu.Lock()
	defer r.client.unlock()
	t := r.asked[id]
	switch {
	case t == nil:
		return false
	case t.answered:
		r.giveUp(t)
	case t.cause == nil:
		r.answer(t, engine.Outcome{}, engine.ErrGone)
	}
	return true
}

// Stats returns the counters of what was sent to owners.
func (r *Router) Stats() ClientStats { return r.client.Stats() }
