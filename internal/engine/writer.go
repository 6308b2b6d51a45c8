package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// maxBacklog is how many requests are held back for one key.
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
	keeps     *keeps     // of the engine
	forgotten bool       // the engine has another writer for the key, or none
	running   bool       // a runner works here
	resting   bool       // a timer is set that goes on with what is pending
	givesWay  bool       // during the pause, to whatever else comes
	pending   []*Request // those without an outcome that don't stand in the record, in order
	queueing  int        // of these, those that may have to queue
	backlog   []*Request // those that the window holds back, in order
	trouble   backoff
	refusals  refusals
	pause     time.Duration // before the next step

	// A write that expects uncertain has an unknown outcome: it can still be committed while that
	// is the newest revision. Only one can matter, since a write that expects an older one can't.
	uncertain mark
	outdated  mark // a revision that the server refused for not being the newest
}

func newWriter(c *core, s *keeps, key string) *writer {
	w := &writer{view: view{core: c, key: key}, keeps: s}
	w.user = w
	return w
}

// start has a runner take over if none is here. Called with mu held.
func (w *writer) start() {
	if !w.running {
		w.running = w.core.goIfOpen(w.user.run)
	}
}

// delay has r wait in the process, behind those that do already. Called with mu held.
func (w *writer) delay(r *Request) {
	r.heldBack = true
	w.backlog = append(w.backlog, r)
}

// kept is a holder entry of this process that stays in the record when its hold is released. The next request
// with the same Keeper joins it: it takes the entry over in memory. All is guarded by the key's mutex.
//
//	open, used <-> open, idle -> gone
//	   |              |            ^
//	   +--> draining -+------------+
//
// It is open while nobody else wants the key. Who uses a draining one releases it.
type kept struct {
	w        *writer
	entry    *record.Entry
	lease    string
	keeper   Keeper
	marked   bool // its entry says that it may be kept; else it is only in the way of those who come
	open     bool
	used     bool
	uses     uint64        // holds that it was, the present one included
	hold     time.Duration // how long the last use lasted
	linger   time.Duration // how long it may stay unused, as its last user said
	idle     atomic.Int64  // since when nobody uses it, in nanoseconds; 0: somebody does
	checking bool          // a read is under way that confirms what is known
	timer    *time.Timer
	due      time.Time // of timer; zero: it does not run
}

// keeping is what the writer of a key knows about keeping it.
type keeping struct {
	kept  *kept
	lease string // of those who would keep it
	on    bool   // all who wait here, held back, would keep it
	ours  mark   // the revision of the last write, if it was ours and left nobody else in the record
	again bool   // the write that is being concluded is based on such a one
	row   int    // grants in a row that met nobody else
	need  int    // how many it takes until an entry is kept; 0 = 1
	parting
}

// keeps is what all kept entries of an engine share.
type keeps struct {
	idle atomic.Int64
	mu   sync.Mutex
	all  map[*kept]struct{}
}

func (s *keeps) under(lease string) (all []*kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.all {
		if k.lease == lease {
			all = append(all, k)
		}
	}
	return all
}

// parting is a kept entry on its way out.
type parting struct {
	id       string
	askers   []func(used bool)
	yielding bool // all acquires of this process wait here, so that another one's try can come first
}

const (
	// mostNeeded bounds how many acquires in a row have to meet nobody else before an entry is kept.
	mostNeeded = 1024
	// worthIt is after how many joins an entry that is called back was worth keeping.
	worthIt = 10
)

// calledBack takes note that others wanted the key after so many joins.
func (s *keeping) calledBack(joins uint64) {
	s.row = 0
	if joins >= worthIt {
		s.need = 1
	} else {
		s.need = min(4*max(s.need, 1), mostNeeded)
	}
}
