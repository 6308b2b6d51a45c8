package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// maxBacklog bounds the requests that are held back for one key.
const maxBacklog = 1 << 16

// writer turns the requests for one key into compare-and-set writes. At most one step, a
// request to the server, is under way at a time.
//
//	idle -> planned -> under way -> concluded -> planned, or idle if nothing is pending
//
// A step is planned and concluded under the view's mutex, and sent without it.
type writer struct {
	view
	keeping
	keptSet       *keptSet   // all of the engine
	forgotten     bool       // the engine has another writer for the key, or none
	running       bool       // a runner, or a caller in SubmitHere, works on this key
	retrySet      bool       // a timer is set that starts a runner again
	interruptible bool       // the pause ends when another request comes
	pending       []*Request // requests without an outcome that don't wait in the record, in order
	queueing      int        // how many of these queue if they are not granted at once
	backlog       []*Request // requests that the window holds back, in order
	backoff       backoff
	refusals      refusals
	pause         time.Duration // before the next step

	// The last write that expects revision uncertain has an unknown outcome: it can still be committed while that
	// is the newest revision. One mark is enough, since a write that expects an older revision can't be committed.
	uncertain mark
	outdated  mark // a revision that the server refused, since it is not the newest
}

func newWriter(c *core, s *keptSet, key string) *writer {
	w := &writer{view: view{core: c, key: key}, keptSet: s}
	w.user = w
	return w
}

// start starts a runner if none is running.
func (w *writer) start() {
	if !w.running {
		w.running = w.core.goIfOpen(w.user.run)
	}
}

// kept is a holder entry of this process that stays in the record after its hold is released. The next request
// with the same Keeper joins it: it takes the entry over in memory. The key's mutex guards all of it.
//
//	open, used <-> open, idle -> gone
//	   |              |            ^
//	   +--> draining -+------------+
//
// It is open while nobody else wants the key. The user of a draining entry releases it.
type kept struct {
	w          *writer
	entry      *record.Entry
	lease      string
	keeper     Keeper
	marked     bool // its metadata says that it may be kept; if not, requests wait behind it, but it is released after its use
	open       bool
	used       bool
	uses       uint64        // number of its holds, with the present one
	hold       time.Duration // how long the last use lasted
	linger     time.Duration // how long it may stay unused, set by its last user
	idle       atomic.Int64  // since when it is unused, in Unix nanoseconds; 0: it is used
	confirming bool          // a read is under way that confirms the known state
	timer      *time.Timer
	due        time.Time // when timer fires; zero: it does not run
}

// keeping is the state of a key's writer about kept entries.
type keeping struct {
	kept        *kept
	lease       string // of the requests that would keep the entry
	on          bool   // every request that waits in the process would keep the entry
	ours        mark   // the revision of the last write, if it was ours and left no other process's entry in the record
	basedOnOurs bool   // the write that is being concluded has such a base
	quietGrants int    // grants in a row without other processes
	quietNeeded int    // how many of these it takes until an entry is kept; 0 means 1

	releasing     string            // id of the entry that was kept and whose release is under way, or ""
	askers        []func(used bool) // of GiveUp, for that entry
	delayAcquires bool              // acquires of this process wait, so that another process's try can come first
}

// keptSet has all kept entries of an engine.
type keptSet struct {
	idle atomic.Int64
	mu   sync.Mutex
	all  map[*kept]struct{}
}

func (s *keptSet) under(lease string) (all []*kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.all {
		if k.lease == lease {
			all = append(all, k)
		}
	}
	return all
}

const (
	// maxQuietNeeded bounds quietNeeded.
	maxQuietNeeded = 1024
	// worthKeeping is how many joins make a kept entry worth it even if others ask for it.
	worthKeeping = 10
)

// calledBack adapts quietNeeded when another process wants a kept entry after so many joins.
func (s *keeping) calledBack(joins uint64) {
	s.quietGrants = 0
	if joins >= worthKeeping {
		s.quietNeeded = 1
	} else {
		s.quietNeeded = min(4*max(s.quietNeeded, 1), maxQuietNeeded)
	}
}
