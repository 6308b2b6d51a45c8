package deadlock

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Times of a detector.
const (
	DocTTL            = time.Minute            // of a document that is not renewed
	renewEvery        = 20 * time.Second       // between renewals of a document that is still needed
	spacing           = 100 * time.Millisecond // least time between two rounds
	firstRelook       = 500 * time.Millisecond // from one look to the next; doubled each time
	maxRelook         = 5 * time.Second
	convictionTimeout = 30 * time.Second // bounds one conviction
)

// Place does the I/O of a detector.
type Place interface {
	Judge
	// Publish writes the document of one of this process's leases if its revision is rev, or removes it if value is nil.
	// On error it returns the revision to try next.
	Publish(ctx context.Context, lease string, value []byte, rev uint64) (uint64, error)
	// Abort ends the wait because of the circle, if it still waits: see Detector.Ended.
	Abort(ctx context.Context, w *Waiter, c Cycle)
	// Poke asks the process of a lease to look at once. It is a hint.
	Poke(lease string)
}

// Member is a unit of work of this process.
type Member interface {
	// Describe returns the unit without its waits: the entries that it holds now.
	Describe() Unit
}

// Waiter is a waiting acquire or conversion of a unit of work.
type Waiter struct {
	Key, ID string
	Lease   string
	Mode    record.Mode
	Holder  string // of a conversion: the id of the hold
	Unit    Member
	Data    any // for the caller

	// Guarded by the detector's mutex.
	due        time.Time // of the next look
	looks      int
	overdue    bool // it has waited for longer than the delay
	convicting bool // a conviction of it is under way
	queued     uint64
	heldBack   bool
	unproven   int
}

// published is a document of this process in its stored form.
type published struct {
	doc   *Doc
	value []byte
	rev   uint64
	at    time.Time
}

// Detector watches the waits of one process.
type Detector struct {
	place Place
	delay time.Duration

	mu     sync.Mutex
	waits  map[string]*Waiter    // by id
	docs   map[string]*published // by lease; replaced, never modified
	wakeAt time.Time             // when the loop wakes by itself; zero = never
	wake   chan struct{}

	hasDocs atomic.Bool // docs is not empty

	probes, reads, victims, cuts atomic.Uint64
}

// New returns a detector. Run it.
func New(p Place, delay time.Duration) *Detector {
	return &Detector{place: p, delay: delay, waits: map[string]*Waiter{}, docs: map[string]*published{}, wake: make(chan struct{}, 1)}
}

// Stats are counters.
type Stats struct {
	Probes  uint64 // looks
	Reads   uint64 // reads of these looks
	Cuts    uint64 // looks that were cut short
	Victims uint64 // waits that were aborted
}

// Ended counts a wait that Abort has ended. Abort itself may be called twice, or for a wait that was granted meanwhile.
func (d *Detector) Ended() { d.victims.Add(1) }

// Stats returns the detector's counters.
func (d *Detector) Stats() Stats {
	return Stats{d.probes.Load(), d.reads.Load(), d.cuts.Load(), d.victims.Load()}
}

// Begin says that w waits. Before the delay is over it costs only memory.
func (d *Detector) Begin(w *Waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.due = time.Now().Add(d.delay)
	d.waits[w.ID] = w
	d.wakeBy(w.due)
}

// End says that w does not wait any more.
func (d *Detector) End(w *Waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waits[w.ID] == w {
		delete(d.waits, w.ID)
		if w.overdue {
			d.wakeLoop() // to remove it from the documents
		}
	}
}

// Poke starts a look for every published unit now.
func (d *Detector) Poke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waits {
		if w.overdue {
			w.due = time.Unix(0, 0)
		}
	}
	d.wakeLoop()
}

// Changed says that the holds of a unit have changed. It is cheap while nothing is published.
func (d *Detector) Changed() {
	if d.hasDocs.Load() {
		d.wakeLoop()
	}
}

// Own returns the published document of a lease, see Source.
func (d *Detector) Own(lease string) *Doc {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.docs[lease]; p != nil {
		return p.doc
	}
	return nil
}

