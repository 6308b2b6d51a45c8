package deadlock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// world is a fabric with its records and documents, as leaders have them, without servers.
type world struct {
	t   testing.TB
	mu  sync.Mutex
	rnd *rand.Rand

	rev     uint64
	recs    map[string]versioned
	docs    map[string]stored
	dead    map[string]bool        // leases
	waiters map[string]*simWait    // by id
	procs   map[string]*simProc    // by lease
	entries map[string]*simUnit    // whose entry this is, by id, also of conversions
	letting map[string]bool        // released entries that are still in the record
	victims []*simUnit             // in order
	latest  Cycle                  // of the last victim
	freed   map[*simUnit]time.Time // those whose deadlock the abort of another has ended; nil: not used
	late    int                    // victims whose circle ended so during their conviction
	lag     time.Duration          // of reads, at most
	poked   map[string]int
	writes  int // of documents

	missDoc   func(lease string) bool // a read that finds none
	onProve   func(key string)
	frozen    map[string]bool // processes that don't abort
	onAbort   func(w *Waiter)
	unchecked bool // victims are not checked by the ground truth
}

type stored struct {
	value []byte
	rev   uint64
}

type simWait struct {
	unit *simUnit
	w    *Waiter
	done chan bool // whether it was granted
}

// simProc is a process: one lease, one detector.
type simProc struct {
	w     *world
	lease string
	seq   uint64
	d     *Detector
}

// simUnit is a unit of work.
type simUnit struct {
	p      *simProc
	name   string
	deaths int
	mu     sync.Mutex
	holds  map[string]string // id -> key
	waits  map[string]bool   // ids
}

func newWorld(t testing.TB, seed uint64) *world {
	return &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 12)), recs: map[string]versioned{}, docs: map[string]stored{}, dead: map[string]bool{}, waiters: map[string]*simWait{},
		procs: map[string]*simProc{}, entries: map[string]*simUnit{}, letting: map[string]bool{}, poked: map[string]int{}, frozen: map[string]bool{},
	}
}

// process starts a process whose detector runs until ctx ends.
func (w *world) process(ctx context.Context, lease string, delay time.Duration) *simProc {
	p := &simProc{w: w, lease: lease}
	p.d = New(p, delay)
	w.mu.Lock()
	w.procs[lease] = p
	w.mu.Unlock()
	go p.d.Run(ctx)
	return p
}

func (p *simProc) unit(name string) *simUnit {
	return &simUnit{p: p, name: name, holds: map[string]string{}, waits: map[string]bool{}}
}

func (u *simUnit) Describe() Unit {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := Unit{Unit: u.name, Deaths: u.deaths}
	for id := range u.holds {
		d.Holds = append(d.Holds, id)
	}
	return d
}

// apply makes a write, and ends the waits that it grants or removes. Called with mu held.
func (w *world) apply(key string, op record.Op) record.Verdict {
	op.Kind = record.KindLock
	was := w.recs[key]
	next, results, changed := record.Apply(was.rec, was.rev, []record.Op{op}, record.Limits{})
	if !changed {
		return results[0].Verdict
	}
	w.rev++
	next.Resolve(w.rev)
	w.recs[key] = versioned{next, w.rev}
	for id, sw := range w.waiters {
		if sw.w.Key != key {
			continue
		}
		if _, waits := next.Waiting(id); waits {
			continue
		}
		delete(w.waiters, id)
		_, granted := next.Holder(id)
		if sw.w.Holder != "" {
			h, _ := next.Holder(sw.w.Holder)
			granted = h.Converted == id
		}
		sw.unit.granted(id, key, granted)
		sw.done <- granted
	}
	return results[0].Verdict
}

func (u *simUnit) granted(id, key string, granted bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.waits, id)
	if granted {
		u.holds[id] = key
	}
}

var errVictim = errors.New("victim")

