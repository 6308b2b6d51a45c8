package engine

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// ledger has the requests that go on though nobody waits for them any more: releases that were
// not confirmed in time, and what takes given-up requests back. They stay until a committed
// write proves that they are done, or their lease has ended.
type ledger struct {
	mu      sync.Mutex
	byLease map[string]map[*Request]time.Time // and since when
}

func (l *ledger) add(r *Request) {
	r.owed = true
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

// under returns what is owed under a lease.
func (l *ledger) under(lease string) []*Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.byLease[lease]))
}

// oldest returns how long something has been owed under a lease, 0 if nothing is.
func (l *ledger) oldest(lease string) (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, since := range l.byLease[lease] {
		longest = max(longest, time.Since(since), 1)
	}
	return longest
}
