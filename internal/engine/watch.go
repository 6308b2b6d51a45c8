package engine

import (
	"maps"
	"math/rand/v2"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// lookAfter is the time to the first look, and times the place in the queue that between two
// others: at most mostLook, and a quarter of the TTL.
const (
	lookAfter = 500 * time.Millisecond
	mostLook  = 5 * time.Second
)

// WatchHold calls lost once, from a goroutine of the engine, when the entry with
// this id, which was seen at revision rev, is revoked or gone from the key's record. One that holds by a turn, of
// which that is the ticket, may wait there still; turn is 0 of others. It costs a share of a
// watcher, so it is for holds that last. stop ends it; a call in progress may still finish.
func (e *Engine) WatchHold(key, id string, turn, rev uint64, lost func(error)) (stop func()) {
	w := e.lock(key)
	defer w.mu.Unlock()
	if w.closed {
		return func() {}
	}
	if w.holds == nil {
		w.holds = map[string]*watchedHold{}
	}
	h := &watchedHold{turn, lost}
	w.holds[id] = h
	w.newestRev = max(w.newestRev, rev)
	if w.trusted() {
		w.settle()
	} else {
		w.adjustWatch() // the watch looks twice at what one read may have got wrong
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.holds[id] == h {
			delete(w.holds, id)
		}
	}
}

// observe has the leases ahead of the waiting operations observed. Called with mu held.
func (v *view) observe() {
	var ahead map[string]time.Duration
	urgent := false
	if !v.moves() {
		ahead, urgent = v.ahead()
	}
	v.obstacles.follow(ahead, urgent, func(id string, ttl time.Duration) func() {
		return v.core.cfg.Observer.Observe(id, ttl, urgent, v.leaseDied)
	})
}

// ahead returns the leases, with their TTLs, of all entries that operations of this process wait for. Leases of this
// process are among them: their end has to reach its waiters, too. urgent is whether one of these operations is
// granted next. Called with mu held.
func (v *view) ahead() (leases map[string]time.Duration, urgent bool) {
	if len(v.waiting) == 0 || v.closed {
		return nil, false
	}
	all, urgent := v.rec.Ahead(func(id string) bool { return v.waiting[id] != nil })
	return maps.Collect(all), urgent
}

// leaseDied is told by the observer that a lease's tombstone is committed. The head of the queue evicts at once,
// others after a pause in which the head has usually done it.
func (v *view) leaseDied(id string) {
	v.core.goIfOpen(func() {
		v.mu.Lock()
		v.obstacles.died(id)
		_, urgent := v.ahead()
		v.mu.Unlock()
		took, _ := v.core.cfg.RTT.RTT() // by the head, and until we are told
		if !urgent && !v.core.sleep(v.core.ctx, took+50*time.Millisecond+rand.N(200*time.Millisecond)) {
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		stands := func(lease string) bool { return len(v.waiting) > 0 && v.rec.HasLease(lease) }
		if leases := v.obstacles.evictable(stands); len(leases) > 0 {
			v.user.enqueue(&Request{Key: v.key, Op: record.Op{Verb: record.OpEvict, Leases: leases}})
		}
	})
}

// look reads the record, without a caller. Called with mu held.
func (v *view) look() {
	if v.closed || len(v.waiting) == 0 {
		return
	}
	if v.looking {
		v.lookAgain = true // the read under way may be too early
		return
	}
	v.looking = v.core.goIfOpen(func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		var err error
		for again := true; again; again = v.lookAgain && !v.closed {
			v.lookAgain = false
			v.mu.Unlock()
			var entry jskv.Entry
			entry, err = v.core.read(v.core.ctx, v.key, &v.silent, false)
			v.mu.Lock()
			switch {
			case err == nil && entry.Revision == 0:
				v.noticeAbsence()
			case err == nil:
				v.see(entry)
			}
		}
		v.looking = false
		now := v.rec.Turn()
		v.stalled = v.stalled || err != nil || now == v.turn
		v.turn, v.looked = now, true
		v.adjustWatch()
		v.observe()
	})
}

// hinted reports whether the waits of this process rely on hints. Called with mu held.
func (v *view) hinted() bool { return v.core.cfg.Hints != nil && v.core.cfg.Hints.Work() }

// moves reports whether hints are relied on alone, since the queue moves. While the record is
// watched nobody looks at it, who would notice that the queue stands still. Called with mu held.
func (v *view) moves() bool { return v.hinted() && !v.stalled && v.stopHurry == nil }

// nextLook returns when to look next instead of watching, 0 if the record is to be watched. Called with mu held.
func (v *view) nextLook() time.Duration {
	if !v.hinted() || v.first <= 1 && v.stalled {
		return 0
	}
	took, _ := v.core.cfg.RTT.RTT()
	d := max(lookAfter, 4*took)
	if v.looked {
		d = min(time.Duration(max(v.first, 1))*d, max(mostLook, d))
	}
	if v.ttl > 0 {
		d = min(d, max(v.ttl/4, time.Millisecond))
	}
	return pause.Near(d)
}

// armLook has the record looked at after d. Called with mu held.
func (v *view) armLook(d time.Duration) {
	if v.lookTimer != nil {
		v.lookTimer.Stop()
	}
	v.lookTimer = time.AfterFunc(d, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.look()
	})
}

