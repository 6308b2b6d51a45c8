package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/deadlock"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Waits are the units of work that hold something and have waited for long, and the deadlocks among them.
type Waits struct {
	Units     []WaitingUnit    `json:"units"`
	Deadlocks [][]DeadlockEdge `json:"deadlocks"` // the first edge of each is the one that will get a DeadlockError
}

// WaitingUnit is one unit of work.
type WaitingUnit struct {
	Unit   string     `json:"unit"`
	Owner  string     `json:"owner,omitempty"` // explicit owner
	Host   string     `json:"host,omitempty"`
	PID    int        `json:"pid,omitempty"`
	Label  string     `json:"label,omitempty"`
	Deaths int        `json:"deaths,omitempty"` // how often it was picked to give up
	Waits  []UnitWait `json:"waits"`
	Holds  []string   `json:"holds"` // ids of its holds
}

// UnitWait is one lock that a unit waits for.
type UnitWait struct {
	Key  string `json:"key"`
	ID   string `json:"id"`
	Mode Mode   `json:"mode"`
	// Blockers are in its way; none of them where it was granted meanwhile, or waits for a place only.
	Blockers []Blocker `json:"blockers"`
}

// Blocker is an entry in the way of a wait.
type Blocker struct {
	ID      string `json:"id"`    // of a hold, or of a wait
	Owner   string `json:"owner"` // its explicit owner, or its id
	Mode    Mode   `json:"mode"`
	Waiting bool   `json:"waiting,omitempty"` // it is not held: it waits there, ahead
}

// Waits tells who waits for whom, as far as units of work hold something and have waited for longer than the delay of
// deadlock detection. It only reads. Errors: kv.ErrNoBucket where nothing can be told, ErrUnavailable, ErrClosed, and
// the context's.
func (m *Manager) Waits(ctx context.Context) (w Waits, err error) {
	err = m.inSession(ctx, func(ctx context.Context, s *session) error {
		w, err = s.waits(ctx)
		return err
	})
	return w, err
}

func (s *session) waits(ctx context.Context) (Waits, error) {
	b, err := s.buckets.Waits(ctx)
	if err != nil {
		return Waits{}, err
	}
	docs := map[string]*deadlock.Doc{}
	err = b.Entries(ctx, ">", func(e jskv.Entry) bool {
		if d, err := deadlock.DecodeDoc(e.Value); err == nil {
			docs[e.Key] = d
		}
		return true
	})
	if err != nil {
		return Waits{}, fmt.Errorf("list waits: %w", err)
	}
	w := Waits{Units: []WaitingUnit{}, Deadlocks: [][]DeadlockEdge{}}
	told := map[string]bool{}
	for lease, d := range docs {
		who := s.lookUp(ctx, Lease{ID: lease})
		if who.State == "dead" || who.State == "missing" {
			delete(docs, lease) // it says what was
			continue
		}
		for _, u := range d.Units {
			if !told[u.Unit] {
				told[u.Unit] = true
				w.Units = append(w.Units, waitingUnit(who, &u))
			}
		}
	}
	src := overview{s, docs, map[string]readRecord{}}
	for i := range w.Units {
		for j := range w.Units[i].Waits {
			src.block(ctx, &w.Units[i].Waits[j])
		}
	}
	slices.SortFunc(w.Units, func(a, b WaitingUnit) int { return cmp.Compare(a.Unit, b.Unit) })
	dt := &detection{s: s}
	for _, c := range deadlock.Survey(ctx, src, docs) {
		w.Deadlocks = append(w.Deadlocks, dt.explain(ctx, c).Cycle)
	}
	return w, ctx.Err()
}

func waitingUnit(who Lease, u *deadlock.Unit) WaitingUnit {
	w := WaitingUnit{
		Unit: u.Unit, Owner: u.Owner, Host: who.Host, PID: who.PID, Label: who.Label, Deaths: u.Deaths,
		Waits: []UnitWait{}, Holds: append([]string{}, u.Holds...),
	}
	for _, uw := range u.Waits {
		w.Waits = append(w.Waits, UnitWait{Key: nameOf(uw.Key), ID: uw.ID, Mode: modeOf(uw.Mode)})
	}
	return w
}

// overview is a deadlock.Source that has all documents.
type overview struct {
	s    *session
	docs map[string]*deadlock.Doc
	recs map[string]readRecord // of what is waited for
}

type readRecord struct {
	rec *record.Record
	rev uint64
	err error
}

// block finds out what is in the way of a wait.
func (s overview) block(ctx context.Context, w *UnitWait) {
	w.Blockers = []Blocker{}
	enc, err := kv.EncodeName(w.Key)
	if err != nil {
		return
	}
	r, known := s.recs[enc]
	if !known {
		r.rec, r.rev, r.err = s.s.shard(enc).engine.Read(ctx, enc)
		s.recs[enc] = r
	}
	if r.rec == nil {
		return
	}
	for _, e := range r.rec.Blockers(w.ID) {
		_, holds := r.rec.Holder(e.ID)
		w.Blockers = append(w.Blockers, Blocker{ID: e.ID, Owner: e.OwnerID(), Mode: modeOf(e.Mode), Waiting: !holds})
	}
}

var errNotCached = errors.New("fabric: every document was read")

