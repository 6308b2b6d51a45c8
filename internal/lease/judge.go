package lease

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// run is the observer's loop: it sleeps until a lease is due or somebody wakes it.
func (o *Observer) run(ctx context.Context) {
	for pause.Until(ctx, o.look(ctx), o.wake) {
	}
}

// look tells subscribers of the dead, has those judged that are due, and returns how long to sleep, never for until woken.
func (o *Observer) look(ctx context.Context) time.Duration {
	o.mu.Lock()
	dead := o.dead
	o.dead = nil
	now := o.clk.Now()
	for o.schedule.next() <= now {
		s := o.schedule.pop()
		switch due := s.due(); {
		case due == never: // a question that ended, or one that a read will renew
		case due > now: // renewed since it was entered
			o.schedule.enter(s, due)
		default:
			s.judging = true
			o.queue = append(o.queue, s)
			if o.judges < maxJudges {
				o.judges++
				o.wg.Go(func() { o.work(ctx) })
			}
		}
	}
	sleep := o.schedule.next()
	if sleep < never {
		sleep -= now
	}
	o.mu.Unlock()
	for _, s := range dead {
		o.announce(s)
	}
	return sleep
}

// work judges what is queued.
func (o *Observer) work(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) > 0 && ctx.Err() == nil {
		s := o.queue[0]
		o.queue = o.queue[1:]
		s.judging = false
		// Only now is it certain, under the same lock as the revision that is
		// taken: it may have been renewed while it was queued.
		if s.due() > o.clk.Now() {
			o.scheduleLocked(s)
			continue
		}
		s.judging = true
		rev, limit, value := s.rev, o.patience(s.ttl()), o.tombstoneValueLocked(s)
		s.tombstoneValue = value
		o.mu.Unlock()
		o.judge(ctx, s, rev, limit, value)
		o.mu.Lock()
	}
	o.judges--
}

// scheduleLocked has the loop do what there is to be done about s.
func (o *Observer) scheduleLocked(s *observation) {
	if len(s.subscribers) == 0 {
		return
	}
	if s.dead {
		o.dead = append(o.dead, s)
		pause.Wake(o.wake)
		return
	}
	if due := s.due(); due < never {
		next := o.schedule.next()
		o.schedule.enter(s, due)
		if due < next {
			pause.Wake(o.wake)
		}
	}
}

// judge makes one attempt to declare a lease dead whose revision was seen unchanged for its limit. The
// compare-and-set proves what no read can: that it was not renewed in between.
func (o *Observer) judge(ctx context.Context, s *observation, rev uint64, limit time.Duration, value []byte) {
	err := tombstone(ctx, o.b, limit, rev, value, s.id)
	var e jskv.Entry
	readErr := err
	if errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrUnknown) {
		// Renewed, or declared dead by another or by ourselves.
		e, readErr = get(ctx, o.b, limit, s.id)
	}
	if err == nil || readErr == nil && bytes.Equal(e.Value, value) {
		o.mu.Lock()
		tell := o.onTombstone
		o.mu.Unlock()
		// Before the lease counts as dead: from then on others act upon it.
		if tell != nil {
			tell(s.id)
		}
	}

	o.mu.Lock()
	s.judging, s.tombstoneValue = false, nil
	if err == nil {
		s.dead = true
	} else if readErr == nil {
		o.seeLocked(s, e)
	}
	if !s.dead && s.rev == rev {
		s.retry = o.clk.Now() + s.pause.after(err)
	}
	o.scheduleLocked(s)
	dead := s.dead
	o.mu.Unlock()

	if err == nil {
		o.log.Info("lease declared dead", "lease", s.id, "revision", rev)
	} else {
		o.log.Debug("lease not declared dead", "lease", s.id, "revision", rev, "error", err)
	}
	if dead {
		o.announce(s)
	}
}

