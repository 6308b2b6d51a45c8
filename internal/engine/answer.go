package engine

import (
	"sync"

	"github.com/lockfabric/lockfabric/internal/record"
)

// monitor is a mutex under which requests get their answers: the callbacks are called when it is let go.
type monitor struct {
	mu          sync.Mutex
	hints       []func()
	queued      []*Request
	first, last *Request // whose Done is to be called, linked
}

func (m *monitor) Lock() { m.mu.Lock() }

func (m *monitor) TryLock() bool { return m.mu.TryLock() }

// answer has r's Done called, once.
func (m *monitor) answer(r *Request, out Outcome, err error) {
	if r.answered {
		return
	}
	r.answered, r.out, r.err = true, out, err
	if r.Done == nil || r.telling {
		return // whoever calls Queued calls Done then
	}
	if m.last == nil {
		m.first = r
	} else {
		m.last.next = r
	}
	m.last = r
}

// then has fn called.
func (m *monitor) then(fn func()) { m.hints = append(m.hints, fn) }

// tell has r's Queued called, once.
func (m *monitor) tell(r *Request, p record.Place) {
	r.place, r.told, r.telling = &p, true, true
	m.queued = append(m.queued, r)
}

// Unlock lets the mutex go and makes the calls that are due.
func (m *monitor) Unlock() {
	hints, queued, r := m.hints, m.queued, m.first
	m.hints, m.queued, m.first, m.last = nil, nil, nil, nil
	m.mu.Unlock()
	for _, fn := range hints {
		fn()
	}
	for _, r := range queued {
		r.Queued(*r.place)
		m.mu.Lock()
		r.telling = false
		answered := r.answered
		m.mu.Unlock()
		if answered && r.Done != nil {
			r.Done(r.out, r.err)
		}
	}
	for r != nil {
		next := r.next // r may be gone after Done
		r.Done(r.out, r.err)
		r = next
	}
}
