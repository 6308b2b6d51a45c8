package engine

import (
	"errors"
	"fmt"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Outcome is what a committed record says about an operation.
type Outcome struct {
	Entry    *record.Entry  // an acquire's or a conversion's: the grant, with its token, or nil; not to be modified
	Revision uint64         // of the record the outcome was read from
	Record   *record.Record // that record, nil if it was deleted; not to be modified
	// Existed is whether a release, cancel or removal found something to remove,
	// now or in an earlier attempt whose outcome was not known.
	Existed bool
	// Kept is whether the entry may be kept: it is left with Engine.Leave. Uses counts the holds that it was.
	Kept bool
	Uses uint64
}

// outcome is that of an operation which does not wait in the record at rev.
func outcome(st record.State, rec *record.Record, rev uint64) (Outcome, error) {
	switch st.Standing {
	case record.Granted:
		return Outcome{Entry: st.Entry, Revision: rev, Existed: true, Record: rec}, nil
	case record.Refused:
		return Outcome{}, &RefusedError{Result: record.Result{Verdict: st.Why}, Record: rec}
	}
	return Outcome{}, ErrGone
}

// withdrawn is the outcome of a request that was withdrawn for cause and whose undo has ended with
// out and err. What became of one that is Proven is read off the undo's record.
func (r *Request) withdrawn(cause error, out Outcome, err error) (Outcome, error) {
	if !r.Op.Proven() {
		return Outcome{}, cause
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	out, err = outcome(out.Record.Standing(&r.Op), out.Record, out.Revision)
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		refused.Cause = cause
	} else if err != nil {
		err = cause
	}
	return out, err
}
