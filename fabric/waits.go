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

// Waits contains the units of work that hold something and have waited for a long time, and the deadlocks among them.
type Waits struct {
	Units     []WaitingUnit    `json:"units"`
	Deadlocks [][]DeadlockEdge `json:"deadlocks"` // the first edge of each is the unit that will get a DeadlockError
}

// WaitingUnit is one unit of work.
type WaitingUnit struct {
	Unit   string     `json:"unit"`
	Owner  string     `json:"owner,omitempty"` // explicit owner
	Host   string     `json:"host,omitempty"`
	PID    int        `json:"pid,omitempty"`
	Label  string     `json:"label,omitempty"`
	Deaths int        `json:"deaths,omitempty"` // how often it was a victim
	Waits  []UnitWait `json:"waits"`
	Holds  []string   `json:"holds"` // ids of its holds
}

// UnitWait is one lock that a unit waits for.
type UnitWait struct {
	Key  string `json:"key"`
	ID   string `json:"id"`
	Mode Mode   `json:"mode"`
	// Blockers are the entries in the way: none if it was granted, or waits only for a place in the record.
	Blockers []Blocker `json:"blockers"`
}

// Blocker is an entry that blocks a wait.
type Blocker struct {
	ID      string `json:"id"`    // of a hold, or of a wait
	Owner   string `json:"owner"` // explicit owner, or the entry's id
	Mode    Mode   `json:"mode"`
	Waiting bool   `json:"waiting,omitempty"` // true: a waiter further ahead; false: a holder
}

// Waits returns which units of work wait for each other: those that hold something and have waited for longer than the
// delay of deadlock detection. Errors: kv.ErrNoBucket if the bucket of waits does not exist, ErrUnavailable, ErrClosed,
// and the context's.
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
	src := overview{s: s, docs: docs, recs: map[string]*record.Record{}}
	told := map[string]bool{}
	for lease, d := range docs {
		who := s.lookUp(ctx, Lease{ID: lease})
		if who.State == "dead" || who.State == "missing" {
			delete(docs, lease) // the document is out of date
			continue
		}
		for _, u := range d.Units {
			if !told[u.Unit] {
				told[u.Unit] = true
				w.Units = append(w.Units, src.waitingUnit(ctx, who, &u))
			}
		}
	}
	slices.SortFunc(w.Units, func(a, b WaitingUnit) int { return cmp.Compare(a.Unit, b.Unit) })
	for _, c := range deadlock.Survey(ctx, src, docs) {
		w.Deadlocks = append(w.Deadlocks, s.explain(ctx, c).Cycle)
	}
	return w, ctx.Err()
}

// waitingUnit returns a unit with the entries that block its waits. who is its process.
func (o overview) waitingUnit(ctx context.Context, who Lease, u *deadlock.Unit) WaitingUnit {
	w := WaitingUnit{
		Unit: u.Unit, Owner: u.Owner, Host: who.Host, PID: who.PID, Label: who.Label, Deaths: u.Deaths,
		Waits: []UnitWait{}, Holds: append([]string{}, u.Holds...),
	}
	for _, uw := range u.Waits {
		rec, _, _ := o.Record(ctx, uw.Key) // nil after an error
		o.recs[uw.Key] = rec
		wait := UnitWait{Key: nameOf(uw.Key), ID: uw.ID, Mode: modeOf(uw.Mode), Blockers: []Blocker{}}
		for _, e := range rec.Blockers(uw.ID) {
			_, holds := rec.Holder(e.ID)
			wait.Blockers = append(wait.Blockers, Blocker{ID: e.ID, Owner: e.OwnerID(), Mode: modeOf(e.Mode), Waiting: !holds})
		}
		w.Waits = append(w.Waits, wait)
	}
	return w
}

// overview is the deadlock.Source of a survey, which has all documents and asks for nothing but these and records.
type overview struct {
	deadlock.Source
	s    *session
	docs map[string]*deadlock.Doc
	recs map[string]*record.Record // of the locks that are waited for
}

func (o overview) Own(lease string) (*deadlock.Doc, bool) { return o.docs[lease], true }

