package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// step is one request to the server: a read, or the write of what a batch makes of the record.
type step struct {
	batch []*Request
	ops   []record.Op // of the batch: room for them

	// Of a write.
	write     bool
	base      *record.Record // at revision rev
	rev       uint64
	next      *record.Record
	results   []record.Result // room likewise
	limits    record.Limits
	value     []byte // nil where nobody holds or waits any more
	unchanged bool   // next is base

	after <-chan struct{} // see order
	sent  func()
	in    func(context.Context) context.Context

	// The answer.
	entry  jskv.Entry // to a read
	newRev uint64     // to a write
	err    error
}

// compose applies the batch to the record at rev. Without any knowledge the key is taken to be
// free: the write finds out, and costs a free one nothing.
func (s *step) compose(base *record.Record, rev uint64, limits record.Limits) {
	ops := s.ops[:0]
	for i, r := range s.batch {
		ops = append(ops, r.Op)
		if r.Op.Patience > 0 {
			ops[i].Patience = max(r.Op.Patience-time.Since(r.asked), 1) // of what it had when it was asked for
		}
		// Not what an earlier attempt saw: if its write was refused somebody else
		// may have removed the entry since. If that is unknown, maybeFound says so.
		r.found = base.Has(r.Op.ID) || r.Op.ID == "" && base != nil
	}
	var changed bool
	s.base, s.rev, s.limits = base, rev, limits
	s.next, s.results, changed = record.ApplyInto(s.results, base, rev, ops, limits)
	s.unchanged = !changed
	clear(ops)
	s.ops = ops
}

// steps has steps that are over, for their room.
var steps = sync.Pool{New: func() any { return new(step) }}

func (s *step) free() {
	clear(s.results)
	*s = step{ops: s.ops, results: s.results}
	if cap(s.ops) <= 64 {
		steps.Put(s)
	}
}

// refused reports whether the record forbids all of the batch.
func (s *step) refused() bool {
	return !slices.ContainsFunc(s.results, func(r record.Result) bool { return r.Verdict == record.Applied })
}

// encode makes a write of what was composed; the record had about that size before.
func (s *step) encode(size int) {
	s.write = true
	if !s.next.Idle() {
		s.value = s.next.Append(make([]byte, 0, size+size/8+256))
	}
	for _, r := range s.batch {
		r.attempted = true
	}
}

// send carries the step out. Called without a lock.
func (s *step) send(c *core, key string, silent *silence) {
	failFast := slices.ContainsFunc(s.batch, func(r *Request) bool { return r.FailFast })
	if s.after != nil {
		select {
		case <-s.after:
		case <-c.ctx.Done():
		}
	}
	if s.sent != nil {
		defer s.sent()
	}
	if !s.write {
		s.entry, s.err = c.read(c.ctx, key, silent, failFast)
		return
	}
	if slices.ContainsFunc(s.batch, func(r *Request) bool { return r.Guest != nil && !r.Guest() }) {
		s.err = ErrNotEntitled
		return
	}
	s.newRev, s.err = c.write(key, s.value, s.rev, silent, failFast, s.in)
	if s.err == nil && c.cfg.Evicted != nil && s.base != nil {
		s.reportEvicted(c.cfg.Evicted, key)
	}
}

// reportEvicted tells which leases a committed write has evicted: those that its
// batch names and that had entries in base.
func (s *step) reportEvicted(tell func(key string, leases []string, entries int), key string) {
	var leases []string
	for _, r := range s.batch {
		for _, id := range r.Op.Leases {
			if !slices.Contains(leases, id) && s.base.HasLease(id) && !s.next.HasLease(id) {
				leases = append(leases, id)
			}
		}
	}
	if len(leases) > 0 {
		tell(key, leases, s.base.EntriesUnder(leases...))
	}
}

// order takes over when the step is to be sent: after that of another key, and before that of a
// third one. Called with the mutex held.
func (s *step) order() {
	for _, r := range s.batch {
		if r.sent != nil {
			s.after, s.sent, s.in = r.after, r.sent, r.in
			r.after = nil
			return
		}
	}
}
