package lease

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// run is the observer's loop: it sleeps until a lease is due or somebody wakes it.
func (o *Observer) run(ctx context.Context) {
	for pause.Until(ctx, o.look(ctx), o.wake) {
	}
}

// look tells askers of the dead, has those judged that are due, and returns how long to sleep, never for until woken.
func (o *Observer) look(ctx context.Context) time.Duration {
	o.mu.Lock()
	dead := o.dead
	o.dead = nil
	now := o.clk.Now()
	for o.agenda.next() <= now {
		s := o.agenda.pop()
		switch due := s.due(); {
		case due == never: // a question that ended, or one that a read will renew
		case due > now: // renewed since it was entered
			o.agenda.enter(s, due)
		default:
			s.judging = true
			o.queue = append(o.queue, s)
			if o.judges < maxJudges {
				o.judges++
				o.tail.Go(func() { o.work(ctx) })
			}
		}
	}
	sleep := o.agenda.next()
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
		rev, limit, value := s.rev, o.patience(s.ttl()), o.epitaphLocked(s)
		s.epitaph = value
		o.mu.Unlock()
		o.judge(ctx, s, rev, limit, value)
		o.mu.Lock()
	}
	o.judges--
}

// scheduleLocked has the loop do what there is to be done about s.
func (o *Observer) scheduleLocked(s *sight) {
	if len(s.askers) == 0 {
		return
	}
	if s.dead {
		o.dead = append(o.dead, s)
		pause.Wake(o.wake)
		return
	}
	if due := s.due(); due < never {
		next := o.agenda.next()
		o.agenda.enter(s, due)
		if due < next {
			pause.Wake(o.wake)
		}
	}
}

// judge makes one attempt to declare a lease dead whose revision was seen unchanged for its limit. The
// compare-and-set proves what no read can: that it was not renewed in between.
func (o *Observer) judge(ctx context.Context, s *sight, rev uint64, limit time.Duration, value []byte) {
	err := tombstone(ctx, o.b, limit, rev, value, s.id)
	var e jskv.Entry
	readErr := err
	if errors.Is(err, jskv.ErrConflict) || errors.Is(err, jskv.ErrUnknown) {
		// Renewed, or declared dead by another or by ourselves.
		rctx, cancel := context.WithTimeout(ctx, limit)
		e, readErr = o.b.Get(rctx, s.id)
		cancel()
	}
	if err == nil || readErr == nil && bytes.Equal(e.Value, value) {
		o.mu.Lock()
		buried := o.buried
		o.mu.Unlock()
		// Before the lease counts as dead: from then on others act upon it.
		if buried != nil {
			buried(s.id)
		}
	}

	o.mu.Lock()
	s.judging, s.epitaph = false, nil
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

// epitaphLocked returns the tombstone for the lease, which keeps what is known of its holder.
func (o *Observer) epitaphLocked(s *sight) []byte {
	info := s.info
	if info.ID == "" { // never readable
		info = Info{ID: s.id, TTL: max(s.ttl(), MinTTL)}
		info.TTL = info.TTL.Truncate(time.Millisecond)
		info.Margin = defaultMargin(info.TTL)
	}
	return info.tombstone(ReasonExpired, o.by, time.Now())
}

// announce tells each asker once that the lease is dead, and stops watching it.
func (o *Observer) announce(s *sight) {
	for {
		o.mu.Lock()
		var asker *asker
		var unwatch func()
		for a := range s.askers {
			asker, unwatch = a, o.removeLocked(s, a)
			break
		}
		o.mu.Unlock()
		if asker == nil {
			return
		}
		if unwatch != nil {
			unwatch()
		}
		asker.dead(s.id)
	}
}

// patience bounds one write or read about a lease with this TTL.
func (o *Observer) patience(ttl time.Duration) time.Duration {
	return max(o.rtt.Timeout(), min(max(ttl/2, 500*time.Millisecond), 2*time.Second))
}

// agenda holds the leases that are to be looked at, by when. There may be ten thousand of them, each renewed every
// few seconds, so a renewal does not move its lease: the loop does, when it finds that it is not due yet.
type agenda []*sight

// enter has the lease looked at no later than at.
func (a *agenda) enter(s *sight, at time.Duration) {
	switch {
	case s.place == 0:
		s.at = at
		heap.Push(a, s)
	case at < s.at:
		s.at = at
		heap.Fix(a, s.place-1)
	}
}

// strike takes the lease off.
func (a *agenda) strike(s *sight) {
	if s.place > 0 {
		heap.Remove(a, s.place-1)
	}
}

// next returns when the loop has to look again, never if there is nothing.
func (a agenda) next() time.Duration {
	if len(a) == 0 {
		return never
	}
	return a[0].at
}

// pop takes the next lease off.
func (a *agenda) pop() *sight { return heap.Pop(a).(*sight) }

// The methods of heap.Interface.

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at < a[j].at }

func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i+1, j+1
}

func (a *agenda) Push(x any) {
	s := x.(*sight)
	*a = append(*a, s)
	s.place = len(*a)
}

func (a *agenda) Pop() any {
	last := len(*a) - 1
	s := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	s.place = 0
	return s
}
