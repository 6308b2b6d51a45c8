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

// monitor is a mutex that collects callbacks while it is held, and calls them after it is unlocked.
type monitor struct {
	sync.Mutex
	calls       []func()
	queued      []*Request
	first, last *Request // linked list of requests whose Done is due
}

// answer schedules r's Done, once.
func (m *monitor) answer(r *Request, out Outcome, err error) {
	if r.answered {
		return
	}
	r.answered, r.out, r.err = true, out, err
	if r.Done == nil || r.queuedRunning {
		return // the goroutine that calls Queued calls Done then
	}
	if m.last == nil {
		m.first = r
	} else {
		m.last.next = r
	}
	m.last = r
}

// afterUnlock schedules a call of fn.
func (m *monitor) afterUnlock(fn func()) { m.calls = append(m.calls, fn) }

// tell schedules r's Queued. It is called once for each request.
func (m *monitor) tell(r *Request, p record.Place) {
	r.place, r.queuedDue, r.queuedRunning = &p, true, true
	m.queued = append(m.queued, r)
}

// Unlock unlocks the mutex and makes the scheduled calls.
func (m *monitor) Unlock() {
	calls, queued, r := m.calls, m.queued, m.first
	m.calls, m.queued, m.first, m.last = nil, nil, nil, nil
	m.Mutex.Unlock()
	for _, fn := range calls {
		fn()
	}
	for _, r := range queued {
		r.Queued(*r.place)
		m.Lock()
		r.queuedRunning = false
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

// backoff computes the pauses between attempts after failures in a row.
type backoff struct{ conflicts, failures, busy int }

// next returns the pause before the next attempt: none after the first conflict, short when
// another writer was in the way, longer when no server answered, always jittered so that two writers don't retry together.
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

// maxQueuePause bounds queuePause where answers are fast.
const maxQueuePause = 50 * time.Millisecond

// queuePause returns the pause after a conflict of a step that would only join the queue. It grows with the
// number of waiters in the queue, with the conflicts in a row and with the time that an answer took: of many that
// all send again within one answer time, one succeeds, and who releases is one of them.
func (b *backoff) queuePause(queue int, took time.Duration) time.Duration {
	b.conflicts++
	limit := max(maxQueuePause, took<<min(b.conflicts-1, 4))
	return rand.N(min(took*time.Duration(max(queue, 2<<min(b.conflicts, 8))), limit) + 1)
}

// After patientRefusals reads in a row with refusals only, reads are spaced, by up to refusalGap.
const (
	patientRefusals = 4
	refusalGap      = 25 * time.Millisecond
)

// refusals spaces the reads for callers that are refused and try again at once. Requests that come during
// a pause share the next read.
type refusals struct {
	inARow int
	last   time.Time
}

// note counts a read after which every request was refused.
func (f *refusals) note() { f.inARow, f.last = f.inARow+1, time.Now() }

// pause returns the wait before the next such read.
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
