package lease

import (
	"bytes"
	"cmp"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// armLocked has the lease checked when it is due, or at once if it is dead. A lease may be renewed every few seconds, so
// a renewal does not change the timer: the check finds that the lease is not due yet, and sets it again.
func (o *Observer) armLocked(s *observation) {
	at := s.due()
	if s.dead {
		at = 0
	}
	if o.ctx.Err() != nil || len(s.subscribers) == 0 || at == never || s.armed && s.at <= at {
		return
	}
	s.armed, s.at = true, at
	if s.timer != nil {
		s.timer.Stop()
	}
	if d := at - o.clk.Now(); d > 0 {
		s.timer = time.AfterFunc(d, func() { o.check(s) })
	} else { // no timer, since Go 1.26's race detector can crash when a test's timer with fake time is due at once
		go o.check(s)
	}
}

// check calls the subscribers of a dead lease, or writes the tombstone of one that is due.
func (o *Observer) check(s *observation) {
	o.mu.Lock()
	s.armed = false
	if o.ctx.Err() != nil {
		o.mu.Unlock()
		return
	}
	o.wg.Add(1)
	defer o.wg.Done()
	dead, due := s.dead, s.due() <= o.clk.Now()
	switch {
	case due:
		s.tombstoning = true
	case !dead:
		o.armLocked(s) // it was renewed
	}
	o.mu.Unlock()
	if dead {
		o.reportDead(s)
	}
	if !due {
		return
	}
	select {
	case o.writers <- struct{}{}:
		o.writeTombstone(s)
		<-o.writers
	case <-o.ctx.Done():
	}
}

// writeTombstone makes one attempt to declare a lease dead whose revision was seen unchanged for its limit. The
// compare-and-set proves what no read can prove: that the lease was not renewed in between.
func (o *Observer) writeTombstone(s *observation) {
	o.mu.Lock()
	s.tombstoning = false
	// Check again, under the same lock that covers the revision: the lease may have been renewed while it was queued.
	if s.due() > o.clk.Now() {
		o.armLocked(s)
		o.mu.Unlock()
		return
	}
	s.tombstoning = true
	rev, limit, value := s.rev, o.patience(s.ttl()), o.tombstoneValueLocked(s)
	s.tombstoneValue = value
	tell := o.onTombstone
	o.mu.Unlock()

	err := tombstone(o.ctx, o.b, limit, rev, value, s.id)
	var e jskv.Entry
	readErr := err
	if errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrUnknown) {
		// It was renewed, or declared dead by another observer or by this one.
		e, readErr = get(o.ctx, o.b, limit, s.id)
	}
	// Before the lease counts as dead, since subscribers act on that.
	if tell != nil && (err == nil || readErr == nil && bytes.Equal(e.Value, value)) {
		tell(s.id)
	}

	o.mu.Lock()
	s.tombstoning, s.tombstoneValue = false, nil
	if err == nil {
		s.dead = true
	} else if readErr == nil {
		o.noteEntryLocked(s, e)
	}
	if !s.dead && s.rev == rev {
		s.retryAt = o.clk.Now() + s.pause.pauseAfter(err)
	}
	o.armLocked(s)
	o.mu.Unlock()

	if err == nil {
		o.log.Info("lease declared dead", "lease", s.id, "revision", rev)
	} else {
		o.log.Debug("lease not declared dead", "lease", s.id, "revision", rev, "error", err)
	}
}

// tombstoneValueLocked returns the tombstone for the lease, with what is known of its holder.
func (o *Observer) tombstoneValueLocked(s *observation) []byte {
	info := s.info
	if info.ID == "" { // no value could be read
		info = Info{ID: s.id, TTL: max(s.ttl(), MinTTL)}
		info.TTL = info.TTL.Truncate(time.Millisecond)
		info.Margin = defaultMargin(info.TTL)
	}
	return info.tombstone(ReasonExpired, o.by, time.Now())
}