func (o overview) Record(ctx context.Context, key string) (*record.Record, uint64, error) {
	if rec, ok := o.recs[key]; ok {
		return rec, 0, nil
	}
	return o.s.shard(key).engine.Read(ctx, key)
}

// ErrDeadlock is returned if the acquire or conversion waited in a cycle of units of work that wait for each other, and
// was chosen as the victim. The error is a *DeadlockError that describes the cycle. The unit of work still holds what
// it held before. Release it, so that the others can continue, and start again. See [RetryDeadlock].
var ErrDeadlock = errors.New("fabric: deadlock")

// DeadlockError describes a deadlock. It is ErrDeadlock.
type DeadlockError struct {
	Key   string         // name of the lock that the victim waited for
	Cycle []DeadlockEdge // each edge waits for the next one, and the last for the first, which is the victim
}

// DeadlockEdge is one wait in a deadlock.
type DeadlockEdge struct {
	Unit     string    `json:"unit,omitempty"`    // the unit of work that waits; "" if only the wait is known
	Owner    string    `json:"owner"`             // explicit owner, or the id of the wait
	Host     string    `json:"host,omitempty"`    // of its process
	PID      int       `json:"pid,omitempty"`     // of its process
	Label    string    `json:"label,omitempty"`   // of its process
	Waits    string    `json:"waits"`             // name of the lock that it waits for
	Mode     Mode      `json:"mode"`              // the requested mode
	Since    time.Time `json:"since,omitzero"`    // start of the wait, by its own clock
	Holder   string    `json:"holder"`            // id of the entry that blocks it; this entry belongs to the next edge
	HeldMode Mode      `json:"held_mode"`         // mode of this entry
	Waiting  bool      `json:"waiting,omitempty"` // this entry is not a holder but a waiter further ahead
}

func (e *DeadlockError) Unwrap() error { return ErrDeadlock }

// Error describes every wait, for example
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

// RetryDeadlock calls fn in a unit of work (see [WithUnit]). If fn returns ErrDeadlock, it calls fn again after a
// pause, until ctx ends. fn must release what it holds before it returns, and it may run several times. A unit that was
// a victim is chosen later than others the next time, so every unit succeeds in the end.
func RetryDeadlock(ctx context.Context, fn func(ctx context.Context) error) error {
	if fn == nil {
		return errNilFunction
	}
	u := newUnit(unitIn(ctx), true)
	ctx = context.WithValue(ctx, unitKey{}, u)
	for n := 0; ; n++ {
		err := fn(ctx)
		if !errors.Is(err, ErrDeadlock) || !pause.For(ctx, pause.Around(pause.Doubled(10*time.Millisecond, n, time.Second))) {
			return err
		}
	}
}

// explain finds the processes of a cycle.
func (s *session) explain(ctx context.Context, c deadlock.Cycle) *DeadlockError {
	e := &DeadlockError{Cycle: make([]DeadlockEdge, len(c))}
	var looks sync.WaitGroup
	for i := range c {
		looks.Go(func() { e.Cycle[i] = s.edge(ctx, &c[i]) })
	}
	looks.Wait()
	e.Key = e.Cycle[0].Waits
	return e
}

// nameOf returns the name of a lock from its encoded key in a record or a document.
func nameOf(enc string) string {
	if name, err := kv.DecodeKey(enc); err == nil {
		return name
	}
	return enc
}

// edge finds the process behind one step of a cycle.
func (s *session) edge(ctx context.Context, step *deadlock.Step) DeadlockEdge {
	who := s.lookUp(ctx, Lease{ID: step.Lease})
	edge := DeadlockEdge{
		Owner: step.ID, Host: who.Host, PID: who.PID, Label: who.Label, Waits: nameOf(step.Key), Mode: modeOf(step.Mode), Since: step.Since,
		Holder: step.Entry.ID, HeldMode: modeOf(step.Entry.Mode), Waiting: step.Ahead,
	}
	if u := step.Unit; u != nil {
		edge.Unit, edge.Owner = u.Unit, cmp.Or(u.Owner, step.ID)
	}
	return edge
}
