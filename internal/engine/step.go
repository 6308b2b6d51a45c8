package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// step is one request to the server: a read, or a write of the record after a batch.
type step struct {
	batch []*Request
	ops   []record.Op // of the batch; the slice is reused

	// For a write:
	write     bool
	base      *record.Record // at revision rev
	rev       uint64
	next      *record.Record
	results   []record.Result // reused, too
	limits    record.Limits
	value     []byte // nil deletes the record, when it is empty
	unchanged bool   // next is base

	sendAfter <-chan struct{} // of the request that takeSendOrder found, as the next two
	markSent  func()
	wrapCtx   func(context.Context) context.Context

	// The answer:
	entry  jskv.Entry // to a read
	newRev uint64     // to a write
	err    error
}

// compose applies the batch to the record at rev. If nothing is known, it takes the key to be
// free: the write shows whether that is true, and a free key costs no read.
func (s *step) compose(base *record.Record, rev uint64, limits record.Limits) {
	ops := s.ops[:0]
	for i, r := range s.batch {
		ops = append(ops, r.Op)
		if r.Op.Patience > 0 {
			ops[i].Patience = max(r.Op.Patience-time.Since(r.submitted), 1) // the rest of the patience it came with
		}
		// An earlier attempt's result does not count: if its write was refused, another process
		// may have removed the entry since. If its outcome is unknown, maybeFound has the result.
		r.found = base.Has(r.Op.ID) || r.Op.ID == "" && base != nil
	}
	var changed bool
	s.base, s.rev, s.limits = base, rev, limits
	s.next, s.results, changed = record.ApplyInto(s.results, base, rev, ops, limits)
	s.unchanged = !changed
	clear(ops)
	s.ops = ops
}

// steps recycles finished steps with their slices.
var steps = sync.Pool{New: func() any { return new(step) }}

func (s *step) free() {
	clear(s.results)
	*s = step{ops: s.ops, results: s.results}
	if cap(s.ops) <= 64 {
		steps.Put(s)
	}
}

// refused reports whether the record refuses all of the batch.
func (s *step) refused() bool {
	return !slices.ContainsFunc(s.results, func(r record.Result) bool { return r.Verdict == record.Applied })
}

// encode makes the step a write of the composed record. size is about the size of the base record.
func (s *step) encode(size int) {
	s.write = true
	if !s.next.Idle() {
		s.value = s.next.Append(make([]byte, 0, size+size/8+256))
	}
	for _, r := range s.batch {
		r.attempted = true
	}
}

// send sends the request and waits for the answer. Called with no lock held.
func (s *step) send(c *core, key string, timeouts *timeouts) {
	failFast := slices.ContainsFunc(s.batch, func(r *Request) bool { return r.FailFast })
	if s.sendAfter != nil {
		select {
		case <-s.sendAfter:
		case <-c.ctx.Done():
		}
	}
	if s.markSent != nil {
		defer s.markSent()
	}
	if !s.write {
		s.entry, s.err = c.read(c.ctx, key, timeouts, failFast)
		return
	}
	if slices.ContainsFunc(s.batch, func(r *Request) bool { return r.Guest != nil && !r.Guest() }) {
		s.err = ErrNotEntitled
		return
	}
	s.newRev, s.err = c.write(key, s.value, s.rev, timeouts, failFast, s.wrapCtx)
	if s.err == nil && c.cfg.Evicted != nil && s.base != nil {
		s.reportEvicted(c.cfg.Evicted, key)
	}
}

// reportEvicted reports the leases that a committed write has evicted: those that its
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

// takeSendOrder finds out when the step may be sent: after a request for another key, and before one for a
// third key. Called with the mutex held.
func (s *step) takeSendOrder() {
	for _, r := range s.batch {
		if r.markSent != nil {
			s.sendAfter, s.markSent, s.wrapCtx = r.sendAfter, r.markSent, r.wrapCtx
			r.sendAfter = nil
			return
		}
	}
}
