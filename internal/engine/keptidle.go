package engine

import "time"

// arm has tick called in d at the latest. Called with mu held.
func (w *writer) arm(k *kept, d time.Duration) {
	due := time.Now().Add(d)
	switch {
	case k.timer == nil:
		k.timer = time.AfterFunc(d, func() { w.tick(k) })
	case k.due.IsZero() || due.Before(k.due):
		k.timer.Reset(d)
	default:
		return
	}
	k.due = due
}

// tick lets go of an entry that nobody has used for long, or that somebody here has waited for too long.
func (w *writer) tick(k *kept) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k.due = time.Time{}
	switch {
	case w.kept != k || !k.open:
	case len(w.backlog) > 0:
		if left := w.core.cfg.KeepWait - time.Since(w.backlog[0].asked); left > 0 {
			w.arm(k, left)
		} else {
			w.letGo(false)
		}
	case !k.used:
		if left := k.linger - time.Since(time.Unix(0, k.idle.Load())); left > 0 {
			w.arm(k, left)
		} else {
			w.letGo(false)
		}
	}
}

// bound lets go of the entry of the engine that is unused for longest, if there are too many. Called with mu held.
func (w *writer) bound() {
	s := w.keeps
	if s.idle.Load() <= int64(w.core.cfg.MaxKept) {
		return
	}
	w.mu.then(func() {
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
			oldest.w.letGo(false)
		}
	})
}
