package chaos

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockfabric/lockfabric/fabric"
)

// Recorder keeps the history of a run: granted acquires and releases, with the
// times of their calls and returns. Acquires that were refused have no effect and
// are left out. A nil Recorder keeps nothing. It is safe for concurrent use.
type Recorder struct {
	started time.Time

	mu      sync.Mutex
	history []porcupine.Operation
}

// NewRecorder returns an empty recorder.
func NewRecorder() *Recorder { return &Recorder{started: time.Now()} }

// event is one operation, with what it returned.
type event struct {
	key     string
	release bool
	mode    fabric.Mode
	id      string
	token   uint64
	unsure  bool // a release that may happen later, or not at all
}

func (r *Recorder) acquired(client int, l Hold, called time.Time) {
	if r == nil {
		return
	}
	r.add(client, event{key: l.Key(), mode: l.Mode(), id: l.ID(), token: l.Token()}, called, time.Now())
}

func (r *Recorder) released(client int, l Hold, called time.Time, err error) {
	if r == nil {
		return
	}
	r.add(client, event{key: l.Key(), release: true, mode: l.Mode(), id: l.ID(), unsure: err != nil}, called, time.Now())
}

func (r *Recorder) add(client int, e event, called, returned time.Time) {
	op := porcupine.Operation{ClientId: client, Input: e, Call: int64(called.Sub(r.started)), Return: int64(returned.Sub(r.started))}
	if e.unsure {
		// For Porcupine, an operation without an end can still happen.
		op.Return = math.MaxInt64
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, op)
}

// Len returns the number of operations recorded.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.history)
}

// Linearizable reports whether the operations can be put in one order in which
// each takes effect between its call and its return and the fenced lock is never
// held twice. It is porcupine.Unknown when limit was not enough.
func (r *Recorder) Linearizable(limit time.Duration) porcupine.CheckResult {
	r.mu.Lock()
	history := slices.Clone(r.history)
	r.mu.Unlock()
	return porcupine.CheckOperationsTimeout(fencedLock(), history, limit)
}
