package engine

import (
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// A guest's acquire can be sent to several processes. Another one may have written its entry, and the entry may have been released
// or removed since; then this process must not write it again. If nobody else has written the key since the acquire was sent,
// its entry was never in the record. A write of another process that is still under way expects an older revision.

// endOvertaken ends the guests of a composed batch that others may have written before. It puts guests that have an entry in the
// record first: otherwise an operation of the same batch could remove the entry, and the guest add it again. It reports whether the
// batch has to be composed again.
func (w *writer) endOvertaken(batch []*Request) (again bool) {
	for _, r := range batch {
		if r.addsForGuest() && !r.found && (r.Since < w.since || w.since == 0 && time.Since(r.submitted) > jskv.MarkerTTL/2) {
			w.end(r, Outcome{Revision: w.rev}, ErrOvertaken)
			again = true
		}
	}
	order := func(a, b *Request) int { return b.rank() - a.rank() }
	if !slices.IsSortedFunc(batch, order) {
		slices.SortStableFunc(batch, order)
		again = true
	}
	return again
}

// addsForGuest reports whether r may add an entry for another process.
func (r *Request) addsForGuest() bool { return r.Guest != nil && r.Op.Verb != record.OpRelease }

// rank is 1 for a guest whose entry is in the base record, 0 for every other request.
func (r *Request) rank() int {
	if r.addsForGuest() && r.found {
		return 1
	}
	return 0
}
