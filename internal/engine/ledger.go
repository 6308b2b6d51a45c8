package engine

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// ledger has the requests that go on though no caller waits for them: releases that were
// not confirmed in time, and undos of requests that were given up. A request stays until a committed
// write proves that it is done, or its lease has ended.
type ledger struct {
	mu      sync.Mutex
	byLease map[string]map[*Request]time.Time // with the time of add
}

func (l *ledger) add(r *Request) {
	r.inLedger = true
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byLease == nil {
		l.byLease = map[string]map[*Request]time.Time{}
	}
	under := l.byLease[r.Op.Lease]
	if under == nil {
		under = map[*Request]time.Time{}
		l.byLease[r.Op.Lease] = under
	}
	under[r] = time.Now()
}

func (l *ledger) remove(r *Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	under := l.byLease[r.Op.Lease]
	if delete(under, r); len(under) == 0 {
		delete(l.byLease, r.Op.Lease)
	}
}

// under returns the requests under a lease.
func (l *ledger) under(lease string) []*Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.byLease[lease]))
}

// oldest returns the age of the oldest request under a lease, 0 if there is none.
func (l *ledger) oldest(lease string) (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, since := range l.byLease[lease] {
		longest = max(longest, time.Since(since), 1)
	}
	return longest
}
