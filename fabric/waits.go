package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lockfabric/lockfabric/internal/deadlock"
	"github.com/lockfabric/lockfabric/internal/jskv"
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
		r.rec, r.rev, r.err = s.s.engine.Read(ctx, enc)
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
	return s.s.engine.Read(ctx, key)
}
