package deadlock

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// Times of a detector.
const (
	DocTTL     = time.Minute            // of a document that is not renewed
	renewEvery = 20 * time.Second       // a document that still says something
	spacing    = 100 * time.Millisecond // between two rounds
	firstAgain = 500 * time.Millisecond // from one look to the next, twice as long each time
	lastAgain  = 5 * time.Second
	judging    = 30 * time.Second // bound of one conviction
)

// Place is where a detector works.
type Place interface {
	Judge
	// Publish writes the document of one of this process's leases, or removes it where value is nil, if its
	// revision is rev. On error it returns the revision to try next.
	Publish(ctx context.Context, lease string, value []byte, rev uint64) (uint64, error)
	// Abort has the wait end because of the circle, if it still waits: see Detector.Ended.
	Abort(ctx context.Context, w *Waiter, c Cycle)
	// Poke has the process of a lease look at once. It is a hint.
	Poke(lease string)
}

// Member is a unit of work of this process.
type Member interface {
	// Describe tells of the unit, without its waits: which entries it holds now.
	Describe() Unit
}

// Waiter is an acquire or a conversion of a unit of work, while it waits.
type Waiter struct {
	Key, ID string
	Lease   string
	Mode    record.Mode
	Holder  string // of a conversion: the hold
	Unit    Member
	Data    any // the caller's own

	// Guarded by the detector's mutex.
	due      time.Time // of the next look
	looks    int
	overdue  bool // it has waited for longer than the delay
	judged   bool // it is being judged
	queued   uint64
	back     bool
	unproven int
}

// published is a document of this process as it is stored.
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

	mu    sync.Mutex
	waits map[string]*Waiter    // by id
	docs  map[string]*published // by lease; not modified, but replaced
	at    time.Time             // when the loop wakes by itself; zero = it does not
	wake  chan struct{}

	says atomic.Bool // there are documents

	probes, reads, victims, cut atomic.Uint64
}

// New returns a detector. Run it.
func New(p Place, delay time.Duration) *Detector {
	return &Detector{place: p, delay: delay, waits: map[string]*Waiter{}, docs: map[string]*published{}, wake: make(chan struct{}, 1)}
}

// Stats are counters.
type Stats struct {
	Probes  uint64 // looks
	Reads   uint64 // that they took
	Cuts    uint64 // looks that were cut short
	Victims uint64 // waits that were aborted
}

// Plus adds the counters of another detector.
func (s Stats) Plus(o Stats) Stats {
	return Stats{s.Probes + o.Probes, s.Reads + o.Reads, s.Cuts + o.Cuts, s.Victims + o.Victims}
}

// Ended counts a wait that was ended by Abort. Abort itself may come twice, or to one that was granted and released.
func (d *Detector) Ended() { d.victims.Add(1) }

// Stats returns the detector's counters.
func (d *Detector) Stats() Stats {
	return Stats{d.probes.Load(), d.reads.Load(), d.cut.Load(), d.victims.Load()}
}

// Begin says that w waits. It costs nothing but memory before the delay is over.
func (d *Detector) Begin(w *Waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.due = time.Now().Add(d.delay)
	d.waits[w.ID] = w
	d.wakeBy(w.due)
}

// End says that w waits no more.
func (d *Detector) End(w *Waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waits[w.ID] == w {
		delete(d.waits, w.ID)
		if w.overdue {
			d.nudge() // what is published about it is to go
		}
	}
}

// Poke has every unit that is published looked at now.
func (d *Detector) Poke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waits {
		if w.overdue {
			w.due = time.Unix(0, 0)
		}
	}
	d.nudge()
}

// Changed says that some unit holds more or less than before. It is cheap while nothing is published.
func (d *Detector) Changed() {
	if d.says.Load() {
		d.nudge()
	}
}

// Own is that of Source.
func (d *Detector) Own(lease string) *Doc {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.docs[lease]; p != nil {
		return p.doc
	}
	return nil
}

// wakeBy has the loop awake at t. Called with mu held.
func (d *Detector) wakeBy(t time.Time) {
	if d.at.IsZero() || t.Before(d.at) {
		d.at = t
		d.nudge()
	}
}

func (d *Detector) nudge() { pause.Wake(d.wake) }

// Run is the detector's loop, until ctx ends.
func (d *Detector) Run(ctx context.Context) {
	var judges sync.WaitGroup
	defer judges.Wait()
	t := time.NewTimer(0)
	defer t.Stop()
	last := time.Time{} // of the last round
	for {
		t.Stop()
		if in, ok := d.next(time.Now()); ok {
			t.Reset(max(in, time.Until(last.Add(spacing))))
		}
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
			if rest := time.Until(last.Add(spacing)); rest > 0 && !pause.For(ctx, rest) {
				return
			}
		case <-t.C:
		}
		if due, work := d.take(time.Now()); work {
			last = time.Now()
			d.round(ctx, due, &judges)
		}
	}
}