// wakeBy makes the loop wake at t at the latest. Called with mu held.
func (d *Detector) wakeBy(t time.Time) {
	if d.wakeAt.IsZero() || t.Before(d.wakeAt) {
		d.wakeAt = t
		d.wakeLoop()
	}
}

func (d *Detector) wakeLoop() { pause.Wake(d.wake) }

// Run is the detector's loop, until ctx ends.
func (d *Detector) Run(ctx context.Context) {
	var judges sync.WaitGroup
	defer judges.Wait()
	last := time.Time{} // of the last round
	for pause.Until(ctx, d.nextWork(time.Now()), d.wake) {
		if rest := time.Until(last.Add(spacing)); rest > 0 && !pause.For(ctx, rest) {
			return
		}
		if due, work := d.dueWaits(time.Now()); work {
			last = time.Now()
			d.round(ctx, due, &judges)
		}
	}
}

// nextWork returns how long there is nothing to do, unless something begins.
func (d *Detector) nextWork(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wakeAt = time.Time{}
	earlier := func(t time.Time) {
		if d.wakeAt.IsZero() || t.Before(d.wakeAt) {
			d.wakeAt = t
		}
	}
	for _, w := range d.waits {
		if !w.convicting {
			earlier(w.due)
		}
	}
	for _, p := range d.docs {
		earlier(p.at.Add(renewEvery))
	}
	if d.wakeAt.IsZero() {
		return time.Hour
	}
	return d.wakeAt.Sub(now)
}

// dueWaits returns the waits that need a look now. work is whether there is anything to do in a round.
func (d *Detector) dueWaits(now time.Time) (due []*Waiter, work bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waits {
		if !w.due.After(now) && !w.convicting {
			w.overdue = true
			due = append(due, w)
		}
	}
	return due, len(due)+len(d.docs) > 0
}

// round publishes changes and then looks. So the process that closes a circle sees the documents of the others.
func (d *Detector) round(ctx context.Context, due []*Waiter, judges *sync.WaitGroup) {
	d.publish(ctx)
	now := time.Now()
	var starts []node
	first := true // all of these waits look for the first time
	d.mu.Lock()
	for _, w := range due {
		// Its unit is in the document of each of its leases.
		if p := d.docs[w.Lease]; p != nil && slices.ContainsFunc(p.doc.Units, func(u Unit) bool { return u.waits(w.ID) }) {
			starts = append(starts, node{w.Key, w.ID})
			first = first && w.looks == 0
		}
		w.due = now.Add(pause.Near(min(firstRelook<<min(w.looks, 8), maxRelook)))
		w.looks++
	}
	d.mu.Unlock()
	if len(starts) == 0 {
		return
	}
	g := look(ctx, d.place, starts, first)
	d.probes.Add(1)
	d.reads.Add(uint64(g.reads))
	if g.exhausted {
		d.cuts.Add(1)
	}
	for _, group := range g.circles() {
		g.readWaiting(ctx, group) // otherwise two processes could pick each other's wait as the victim, for ever
		v, ok := g.victim(group)
		if !ok {
			continue
		}
		d.mu.Lock()
		w := d.waits[v.wait.ID]
		mine := w != nil && !w.convicting
		if mine {
			w.convicting = true
		}
		d.mu.Unlock()
		switch {
		case mine:
			judges.Go(func() { d.convict(ctx, w, g.circleThrough(node{v.wait.Key, v.wait.ID})) })
		case w == nil:
			d.place.Poke(record.LeaseOf(v.wait.ID))
		}
	}
}

// convict aborts a wait of this process if the circle still exists.
func (d *Detector) convict(ctx context.Context, w *Waiter, path []edge) {
	ctx, cancel := context.WithTimeout(ctx, convictionTimeout)
	defer cancel()
	c, agrees, proved := confirm(ctx, d.place, path)
	d.mu.Lock()
	switch {
	case !agrees:
		w.unproven = 0
	case !proved:
		w.unproven++
		proved = w.unproven >= enoughUnproven
	}
	there := d.waits[w.ID] == w
	d.mu.Unlock()
	if proved && there {
		d.place.Abort(ctx, w, c)
	}
	d.mu.Lock()
	w.convicting = false
	w.due = time.Now().Add(pause.Near(firstRelook))
	d.wakeBy(w.due)
	d.mu.Unlock()
}