// adjustWatch opens the watch when somebody waits or watches a hold. It is
// closed by sweep, later. Called with mu held.
func (v *view) adjustWatch() {
	if !v.wanted() {
		return
	}
	v.lastUse = time.Now()
	if v.closed {
		return
	}
	if !v.listed {
		v.listed = true
		v.core.mu.Lock()
		v.core.watched[v.user] = struct{}{}
		v.core.mu.Unlock()
	}
	if len(v.waiting) > 0 && v.stopHurry == nil {
		if d := v.nextLook(); d == 0 {
			v.stopHurry = v.core.cfg.Watcher.Watch(v.key, func(jskv.Entry) {}) // notify is called by the other
		} else if v.armLook(d); len(v.holds) == 0 && !v.followed {
			return
		}
	}
	if v.stopWatch != nil {
		return
	}
	v.stopWatch = func() {}
	v.core.goIfOpen(func() {
		// Outside mu: the watcher may call notify at once.
		stop := v.core.cfg.Watcher.Follow(v.key, v.notify)
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.closed {
			stop()
			return
		}
		v.stopWatch = stop
	})
}

// sweep closes the watch once nobody has needed it for a while.
func (v *view) sweep() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.waiting) == 0 {
		v.dropHurry()
	}
	if !v.wanted() && time.Since(v.lastUse) >= linger {
		v.dropWatch()
	}
}

// dropWatch ends the watch. Called with mu held.
func (v *view) dropWatch() {
	if v.lookTimer != nil {
		v.lookTimer.Stop()
	}
	if v.stopWatch != nil {
		v.stopWatch()
		v.stopWatch = nil
	}
	v.dropHurry()
	v.listed = false
	v.core.mu.Lock()
	delete(v.core.watched, v.user)
	v.core.mu.Unlock()
}

func (v *view) dropHurry() {
	if v.stopHurry != nil {
		v.stopHurry()
		v.stopHurry = nil
	}
}

// Look has the key's record read if an operation of this process waits in it, or is found to wait
// in an older one than rev, or an entry is kept, and the newest revision that is known is below rev. It returns at once.
func (e *Engine) Look(key string, rev uint64) {
	w := e.find(key)
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rev < rev || !w.known {
		// It may overtake the acknowledgement of the write that has the operation wait.
		w.hint = max(w.hint, rev)
		w.look()
		if w.kept != nil {
			w.check(w.kept)
		}
	}
}

// tellOthers tells the processes that a committed step has let in, but those whose requests wait
// here: these are answered. Called with mu held.
func (w *writer) tellOthers(s *step) {
	if !w.hinted() {
		return
	}
	here := func(id string) bool { return w.waiting[id] != nil }
	if leases := s.next.LetIn(s.base, here); len(leases) > 0 {
		h, key, rev := w.core.cfg.Hints, w.key, s.newRev
		w.mu.then(func() { h.Tell(leases, key, rev) })
	}
}
