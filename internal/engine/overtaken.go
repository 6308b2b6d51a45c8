package engine

import (
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// A guest's acquire can be sent on several roads. What was written on another one may have been released, or removed, before
// it is composed here, and must not be written again. This process knows that it was never in the record if nobody else has
// written the key since it was asked for; a write of this process that is under way meanwhile expects an older revision.

// overtaken ends the guests of a batch, which was composed, that others may have written before. Those that stand in the record
// come first, lest an operation of the same batch removes them and they are added again. It reports whether the batch has to be
// composed again. Called with mu held.
func (w *writer) overtaken(batch []*Request) (again bool) {
	for _, r := range batch {
		if r.enters() && !r.found && (r.Since < w.since || w.since == 0 && time.Since(r.asked) > jskv.MarkerTTL/2) {
			w.end(r, Outcome{Revision: w.rev}, ErrOvertaken)
			again = true
		}
	}
	order := func(a, b *Request) int { return b.standing() - a.standing() }
	if !slices.IsSortedFunc(batch, order) {
		slices.SortStableFunc(batch, order)
		again = true
	}
	return again
}

// enters reports whether r is to have an entry for another process.
func (r *Request) enters() bool { return r.Guest != nil && r.Op.Verb != record.OpRelease }

// standing is 1 for a guest whose entry stands in the record that was composed upon, 0 for all others.
func (r *Request) standing() int {
	if r.enters() && r.found {
		return 1
	}
	return 0
}
