package engine

import "time"

// armTimer has onTimer called in d at the latest. Called with mu held.
func (w *writer) armTimer(k *kept, d time.Duration) {
	due := time.Now().Add(d)
	switch {
	case k.timer == nil:
		k.timer = time.AfterFunc(d, func() { w.onTimer(k) })
	case k.due.IsZero() || due.Before(k.due):
		k.timer.Reset(d)
	default:
		return
	}
	k.due = due
}

// onTimer drains an entry that was unused for too long, or for which a request of this process has waited too long.
func (w *writer) onTimer(k *kept) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k.due = time.Time{}
	switch {
	case w.kept != k || !k.open:
	case len(w.backlog) > 0:
		if left := w.core.cfg.KeepWait - time.Since(w.backlog[0].submitted); left > 0 {
			w.armTimer(k, left)
		} else {
			w.drain(false)
		}
	case !k.used:
		if left := k.linger - time.Since(time.Unix(0, k.idle.Load())); left > 0 {
			w.armTimer(k, left)
		} else {
			w.drain(false)
		}
	}
}

// limitUnused drains the entry of the engine that is unused for longest, if there are too many. Called with mu held.
func (w *writer) limitUnused() {
	s := w.keptSet
	if s.idle.Load() <= int64(w.core.cfg.MaxKept) {
		return
	}
	w.mu.afterUnlock(func() {
		var oldest *kept
		var since int64
		s.mu.Lock()
		for k := range s.all {
			if at := k.idle.Load(); at > 0 && (oldest == nil || at < since) {
				oldest, since = k, at
			}
		}
		s.mu.Unlock()
		if oldest == nil {
			return
		}
		oldest.w.mu.Lock()
		defer oldest.w.mu.Unlock()
		if oldest.w.kept == oldest && !oldest.used && oldest.idle.Load() == since {
			oldest.w.drain(false)
		}
	})
}
