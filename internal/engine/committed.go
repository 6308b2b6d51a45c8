package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// committed is the newest committed state of one key that this process knows of.
type committed struct {
	// rec is the record at revision rev, if known is true. It is nil when there is no record; rev
	// is then the delete marker's, or 0. Records are never modified once they are here.
	known bool
	rec   *record.Record
	rev   uint64
	// newestRev is the newest revision this process has seen for the key. rev is below it only when a read found the
	// key absent, which may be the truth (the marker expired) or the view of a deposed leader: good to write upon,
	// since the write decides, but no proof. What is idle can be forgotten, so whoever knows of a revision says so
	// (Request.AtLeast).
	newestRev uint64
	// since is a revision after which nobody but this process has written the key, up to rev. 0: as long as a delete
	// marker stands, for the key was absent.
	since uint64
	// holdTime is how long a hold lasts, smoothed, as the newest record with holds said; 0 = not known.
	// It outlives the record.
	holdTime time.Duration
}

// trusted reports whether the known state is at least as new as everything seen.
func (c *committed) trusted() bool { return c.known && c.rev >= c.newestRev }

// learn takes over a committed state if it is not older than what is known.
func (c *committed) learn(rec *record.Record, rev uint64) bool {
	if rev < c.newestRev || c.known && rev < c.rev {
		return false
	}
	c.known, c.rec, c.rev, c.newestRev = true, rec, rev, rev
	if rec != nil && rec.Hold > 0 {
		c.holdTime = rec.Hold
	}
	return true
}

// learnAbsent takes over that a read or a conflict showed no entry at all. It reports whether
// there should be one: a live record never expires.
func (c *committed) learnAbsent() (missing bool) {
	missing = c.newestRev > 0 && c.known && c.rec != nil
	c.known, c.rec, c.rev, c.since = true, nil, 0, 0
	return missing
}

// mark is a revision, or none.
type mark struct {
	set bool
	rev uint64
}

func (m mark) at(rev uint64) bool { return m.set && m.rev == rev }