func (s overview) Own(lease string) (*deadlock.Doc, bool) { return s.docs[lease], true }

func (s overview) Cached(string) (*record.Record, uint64, bool) { return nil, 0, false }

func (s overview) Doc(context.Context, string) (*deadlock.Doc, error) { return nil, errNotCached }

func (s overview) Record(ctx context.Context, key string) (*record.Record, uint64, error) {
	if r, ok := s.recs[key]; ok {
		return r.rec, r.rev, r.err
	}
	return s.s.shard(key).engine.Read(ctx, key)
}

// ErrDeadlock says that the acquire, or the conversion, waited in a circle of units of work that wait for each
// other, and was picked to give up. It comes as a *DeadlockError that names them all. What the unit of work held
// before, it still holds: release it, so that the others go on, and start over. See [RetryDeadlock].
var ErrDeadlock = errors.New("fabric: deadlock")

// DeadlockError tells of a deadlock. It is ErrDeadlock.
type DeadlockError struct {
	Key   string         // the name of the lock that was waited for
	Cycle []DeadlockEdge // each waits for the next one, and the last for the first, which got the error
}

// DeadlockEdge is one wait in a deadlock.
type DeadlockEdge struct {
	Unit     string    `json:"unit,omitempty"`    // the unit of work that waits; "" where only the wait is known
	Owner    string    `json:"owner"`             // its explicit owner, or the id of the wait
	Host     string    `json:"host,omitempty"`    // of its process
	PID      int       `json:"pid,omitempty"`     // likewise
	Label    string    `json:"label,omitempty"`   // likewise
	Waits    string    `json:"waits"`             // the name of the lock that it waits for
	Mode     Mode      `json:"mode"`              // that it asked for
	Since    time.Time `json:"since,omitzero"`    // when, by its own clock
	Holder   string    `json:"holder"`            // the id of the entry in its way, which is the next one's
	HeldMode Mode      `json:"held_mode"`         // the mode of that entry
	Waiting  bool      `json:"waiting,omitempty"` // that entry is not held: it waits there, ahead
}

func (e *DeadlockError) Unwrap() error { return ErrDeadlock }

// Error tells of every wait, as in
//
//	deadlock: you (alice) wait for X on "k2", held by bob (web2:311), who waits for X on "k1", held by you
func (e *DeadlockError) Error() string {
	var b strings.Builder
	b.WriteString("fabric: deadlock: you (" + e.Cycle[0].Owner + ") wait for ")
	for i, edge := range e.Cycle {
		if i > 0 {
			b.WriteString(", who waits for ")
		}
		how := "held by"
		if edge.Waiting {
			how = "waited for before by"
		}
		who := "you"
		if i+1 < len(e.Cycle) {
			who = e.Cycle[i+1].who()
		}
		fmt.Fprintf(&b, "%s on %q, %s %s", edge.Mode, edge.Waits, how, who)
	}
	return b.String()
}

func (e *DeadlockEdge) who() string {
	if e.Host == "" {
		return e.Owner
	}
	return fmt.Sprintf("%s (%s:%d)", e.Owner, e.Host, e.PID)
}

// RetryDeadlock calls fn in a unit of work (see [WithUnit]), and again after a pause as long as its error is
// ErrDeadlock and ctx lasts. fn has to release what it holds before it returns, and may run several times.
// Whoever was a victim before is picked later than others, so everybody gets through.
func RetryDeadlock(ctx context.Context, fn func(ctx context.Context) error) error {
	u := newUnit(unitIn(ctx), true)
	ctx = context.WithValue(ctx, unitKey{}, u)
	for n := 0; ; n++ {
		err := fn(ctx)
		if !errors.Is(err, ErrDeadlock) || !pause.For(ctx, pause.Around(pause.Doubled(10*time.Millisecond, n, time.Second))) {
			return err
		}
	}
}

// explain names who is in a circle.
func (d *detection) explain(ctx context.Context, c deadlock.Cycle) *DeadlockError {
	e := &DeadlockError{Cycle: make([]DeadlockEdge, len(c))}
	var looks sync.WaitGroup
	for i := range c {
		looks.Go(func() { e.Cycle[i] = d.s.edge(ctx, &c[i]) })
	}
	looks.Wait()
	e.Key = e.Cycle[0].Waits
	return e
}

// nameOf is the name of a lock whose key stands in a record or a document.
func nameOf(enc string) string {
	if name, err := kv.DecodeKey(enc); err == nil {
		return name
	}
	return enc
}

// edge names who is behind a step of a circle.
func (s *session) edge(ctx context.Context, step *deadlock.Step) DeadlockEdge {
	who := s.lookUp(ctx, Lease{ID: step.Lease})
	edge := DeadlockEdge{
		Owner: step.ID, Host: who.Host, PID: who.PID, Label: who.Label, Waits: nameOf(step.Key), Mode: modeOf(step.Mode), Since: step.Since,
		Holder: step.Entry.ID, HeldMode: modeOf(step.Entry.Mode), Waiting: step.Ahead,
	}
	if step.Unit != nil {
		edge.Unit = step.Unit.Unit
		if step.Unit.Owner != "" {
			edge.Owner = step.Unit.Owner
		}
	}
	return edge
}
