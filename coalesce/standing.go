package coalesce

import "github.com/lockfabric/lockfabric/internal/record"

// standing is what a record says about an operation that can wait: an acquire or a
// conversion.
type standing int

const (
	gone    standing = iota // it neither waits nor was granted, any more or yet
	waits                   // it waits, in the queue or before it
	granted                 // the holder's entry is its outcome
)

// standingOf reads an operation's standing off a record by its id, and returns the
// holder's entry of one that is granted.
func standingOf(rec *record.Record, op *record.Op) (record.Entry, standing) {
	if rec == nil {
		return record.Entry{}, gone
	}
	if op.Kind == record.OpConvert {
		switch h, _ := rec.Holder(op.Holder); op.ID {
		case h.Converted:
			return h, granted
		case h.Convert.ID:
			return h, waits
		}
		return record.Entry{}, gone
	}
	if h, ok := rec.Holder(op.ID); ok {
		return h, granted
	}
	if e, _, ok := rec.Waiter(op.ID); ok {
		return e, waits
	}
	return record.Entry{}, gone
}

// givesUp reports whether op only takes something away from its own holder, who
// counts on it no more from the moment it asks, so that it must happen some time
// whatever comes in between.
func givesUp(op *record.Op) bool {
	if op.Kind == record.OpConvert {
		_, undone := op.Undo()
		return !undone
	}
	return op.Kind == record.OpRelease || op.Kind == record.OpUnconvert
}
