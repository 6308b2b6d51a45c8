package fabric

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/deadlock"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

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
	forEach(ctx, lookUps, indexes(len(c)), func(i int) { e.Cycle[i] = d.s.edge(ctx, &c[i]) })
	e.Key = e.Cycle[0].Waits
	return e
}

func indexes(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
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