// next tells when there is something to do; ok is false where there is nothing until the next Begin.
func (d *Detector) next(now time.Time) (in time.Duration, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = time.Time{}
	sooner := func(t time.Time) {
		if d.at.IsZero() || t.Before(d.at) {
			d.at = t
		}
	}
	for _, w := range d.waits {
		if !w.judged {
			sooner(w.due)
		}
	}
	for _, p := range d.docs {
		sooner(p.at.Add(renewEvery))
	}
	return d.at.Sub(now), !d.at.IsZero()
}

// take returns the waits that are to be looked at now. work is whether a round is worth it.
func (d *Detector) take(now time.Time) (due []*Waiter, work bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waits {
		if !w.due.After(now) && !w.judged {
			w.overdue = true
			due = append(due, w)
		}
	}
	return due, len(due)+len(d.docs) > 0
}

// round publishes what has changed and then looks: whoever closes a circle sees the documents of the others.
func (d *Detector) round(ctx context.Context, due []*Waiter, judges *sync.WaitGroup) {
	d.publish(ctx)
	now := time.Now()
	var starts []node
	first := true // of all of them
	d.mu.Lock()
	for _, w := range due {
		// Its unit is in the document of every lease that it stands under.
		if p := d.docs[w.Lease]; p != nil && slices.ContainsFunc(p.doc.Units, func(u Unit) bool { return u.waits(w.ID) }) {
			starts = append(starts, node{w.Key, w.ID})
			first = first && w.looks == 0
		}
		w.due = now.Add(pause.Near(min(firstAgain<<min(w.looks, 8), lastAgain)))
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
		d.cut.Add(1)
	}
	for _, group := range g.circles() {
		g.readWaiting(ctx, group) // else two processes could each take the other's wait for the victim, for ever
		v, ok := g.victim(group)
		if !ok {
			continue
		}
		d.mu.Lock()
		w := d.waits[v.wait.ID]
		mine := w != nil && !w.judged
		if mine {
			w.judged = true
		}
		d.mu.Unlock()
		switch {
		case mine:
			judges.Go(func() { d.judge(ctx, w, g.through(node{v.wait.Key, v.wait.ID})) })
		case w == nil:
			d.place.Poke(record.LeaseOf(v.wait.ID))
		}
	}
}

// judge convicts a wait of this process if the circle stands.
func (d *Detector) judge(ctx context.Context, w *Waiter, path []edge) {
	ctx, cancel := context.WithTimeout(ctx, judging)
	defer cancel()
	c, agrees, proved := confirm(ctx, d.place, path)
	d.mu.Lock()
	switch {
	case !agrees:
		w.unproven = 0
	case !proved:
		w.unproven++
		proved = w.unproven >= agreeing
	}
	there := d.waits[w.ID] == w
	d.mu.Unlock()
	if proved && there {
		d.place.Abort(ctx, w, c)
	}
	d.mu.Lock()
	w.judged = false
	w.due = time.Now().Add(pause.Near(firstAgain))
	d.wakeBy(w.due)
	d.mu.Unlock()
}

// publish writes the documents that are to say something else than they do, and those that are to be renewed.
func (d *Detector) publish(ctx context.Context) {
	units := d.compose()
	d.mu.Lock()
	for lease := range d.docs {
		if _, ok := units[lease]; !ok {
			units[lease] = nil // it has nothing to say any more
		}
	}
	d.mu.Unlock()
	var wg sync.WaitGroup
	for lease, list := range units {
		wg.Go(func() { d.write(ctx, lease, list) })
	}
	wg.Wait()
}

// write brings the document of one lease to what it has to say.
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
	if err != nil { // once more, at what the server says it stands at
		rev, err = d.place.Publish(ctx, lease, is.value, rev)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch is.rev = rev; {
	case is.value == nil:
		delete(d.docs, lease) // what could not be removed ends by itself
	case err == nil:
		d.docs[lease] = &is
	case was == nil: // nobody reads it
	default:
		old := *was
		old.rev = rev
		d.docs[lease] = &old
	}
	d.says.Store(len(d.docs) > 0)
}

// compose returns the units that are to be documented, by lease: those that hold something beside what they
// convert and have waited for longer than the delay.
func (d *Detector) compose() map[string][]Unit {
	d.mu.Lock()
	long := map[Member][]*Waiter{}
	for _, w := range d.waits {
		if w.overdue {
			long[w.Unit] = nil
		}
	}
	for _, w := range d.waits {
		if _, ok := long[w.Unit]; ok {
			long[w.Unit] = append(long[w.Unit], w)
		}
	}
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

// describe is what a document says of a wait.
func (d *Detector) describe(w *Waiter) Wait {
	rec, _, known := d.place.Cached(w.Key)
	d.mu.Lock()
	defer d.mu.Unlock()
	if rw, ok := rec.Waiting(w.ID); ok {
		w.queued, w.back = rw.Queued, false
	} else if known && w.queued == 0 && rec != nil {
		_, granted := rec.Holder(w.ID)
		w.back = !granted
	}
	return Wait{Key: w.Key, ID: w.ID, Mode: w.Mode, Queued: w.queued, Back: w.back}
}
