package lease

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// Limits of an observer's memory. A remembered sight costs some hundred bytes
// and saves an observation to who asks again about the same dead lease.
const (
	maxSights = 10_000
	// rememberFor is for how many of a lease's limits its sight is remembered after the last question about it.
	rememberFor = 10
)

// maxHold bounds the random delay of an observer that is not urgent, in favour of the one that is: a quarter to the
// whole of it or, if that is shorter, of the TTL.
const maxHold = time.Second

// never is later than any time.
const never = time.Duration(math.MaxInt64)

// sight is what an observer has seen of one lease. All of it is under the observer's mutex.
type sight struct {
	id    string
	given time.Duration // longest TTL that an asker knew of

	seen     bool // something was received at all
	rev      uint64
	first    time.Duration // when rev was first received: not before it was written
	info     Info          // last content that could be read
	readable bool          // info is the content of rev
	dead     bool          // its tombstone is committed; final

	askers  map[*asker]struct{}
	urgent  int           // how many of them are
	fresh   bool          // rev was received since somebody asks
	opening bool          // a watch is being opened
	stop    func()        // ends the watch
	hold    time.Duration // delay when nobody is urgent
	judging bool          // queued, or its tombstone is being written
	epitaph []byte        // that tombstone, from before it is sent until its outcome is known
	retry   time.Duration // not to be judged before
	pause   *backoff
	at      time.Duration // when it is to be looked at, if place > 0
	place   int           // its place on the agenda, counted from 1; 0 is none
	used    time.Duration // when it was last of use
}

// asker is one question about a lease.
type asker struct {
	ttl     time.Duration
	urgent  bool
	dead    func(id string)
	renewed func() // optional; called once, under the observer's mutex: must not block

	based    bool   // base is set
	base     uint64 // first revision under this question
	answered bool   // renewed was called
}

// addLocked adds a question.
func (s *sight) addLocked(a *asker) {
	if s.askers == nil {
		s.askers = make(map[*asker]struct{})
	}
	s.askers[a] = struct{}{}
	if a.urgent {
		s.urgent++
	}
	if s.fresh {
		a.based, a.base = true, s.rev
	}
}

// ttl returns the lease's TTL as far as it is known. The lease itself says it
// best; for one that is missing or unreadable the longest that is known is safe.
func (s *sight) ttl() time.Duration {
	if s.readable {
		return s.info.TTL
	}
	return max(s.given, s.info.TTL)
}

// limit returns for how long a revision must have been seen before the lease may be declared dead.
func (s *sight) limit() time.Duration {
	if s.readable {
		return s.info.TTL + s.info.Margin
	}
	return s.ttl() + max(defaultMargin(s.ttl()), s.info.Margin)
}

// due returns when the lease is to be declared dead, never if not at all.
func (s *sight) due() time.Duration {
	if s.dead || !s.fresh || s.judging || len(s.askers) == 0 {
		return never
	}
	d := s.first + s.limit()
	if s.urgent == 0 {
		d += s.hold
	}
	return max(d, s.retry)
}

// sightLocked returns the lease's sight, which it makes if there is none.
func (o *Observer) sightLocked(id string, ttl time.Duration) *sight {
	if ttl <= 0 || ttl > MaxTTL {
		ttl = MaxTTL // nonsense must not kill anybody
	}
	s := o.sights[id]
	if s == nil {
		o.pruneLocked()
		s = &sight{id: id}
		o.sights[id] = s
	}
	s.given = max(s.given, ttl)
	s.used = o.clk.Now()
	return s
}

// seeLocked notes an entry of the lease's key that was received just now. The time is taken here, after the entry has
// arrived: from any earlier moment on, the revision may not have existed yet.
func (o *Observer) seeLocked(s *sight, e jskv.Entry) {
	if s.dead {
		return
	}
	// An older revision comes from a read that was overtaken. Revision 0 can be
	// one too, or the end of a marker; to start anew is safe in both cases.
	if s.seen && e.Revision < s.rev && e.Revision != 0 {
		return
	}
	// A revision shows that nothing was written while nobody looked. Absence
	// shows nothing of the kind: it has to be seen all along.
	changed := !s.seen || e.Revision != s.rev || e.Revision == 0 && !s.fresh
	s.fresh = s.fresh || len(s.askers) > 0
	if changed {
		s.seen, s.rev, s.first = true, e.Revision, o.clk.Now()
		s.readable = false
		if !e.Deleted {
			if info, err := Decode(s.id, e.Value); err == nil {
				s.info, s.readable, s.dead = info, true, info.Dead
			}
		}
		most := min(s.ttl(), maxHold)
		s.hold = most/4 + rand.N(most*3/4+1)
		s.retry, s.pause = 0, newBackoff(s.ttl())
	}
	for a := range s.askers {
		switch {
		case !a.based:
			a.based, a.base = true, e.Revision
		case !s.dead && !e.Deleted && e.Revision > a.base && a.renewed != nil && !a.answered:
			a.answered = true
			a.renewed()
		}
	}
}

// pruneLocked forgets sights that nobody asked about for long, and the oldest of the others when there are too many.
func (o *Observer) pruneLocked() {
	if len(o.sights) < o.pruneAt {
		return
	}
	now := o.clk.Now()
	var idle []*sight
	for id, s := range o.sights {
		switch {
		case len(s.askers) > 0 || s.judging || s.opening:
		case now-s.used > rememberFor*s.limit():
			delete(o.sights, id)
		default:
			idle = append(idle, s)
		}
	}
	// A tenth at a time, so that a full memory is not sorted for each newcomer.
	if over := len(o.sights) - o.memory*9/10; over > 0 {
		slices.SortFunc(idle, func(a, b *sight) int { return cmp.Compare(a.used, b.used) })
		for _, s := range idle[:min(over, len(idle))] {
			delete(o.sights, s.id)
		}
	}
	// Not again before it has doubled or is full; where the sights in use alone
	// are more than that, not before a tenth more have come.
	o.pruneAt = max(min(2*len(o.sights), o.memory), len(o.sights)+o.memory/10)
}
