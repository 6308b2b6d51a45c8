package engine

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// monitor is a mutex under which requests get their answers: the callbacks are called when it is let go.
type monitor struct {
	sync.Mutex
	hints       []func()
	queued      []*Request
	first, last *Request // whose Done is to be called, linked
}

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
	m.Mutex.Unlock()
	for _, fn := range hints {
		fn()
	}
	for _, r := range queued {
		r.Queued(*r.place)
		m.Lock()
		r.telling = false
		answered := r.answered
		m.Mutex.Unlock()
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

// manyBusy is how many times in a row the server may put a write off before that is taken for more than the moment it
// is as a rule. A leader that was cut off does it for some ten seconds.
const manyBusy = 10

// backoff spaces the attempts after failures in a row.
type backoff struct{ conflicts, failures, busy int }

// next returns the pause before the next attempt: none after the first conflict, short where
// another writer was met, longer where nobody answered, always jittered so that writers part.
func (b *backoff) next(err error) time.Duration {
	conflict, busy := errors.Is(err, jskv.ErrConflict), errors.Is(err, jskv.ErrBusy)
	if conflict {
		if b.conflicts++; b.conflicts%2 == 1 {
			return 0
		}
	}
	b.failures++
	if !busy {
		b.busy = 0
	} else if b.busy++; b.busy > manyBusy {
		return pause.Around(pause.Doubled(20*time.Millisecond, b.busy-manyBusy, 250*time.Millisecond))
	}
	base, limit := 200*time.Microsecond, 20*time.Millisecond
	if !conflict && !busy {
		base, limit = 20*time.Millisecond, time.Second
	}
	return pause.Around(pause.Doubled(base, b.failures-1, limit))
}

// mostWay is how long a request that would only queue gives way at most.
const mostWay = 50 * time.Millisecond

// giveWay returns the pause of one who has met others, and would only queue behind those that wait already: the
// longer, the more of these there are, and the more often it has met somebody.
func (b *backoff) giveWay(queue int, took time.Duration) time.Duration {
	b.conflicts++
	return rand.N(min(took*time.Duration(max(queue, 2<<min(b.conflicts, 8))), mostWay) + 1)
}

// patientRefusals is how many reads in a row may each end in refusals only before they are spaced,
// and refusalGap how far at most.
const (
	patientRefusals = 4
	refusalGap      = 25 * time.Millisecond
)

// refusals spaces the reads of callers that are refused and ask again at once: those that come
// meanwhile share the next one.
type refusals struct {
	inARow int
	last   time.Time
}

// note counts a read that has led to nothing but refusals.
func (f *refusals) note() { f.inARow, f.last = f.inARow+1, time.Now() }

// pause returns how long to wait before the next such read.
func (f *refusals) pause() time.Duration {
	if f.inARow <= patientRefusals {
		return 0
	}
	since := time.Since(f.last)
	if since > time.Second {
		*f = refusals{}
		return 0
	}
	return min(time.Millisecond<<min(f.inARow-patientRefusals, 10), refusalGap) - since
}
