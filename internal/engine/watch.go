package engine

import (
	"maps"
	"math/rand/v2"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/internal/record"
)

// A look is a read of the record by a process that waits without a watch. The first look is lookGap after the
// wait began; later gaps are lookGap times the place in the queue, at most maxLookGap. No gap exceeds TTL/4.
const (
	lookGap    = 500 * time.Millisecond
	maxLookGap = 5 * time.Second
)

// WatchHold calls lost once, from a goroutine of the engine, when the entry with this id, which was seen at
// revision rev, is revoked or missing in the key's record. If the hold is by a turn, the argument turn is its ticket, and
// the entry may still be a waiter; else turn is 0. A watched hold costs a share of a
// watcher, so it is for long holds. stop ends it; a call in progress may still finish.
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

// observe starts and stops the observation of the leases ahead of the waiting operations.
func (v *view) observe() {
	var ahead map[string]time.Duration
	urgent := false
	if !v.hintsSuffice() {
		ahead, urgent = v.ahead()
	}
	v.leasesAhead.follow(ahead, urgent, func(id string, ttl time.Duration) func() {
		return v.core.cfg.Observer.Observe(id, ttl, urgent, v.leaseDied)
	})
}

// ahead returns the leases, with their TTLs, of all entries that operations of this process wait for. It includes leases
// of this process, since its own waiters must learn of their end, too. urgent is whether one of these operations is
// granted next.
func (v *view) ahead() (leases map[string]time.Duration, urgent bool) {
	if len(v.waiting) == 0 || v.closed {
		return nil, false
	}
	all, urgent := v.rec.Ahead(func(id string) bool { return v.waiting[id] != nil })
	return maps.Collect(all), urgent
}

// leaseDied is the observer's callback for a committed tombstone. The process at the head of the queue evicts at once,
// the others after a pause in which the head has usually done it.
func (v *view) leaseDied(id string) {
	v.core.goIfOpen(func() {
		v.mu.Lock()
		v.leasesAhead.died(id)
		_, urgent := v.ahead()
		v.mu.Unlock()
		took, _ := v.core.cfg.RTT.RTT() // about the time of the head's write, and of the hint after it
		if !urgent && !v.core.sleep(v.core.ctx, took+50*time.Millisecond+rand.N(200*time.Millisecond)) {
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		stands := func(lease string) bool { return len(v.waiting) > 0 && v.rec.HasLease(lease) }
		if leases := v.leasesAhead.evictable(stands); len(leases) > 0 {
			v.user.enqueue(&Request{Key: v.key, Op: record.Op{Verb: record.OpEvict, Leases: leases}})
		}
	})
}

// look reads the record in the background.
func (v *view) look() {
	if v.closed || len(v.waiting) == 0 {
		return
	}
	if v.looking {
		v.lookAgain = true // the read under way may be too early for a hint
		return
	}
	v.looking = v.core.goIfOpen(func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		var err error
		for again := true; again; again = v.lookAgain && v.rev < v.hintRev && !v.closed {
			v.lookAgain = false
			v.mu.Unlock()
			var entry jskv.Entry
			entry, err = v.core.read(v.core.ctx, v.key, &v.timeouts, false)
			v.mu.Lock()
			switch {
			case err == nil && entry.Revision == 0:
				v.recheckAbsent()
			case err == nil:
				v.absorbIfNewer(entry)
			}
		}
		v.looking = false
		now := v.rec.OldestHolder()
		v.stalled = v.stalled || err != nil || now == v.lastHolder
		v.lastHolder, v.looked = now, true
		v.adjustWatch()
		v.observe()
	})
}

// hintsWork reports whether hints are known to arrive.
func (v *view) hintsWork() bool { return v.core.cfg.Hints != nil && v.core.cfg.Hints.Work() }

// hintsSuffice reports whether the process relies on hints alone, since the queue moves. It is false while the record
// is watched: nothing looks at it then, so nothing would notice that the queue has stopped.
func (v *view) hintsSuffice() bool { return v.hintsWork() && !v.stalled && v.stopUrgent == nil }

// nextLook returns the time to the next look, 0 if the record is to be watched instead.
func (v *view) nextLook() time.Duration {
	if !v.hintsWork() || v.firstPlace <= 1 && v.stalled {
		return 0
	}
	took, _ := v.core.cfg.RTT.RTT()
	d := max(lookGap, 4*took)
	if v.looked {
		d = min(time.Duration(max(v.firstPlace, 1))*d, max(maxLookGap, d))
	}
	if v.ttl > 0 {
		d = min(d, max(v.ttl/4, time.Millisecond))
	}
	return pause.Near(d)
}

// armLook schedules a look in d.
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

// adjustWatch opens the watch if an operation waits or a hold is watched. sweep closes it, later.
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
	if len(v.waiting) > 0 && v.stopUrgent == nil {
		if d := v.nextLook(); d == 0 {
			v.stopUrgent = v.core.cfg.Watcher.Watch(v.key, func(jskv.Entry) {}) // the other watch calls notify
		} else if v.armLook(d); len(v.holds) == 0 && !v.followed {
			return
		}
	}
	if v.stopWatch != nil {
		return
	}
	v.stopWatch = func() {}
	v.core.goIfOpen(func() {
		// Without mu, since the watcher may call notify at once.
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

// sweep closes the watch after it was unused for a while.
func (v *view) sweep() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.waiting) == 0 {
		v.dropUrgent()
	}
	if !v.wanted() && time.Since(v.lastUse) >= linger {
		v.dropWatch()
	}
}

// dropWatch closes the watch.
func (v *view) dropWatch() {
	if v.lookTimer != nil {
		v.lookTimer.Stop()
	}
	if v.stopWatch != nil {
		v.stopWatch()
		v.stopWatch = nil
	}
	v.dropUrgent()
	v.listed = false
	v.core.mu.Lock()
	delete(v.core.watched, v.user)
	v.core.mu.Unlock()
}

func (v *view) dropUrgent() {
	if v.stopUrgent != nil {
		v.stopUrgent()
		v.stopUrgent = nil
	}
}

// Look reads the key's record in the background if this process knows no revision as new as rev, and an operation of it
// waits there or an entry is kept. If a write under way queues an operation below rev, the read follows its acknowledgement.
func (e *Engine) Look(key string, rev uint64) {
	w := e.lockKnown(key)
	if w == nil {
		return
	}
	defer w.mu.Unlock()
	if w.rev < rev || !w.known {
		// A hint can overtake the acknowledgement of the write that queues the operation.
		w.hintRev = max(w.hintRev, rev)
		w.look()
		if w.kept != nil {
			w.confirmKept(w.kept)
		}
	}
}

// sendHints sends hints to the processes whose operations a committed step has granted or ended. Requests that
// wait in this process get their answers directly.
func (w *writer) sendHints(s *step) {
	if !w.hintsWork() {
		return
	}
	waitsHere := func(id string) bool { return w.waiting[id] != nil }
	if leases := s.next.EndedWaits(s.base, waitsHere); len(leases) > 0 {
		h, key, rev := w.core.cfg.Hints, w.key, s.newRev
		w.mu.afterUnlock(func() { h.Tell(leases, key, rev) })
	}
}
