package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
)

// adjustWatch opens the watch when somebody waits or watches a hold. It is
// closed by sweep, later. Called with mu held.
func (v *view) adjustWatch() {
	if len(v.waiting)+len(v.holds) == 0 {
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
	if d := v.nextLook(); d > 0 && v.stopHurry == nil {
		if v.armLook(d); len(v.holds) == 0 {
			return
		}
	} else if len(v.waiting) > 0 && v.stopHurry == nil {
		v.stopHurry = v.core.cfg.Watcher.Watch(v.key, func(jskv.Entry) {}) // notify is called by the other
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
	if len(v.waiting)+len(v.holds) == 0 && time.Since(v.lastUse) >= linger {
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