// tombstoneValueLocked returns the tombstone for the lease, which keeps what is known of its holder.
func (o *Observer) tombstoneValueLocked(s *observation) []byte {
	info := s.info
	if info.ID == "" { // never readable
		info = Info{ID: s.id, TTL: max(s.ttl(), MinTTL)}
		info.TTL = info.TTL.Truncate(time.Millisecond)
		info.Margin = defaultMargin(info.TTL)
	}
	return info.tombstone(ReasonExpired, o.by, time.Now())
}

// announce tells each subscriber once that the lease is dead, and stops watching it.
func (o *Observer) announce(s *observation) {
	for {
		o.mu.Lock()
		var subscriber *subscriber
		var unwatch func()
		for a := range s.subscribers {
			subscriber, unwatch = a, o.removeLocked(s, a)
			break
		}
		o.mu.Unlock()
		if subscriber == nil {
			return
		}
		if unwatch != nil {
			unwatch()
		}
		subscriber.dead(s.id)
	}
}

// patience bounds one write or read about a lease with this TTL.
func (o *Observer) patience(ttl time.Duration) time.Duration {
	return max(o.rtt.Timeout(), min(max(ttl/2, 500*time.Millisecond), 2*time.Second))
}

// schedule holds the leases that are to be looked at, by when. There may be ten thousand of them, each renewed every
// few seconds, so a renewal does not move its lease: the loop does, when it finds that it is not due yet.
type schedule []*observation

// enter has the lease looked at no later than at.
func (a *schedule) enter(s *observation, at time.Duration) {
	switch {
	case s.place == 0:
		s.at = at
		heap.Push(a, s)
	case at < s.at:
		s.at = at
		heap.Fix(a, s.place-1)
	}
}

// remove takes the lease off.
func (a *schedule) remove(s *observation) {
	if s.place > 0 {
		heap.Remove(a, s.place-1)
	}
}

// next returns when the loop has to look again, never if there is nothing.
func (a schedule) next() time.Duration {
	if len(a) == 0 {
		return never
	}
	return a[0].at
}

// pop takes the next lease off.
func (a *schedule) pop() *observation { return heap.Pop(a).(*observation) }

// The methods of heap.Interface.

func (a schedule) Len() int           { return len(a) }
func (a schedule) Less(i, j int) bool { return a[i].at < a[j].at }

func (a schedule) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i+1, j+1
}

func (a *schedule) Push(x any) {
	s := x.(*observation)
	*a = append(*a, s)
	s.place = len(*a)
}

func (a *schedule) Pop() any {
	last := len(*a) - 1
	s := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	s.place = 0
	return s
}

// Limits of an observer's memory. A remembered observation costs some hundred bytes
// and saves an observation to who asks again about the same dead lease.
const (
	maxSights = 10_000
	// rememberFor is for how many of a lease's limits its observation is remembered after the last question about it.
	rememberFor = 10
)

// maxHold bounds the random delay of an observer that is not urgent, in favour of the one that is: a quarter to the
// whole of it or, if that is shorter, of the TTL.
const maxHold = time.Second

// never is later than any time.
const never = time.Duration(math.MaxInt64)

// observation is what an observer has seen of one lease. All of it is under the observer's mutex.
type observation struct {
	id    string
	given time.Duration // longest TTL that a subscriber knew of

	seen     bool // something was received at all
	rev      uint64
	first    time.Duration // when rev was first received: not before it was written
	info     Info          // last content that could be read
	readable bool          // info is the content of rev
	dead     bool          // its tombstone is committed; final

	subscribers    map[*subscriber]struct{}
	urgent         int           // how many of them are
	fresh          bool          // rev was received since somebody asks
	opening        bool          // a watch is being opened
	stop           func()        // ends the watch
	hold           time.Duration // delay when nobody is urgent
	judging        bool          // queued, or its tombstone is being written
	tombstoneValue []byte        // that tombstone, from before it is sent until its outcome is known
	retry          time.Duration // not to be judged before
	pause          *backoff
	at             time.Duration // when it is to be looked at, if place > 0
	place          int           // its place on the schedule, counted from 1; 0 is none
	used           time.Duration // when it was last of use
}