// publish writes the documents that have changed, and those that are due for renewal.
func (d *Detector) publish(ctx context.Context) {
	units := d.compose()
	d.mu.Lock()
	for lease := range d.docs {
		if _, ok := units[lease]; !ok {
			units[lease] = nil // its document is to be removed
		}
	}
	d.mu.Unlock()
	var wg sync.WaitGroup
	for lease, list := range units {
		wg.Go(func() { d.write(ctx, lease, list) })
	}
	wg.Wait()
}

// write updates the document of one lease.
func (d *Detector) write(ctx context.Context, lease string, units []Unit) {
	d.mu.Lock()
	was := d.docs[lease]
	d.mu.Unlock()
	is := published{at: time.Now()}
	if len(units) > 0 {
		is.doc, is.value = encode(units)
	}
	if was != nil {
		if is.rev = was.rev; is.value != nil && bytes.Equal(was.value, is.value) && time.Since(was.at) < renewEvery {
			return
		}
	}
	rev, err := d.place.Publish(ctx, lease, is.value, is.rev)
	if err != nil { // once more, at the revision that the server named
		rev, err = d.place.Publish(ctx, lease, is.value, rev)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch is.rev = rev; {
	case is.value == nil:
		delete(d.docs, lease) // if the removal failed, the document expires
	case err == nil:
		d.docs[lease] = &is
	case was == nil: // there is no document to keep
	default:
		old := *was
		old.rev = rev
		d.docs[lease] = &old
	}
	d.hasDocs.Store(len(d.docs) > 0)
}

// compose returns the units to publish, by lease: those that have waited for longer than the delay, and hold
// something besides the hold that they convert.
func (d *Detector) compose() map[string][]Unit {
	d.mu.Lock()
	long := map[Member][]*Waiter{}
	for _, w := range d.waits {
		long[w.Unit] = append(long[w.Unit], w)
	}
	maps.DeleteFunc(long, func(_ Member, waits []*Waiter) bool {
		return !slices.ContainsFunc(waits, func(w *Waiter) bool { return w.overdue })
	})
	d.mu.Unlock()
	out := map[string][]Unit{}
	for m, waits := range long {
		u := m.Describe()
		apart := slices.ContainsFunc(u.Holds, func(id string) bool {
			return slices.ContainsFunc(waits, func(w *Waiter) bool { return w.Holder != id })
		})
		if !apart {
			continue
		}
		leases := map[string]bool{}
		for _, id := range u.Holds {
			leases[record.LeaseOf(id)] = true
		}
		slices.SortFunc(waits, func(a, b *Waiter) int { return cmp.Compare(a.ID, b.ID) })
		for _, w := range waits {
			leases[w.Lease] = true
			u.Waits = append(u.Waits, d.describe(w))
		}
		if slices.Sort(u.Holds); len(u.Holds) > MaxHolds {
			u.Holds, u.All = nil, true
		}
		for lease := range leases {
			out[lease] = append(out[lease], u)
		}
	}
	for _, units := range out {
		slices.SortFunc(units, func(a, b Unit) int { return cmp.Or(cmp.Compare(a.oldest(), b.oldest()), cmp.Compare(a.Unit, b.Unit)) })
	}
	return out
}

func (u *Unit) oldest() uint64 {
	oldest := uint64(1<<64 - 1)
	for _, w := range u.Waits {
		oldest = min(oldest, candidate{wait: w}.queued())
	}
	return oldest
}

// describe returns a wait for a document.
func (d *Detector) describe(w *Waiter) Wait {
	rec, _, known := d.place.Cached(w.Key)
	d.mu.Lock()
	defer d.mu.Unlock()
	if rw, ok := rec.Waiting(w.ID); ok {
		w.queued, w.heldBack = rw.Queued, false
	} else if known && w.queued == 0 && rec != nil {
		_, granted := rec.Holder(w.ID)
		w.heldBack = !granted
	}
	return Wait{Key: w.Key, ID: w.ID, Mode: w.Mode, Queued: w.queued, Back: w.heldBack}
}
