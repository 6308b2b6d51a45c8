package engine

import "github.com/lockfabric/lockfabric/internal/record"

// Outcome is what a committed record says about an operation.
type Outcome struct {
	Entry    *record.Entry  // an acquire's or a conversion's: the grant, with its token, or nil; not to be modified
	Revision uint64         // of the record the outcome was read from
	Record   *record.Record // that record, nil if it was deleted; not to be modified
	// Existed is whether a release, cancel or removal found something to remove,
	// in this attempt or in an earlier one with an unknown outcome.
	Existed bool
	Turn    bool // the operation holds by a turn: the record may still show it as waiting
	// Kept is whether the entry may be kept: the caller ends its use with Engine.Leave. Uses counts the holds of the entry so far.
	Kept bool
	Uses uint64
}

// outcome returns the outcome of an operation that does not wait in the record at rev.
func outcome(st record.State, rec *record.Record, rev uint64) (Outcome, error) {
	switch st.Standing {
	case record.Granted:
		return Outcome{Entry: st.Entry, Revision: rev, Existed: true, Record: rec}, nil
	case record.Refused:
		return Outcome{}, &RefusedError{Result: record.Result{Verdict: st.Why}, Record: rec}
	}
	return Outcome{}, ErrGone
}