// begin requests a lock, or another mode of a hold, and returns the wait, nil if it was granted at once.
func (u *simUnit) begin(key string, mode record.Mode, holder string) (id string, sw *simWait, err error) {
	w := u.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	u.p.seq++
	id = record.ID(u.p.lease, u.p.seq)
	op := record.Op{Verb: record.OpAcquire, ID: id, Lease: u.p.lease, Mode: mode, TTL: time.Minute}
	if holder != "" {
		op.Verb, op.Holder = record.OpConvert, holder
	}
	w.entries[id] = u
	if v := w.apply(key, op); v != record.Applied {
		return id, nil, errors.New(v.String())
	}
	if _, waits := w.recs[key].rec.Waiting(id); !waits {
		if holder == "" {
			u.granted(id, key, true)
		}
		return id, nil, nil
	}
	u.mu.Lock()
	u.waits[id] = true
	u.mu.Unlock()
	sw = &simWait{unit: u, done: make(chan bool, 1), w: &Waiter{Key: key, ID: id, Lease: u.p.lease, Mode: mode, Holder: holder, Unit: u}}
	w.waiters[id] = sw
	u.p.d.Begin(sw.w)
	return id, sw, nil
}

func (u *simUnit) acquire(key string, mode record.Mode, holder string) (string, error) {
	id, sw, err := u.begin(key, mode, holder)
	if err != nil || sw == nil {
		return id, err
	}
	defer u.p.d.End(sw.w)
	if !<-sw.done {
		return id, errVictim
	}
	if holder != "" {
		u.mu.Lock()
		delete(u.holds, id) // the hold has its own
		u.mu.Unlock()
	}
	return id, nil
}

// release releases everything; the records change after up to lag.
func (u *simUnit) release(lag time.Duration) {
	w := u.p.w
	u.mu.Lock()
	holds := u.holds
	u.holds = map[string]string{}
	u.mu.Unlock()
	w.mu.Lock()
	for id := range holds {
		w.letting[id] = true
	}
	w.mu.Unlock()
	let := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for id, key := range holds {
			w.apply(key, record.Op{Verb: record.OpRelease, ID: id, Lease: u.p.lease})
		}
	}
	if lag == 0 {
		let()
		return
	}
	time.AfterFunc(lag, let)
}

// stuck is the ground truth: whether the unit waits for ever even if all units that don't wait release. Called with mu held.
func (w *world) stuck(u *simUnit) bool {
	c := &world{t: w.t, rev: w.rev, recs: map[string]versioned{}, waiters: map[string]*simWait{}}
	for k, s := range w.recs {
		if s.rec != nil {
			c.recs[k] = s // no operation modifies a record
		}
	}
	waits := func(u *simUnit) bool {
		for _, s := range c.recs {
			for id, st := range s.rec.States() {
				if st.Standing == record.Waiting && w.entries[id] == u {
					return true
				}
			}
		}
		return false
	}
	for changed := true; changed; {
		changed = false
		for k, s := range c.recs {
			for _, h := range s.rec.Holders {
				if owner := w.entries[h.ID]; w.letting[h.ID] || !waits(owner) {
					c.apply(k, record.Op{Verb: record.OpRelease, ID: h.ID, Lease: h.Lease()})
					changed = true
				}
			}
		}
	}
	return waits(u)
}

// judged checks a victim by the ground truth: it is stuck, or was when its circle was proved, and the victim of
// another circle was aborted since.
func (w *world) judged(u *simUnit, c Cycle) {
	switch at, freed := w.freed[u]; {
	case w.stuck(u):
	case freed && time.Since(at) < 500*time.Millisecond: // more than a second look and all proofs take here
		w.late++
	default:
		w.t.Errorf("%s is a victim, and not in a deadlock: %s", u.name, c)
	}
}

func (w *world) allStuck() map[*simUnit]bool {
	all := map[*simUnit]bool{}
	for _, u := range w.entries {
		if _, known := all[u]; !known {
			all[u] = w.stuck(u)
		}
	}
	maps.DeleteFunc(all, func(_ *simUnit, stuck bool) bool { return !stuck })
	return all
}