// subscriber is one question about a lease.
type subscriber struct {
	ttl     time.Duration
	urgent  bool
	dead    func(id string)
	renewed func() // optional; called once, under the observer's mutex: must not block

	based    bool   // base is set
	base     uint64 // first revision under this question
	answered bool   // renewed was called
}

// addLocked adds a question.
func (s *observation) addLocked(a *subscriber) {
	if s.subscribers == nil {
		s.subscribers = make(map[*subscriber]struct{})
	}
	s.subscribers[a] = struct{}{}
	if a.urgent {
		s.urgent++
	}
	if s.fresh {
		a.based, a.base = true, s.rev
	}
}

// ttl returns the lease's TTL as far as it is known. The lease itself says it
// best; for one that is missing or unreadable the longest that is known is safe.
func (s *observation) ttl() time.Duration {
	if s.readable {
		return s.info.TTL
	}
	return max(s.given, s.info.TTL)
}

// limit returns for how long a revision must have been seen before the lease may be declared dead.
func (s *observation) limit() time.Duration {
	if s.readable {
		return s.info.TTL + s.info.Margin
	}
	return s.ttl() + max(defaultMargin(s.ttl()), s.info.Margin)
}

// due returns when the lease is to be declared dead, never if not at all.
func (s *observation) due() time.Duration {
	if s.dead || !s.fresh || s.judging || len(s.subscribers) == 0 {
		return never
	}
	d := s.first + s.limit()
	if s.urgent == 0 {
		d += s.hold
	}
	return max(d, s.retry)
}

// observationLocked returns the lease's observation, which it makes if there is none.
func (o *Observer) observationLocked(id string, ttl time.Duration) *observation {
	if ttl <= 0 || ttl > MaxTTL {
		ttl = MaxTTL // nonsense must not kill anybody
	}
	s := o.observations[id]
	if s == nil {
		o.pruneLocked()
		s = &observation{id: id}
		o.observations[id] = s
	}
	s.given = max(s.given, ttl)
	s.used = o.clk.Now()
	return s
}

// seeLocked notes an entry of the lease's key that was received just now. The time is taken here, after the entry has
// arrived: from any earlier moment on, the revision may not have existed yet.
func (o *Observer) seeLocked(s *observation, e jskv.Entry) {
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
	s.fresh = s.fresh || len(s.subscribers) > 0
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
	for a := range s.subscribers {
		switch {
		case !a.based:
			a.based, a.base = true, e.Revision
		case !s.dead && !e.Deleted && e.Revision > a.base && a.renewed != nil && !a.answered:
			a.answered = true
			a.renewed()
		}
	}
}

// pruneLocked forgets observations that nobody asked about for long, and the oldest of the others when there are too many.
func (o *Observer) pruneLocked() {
	if len(o.observations) < o.pruneAt {
		return
	}
	now := o.clk.Now()
	var idle []*observation
	for id, s := range o.observations {
		switch {
		case len(s.subscribers) > 0 || s.judging || s.opening:
		case now-s.used > rememberFor*s.limit():
			delete(o.observations, id)
		default:
			idle = append(idle, s)
		}
	}
	// A tenth at a time, so that a full memory is not sorted for each newcomer.
	if over := len(o.observations) - o.memory*9/10; over > 0 {
		slices.SortFunc(idle, func(a, b *observation) int { return cmp.Compare(a.used, b.used) })
		for _, s := range idle[:min(over, len(idle))] {
			delete(o.observations, s.id)
		}
	}
	// Not again before it has doubled or is full; where the observations in use alone
	// are more than that, not before a tenth more have come.
	o.pruneAt = max(min(2*len(o.observations), o.memory), len(o.observations)+o.memory/10)
}