// reportDead tells each subscriber once that the lease is dead, and ends the watch.
func (o *Observer) reportDead(s *observation) {
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

// Limits of an observer's memory. A remembered observation costs some hundred bytes. It saves the
// next subscriber of the same dead lease the waiting.
const (
	maxObservations = 10_000
	// rememberFor is how many limits of a lease its observation is remembered after the last use.
	rememberFor = 10
)

// maxDelay bounds the random delay of an observer without an urgent subscriber, so that an urgent one comes first. The
// delay is a quarter to the whole of maxDelay or, if that is shorter, of the TTL.
const maxDelay = time.Second

// never is later than any time.
const never = time.Duration(math.MaxInt64)

// observation is what an observer has seen of one lease. The observer's mutex guards it.
type observation struct {
	id       string
	givenTTL time.Duration // longest TTL that a subscriber named

	seen     bool // an entry was received
	rev      uint64
	since    time.Duration // when rev was first received, which is never before it was written
	info     Info          // last value that could be read
	readable bool          // info is the value of rev
	dead     bool          // its tombstone is committed; final

	subscribers    map[*subscriber]struct{}
	urgent         int           // how many of them are urgent
	confirmed      bool          // rev was received since there are subscribers
	opening        bool          // a watch is being opened
	stop           func()        // ends the watch
	delay          time.Duration // used while no subscriber is urgent
	tombstoning    bool          // queued, or its tombstone is being written
	tombstoneValue []byte        // that tombstone, from before it is sent until its outcome is known
	retryAt        time.Duration // no tombstone before this time
	pause          backoff
	timer          *time.Timer   // calls check
	armed          bool          // timer runs
	at             time.Duration // when it fires
	lastUsed       time.Duration // when it was last used
}

// subscriber is one call of Observe or WaitDead.
type subscriber struct {
	ttl     time.Duration
	urgent  bool
	dead    func(id string)
	renewed func() // optional; called once, under the observer's mutex: must not block

	baseSet  bool   // base is set
	base     uint64 // first revision seen by this subscriber
	answered bool   // renewed was called
}

// addLocked adds a subscriber.
func (s *observation) addLocked(a *subscriber) {
	if s.subscribers == nil {
		s.subscribers = make(map[*subscriber]struct{})
	}
	s.subscribers[a] = struct{}{}
	if a.urgent {
		s.urgent++
	}
	if s.confirmed {
		a.baseSet, a.base = true, s.rev
	}
}

// ttl returns the lease's TTL as far as it is known. The lease's own value is the best;
// if that is missing or unreadable, the longest known TTL is safe.
func (s *observation) ttl() time.Duration {
	if s.readable {
		return s.info.TTL
	}
	return max(s.givenTTL, s.info.TTL)
}

// limit returns how long a revision must have been seen before the lease may be declared dead.
func (s *observation) limit() time.Duration {
	if s.readable {
		return s.info.TTL + s.info.Margin
	}
	return s.ttl() + max(defaultMargin(s.ttl()), s.info.Margin)
}

// due returns when to declare the lease dead, never if not at all.
func (s *observation) due() time.Duration {
	if s.dead || !s.confirmed || s.tombstoning || len(s.subscribers) == 0 {
		return never
	}
	d := s.since + s.limit()
	if s.urgent == 0 {
		d += s.delay
	}
	return max(d, s.retryAt)
}

// observationLocked returns the lease's observation, and makes it if there is none.
func (o *Observer) observationLocked(id string, ttl time.Duration) *observation {
	if ttl <= 0 || ttl > MaxTTL {
		ttl = MaxTTL // a wrong value must not kill a lease too early
	}
	s := o.observations[id]
	if s == nil {
		o.pruneLocked()
		s = &observation{id: id}
		o.observations[id] = s
	}
	s.givenTTL = max(s.givenTTL, ttl)
	s.lastUsed = o.clk.Now()
	return s
}

// noteEntryLocked notes an entry of the lease's key that was received just now. It takes the time now, after the entry has
// arrived: at an earlier time the revision may not have existed yet.
func (o *Observer) noteEntryLocked(s *observation, e jskv.Entry) {
	if s.dead {
		return
	}
	// An older revision comes from a read that a newer answer has overtaken. Revision 0 can be
	// one, too, or the end of a marker; starting again is safe in both cases.
	if s.seen && e.Revision < s.rev && e.Revision != 0 {
		return
	}
	// The same revision proves that nothing was written while there was no watch. Absence
	// does not prove that: it has to be watched all the time.
	changed := !s.seen || e.Revision != s.rev || e.Revision == 0 && !s.confirmed
	s.confirmed = s.confirmed || len(s.subscribers) > 0
	if changed {
		s.seen, s.rev, s.since = true, e.Revision, o.clk.Now()
		s.readable = false
		if !e.Deleted {
			if info, err := Decode(s.id, e.Value); err == nil {
				s.info, s.readable, s.dead = info, true, info.Dead
			}
		}
		most := min(s.ttl(), maxDelay)
		s.delay = most/4 + rand.N(most*3/4+1)
		s.retryAt, s.pause = 0, backoff{ttl: s.ttl()}
	}
	for a := range s.subscribers {
		switch {
		case !a.baseSet:
			a.baseSet, a.base = true, e.Revision
		case !s.dead && !e.Deleted && e.Revision > a.base && a.renewed != nil && !a.answered:
			a.answered = true
			a.renewed()
		}
	}
}

// pruneLocked forgets observations that were unused for long and, if there are too many, the longest unused of the others.
func (o *Observer) pruneLocked() {
	if len(o.observations) < o.pruneAt {
		return
	}
	now := o.clk.Now()
	var idle []*observation
	for id, s := range o.observations {
		switch {
		case len(s.subscribers) > 0 || s.tombstoning || s.opening:
		case now-s.lastUsed > rememberFor*s.limit():
			delete(o.observations, id)
		default:
			idle = append(idle, s)
		}
	}
	// Forget a tenth at a time, so that a full memory is not sorted for each new lease.
	if over := len(o.observations) - o.maxRemembered*9/10; over > 0 {
		slices.SortFunc(idle, func(a, b *observation) int { return cmp.Compare(a.lastUsed, b.lastUsed) })
		for _, s := range idle[:min(over, len(idle))] {
			delete(o.observations, s.id)
		}
	}
	// Prune again when the number has doubled or the memory is full. If the active observations alone
	// are more than that, prune when another tenth has come.
	o.pruneAt = max(min(2*len(o.observations), o.maxRemembered), len(o.observations)+o.maxRemembered/10)
}
