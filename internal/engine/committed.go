package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// committed is the newest committed state of one key that this process knows of.
type committed struct {
	// rec is the record at revision rev, if known is true. It is nil when there is no record; rev
	// is then the delete marker's, or 0. A record is never modified after it was stored here.
	known bool
	rec   *record.Record
	rev   uint64
	// newestRev is the newest revision this process has seen for the key. rev is below it only when a read found the
	// key absent. That may be the truth (the marker expired) or the view of a deposed leader. The engine may write upon
	// such a state, since the write decides, but it proves nothing. An idle key's state can be forgotten, so a caller that
	// knows a revision passes it on (Request.AtLeast).
	newestRev uint64
	// since is a revision after which only this process has written the key, up to rev. 0 means that the key was absent:
	// only this process has written it for as long as a delete marker stays.
	since uint64
	// holdTime is the smoothed length of a hold, from the newest record with holds; 0 = not known.
	// It stays when the record is deleted.
	holdTime time.Duration
}

// trusted reports whether the known state is as new as the newest revision seen.
func (c *committed) trusted() bool { return c.known && c.rev >= c.newestRev }

// learn stores a committed state unless a newer one is known.
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

// learnAbsent stores that a read or a conflict showed no entry at all. missing is whether
// there should be one: a live record never expires.
func (c *committed) learnAbsent() (missing bool) {
	missing = c.newestRev > 0 && c.known && c.rec != nil
	c.known, c.rec, c.rev, c.since = true, nil, 0, 0
	return missing
}

// mark is an optional revision.
type mark struct {
	set bool
	rev uint64
}

func (m mark) at(rev uint64) bool { return m.set && m.rev == rev }