// The Place of a process.

func (p *simProc) pause(ctx context.Context) {
	p.w.mu.Lock()
	lag := p.w.lag
	if lag > 0 {
		lag = time.Duration(p.w.rnd.Int64N(int64(lag)))
	}
	p.w.mu.Unlock()
	if lag > 0 {
		pause.For(ctx, lag)
	}
}

func (p *simProc) Own(lease string) (*Doc, bool) {
	if lease != p.lease {
		return nil, false
	}
	return p.d.Own(lease), true
}

func (p *simProc) Cached(key string) (*record.Record, uint64, bool) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	s, ok := p.w.recs[key]
	return s.rec, s.rev, ok
}

func (p *simProc) Record(ctx context.Context, key string) (*record.Record, uint64, error) {
	p.pause(ctx)
	rec, rev, _ := p.Cached(key)
	p.pause(ctx)
	return rec, rev, ctx.Err()
}

func (p *simProc) Doc(ctx context.Context, lease string) (*Doc, error) {
	p.pause(ctx)
	p.w.mu.Lock()
	s := p.w.docs[lease]
	miss := p.w.missDoc != nil && p.w.missDoc(lease)
	p.w.mu.Unlock()
	p.pause(ctx)
	if s.value == nil || miss {
		return nil, ctx.Err()
	}
	return DecodeDoc(s.value)
}

func (p *simProc) Alive(_ context.Context, lease string) bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return !p.w.dead[lease]
}

func (p *simProc) Prove(ctx context.Context, key string, rev uint64) (bool, error) {
	p.pause(ctx)
	p.w.mu.Lock()
	hook := p.w.onProve
	p.w.mu.Unlock()
	if hook != nil {
		hook(key)
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.w.recs[key].rev == rev, nil
}

func (p *simProc) Settle() time.Duration { return 50 * time.Millisecond }

func (p *simProc) Publish(ctx context.Context, lease string, value []byte, rev uint64) (uint64, error) {
	p.pause(ctx)
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if s := p.w.docs[lease]; s.rev != rev {
		return s.rev, errors.New("conflict")
	}
	p.w.rev++
	p.w.writes++
	p.w.docs[lease] = stored{value, p.w.rev}
	return p.w.rev, nil
}

func (p *simProc) Poke(lease string) {
	p.w.mu.Lock()
	other := p.w.procs[lease]
	p.w.poked[lease]++
	p.w.mu.Unlock()
	if other != nil {
		other.d.Poke()
	}
}

func (p *simProc) Abort(_ context.Context, wt *Waiter, c Cycle) {
	if p.w.onAbort != nil {
		p.w.onAbort(wt)
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	u := wt.Unit.(*simUnit)
	if p.w.frozen[p.lease] {
		return
	}
	if _, waits := p.w.recs[wt.Key].rec.Waiting(wt.ID); !waits {
		return
	}
	if !p.w.unchecked {
		p.w.judged(u, c)
	}
	var stuck map[*simUnit]bool
	if p.w.freed != nil {
		stuck = p.w.allStuck()
	}
	p.w.apply(wt.Key, record.Op{Verb: record.OpStopWaiting, ID: wt.ID, Lease: wt.Lease})
	for other := range stuck {
		if !p.w.stuck(other) {
			p.w.freed[other] = time.Now()
		}
	}
	u.mu.Lock()
	u.deaths++
	u.mu.Unlock()
	p.w.victims, p.w.latest = append(p.w.victims, u), c
}

func (c Cycle) String() (s string) {
	for _, step := range c {
		s += fmt.Sprintf("\n\t%s waits for %s on %s, because of %s", step.ID, step.Mode, step.Key, step.Entry.ID)
	}
	return s
}

func (w *world) counted() (victims int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.victims)
}
