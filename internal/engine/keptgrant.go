package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// markKept sets the metadata "may be kept" in the requests of a batch whose entries will be kept. Called with mu held.
func (w *writer) markKept(batch []*Request) {
	for _, r := range batch {
		if r.Keeper == nil {
			continue
		}
		r.Op.Meta = nil
		if w.keeping.on && w.keeping.ours.at(w.rev) && w.keeping.quietGrants+1 >= w.keeping.quietNeeded {
			r.Op.Meta = keptMeta
		}
	}
}

// noteWritten updates the keeping after an acknowledged write. Called with mu held.
func (w *writer) noteWritten(base, rev uint64) {
	w.confirmed = time.Now()
	if w.keeping.lease != "" {
		w.keeping.basedOnOurs = w.keeping.ours.at(base)
		w.keeping.ours = mark{!w.hasOthers(), rev}
	}
}

// onGranted updates the keeping after a grant, and keeps the entry if it may be kept. Called with mu held.
func (w *writer) onGranted(r *Request, out *Outcome) {
	if r.Keeper == nil || out.Entry == nil || out.Entry.Mode != record.X {
		return
	}
	w.updateKept() // the entry that was kept before may be gone
	if out.Record.HasQueue() || !w.keeping.basedOnOurs {
		w.keeping.quietGrants = 0
	} else {
		w.keeping.quietGrants++
	}
	if w.kept != nil || !w.keeping.on || out.Entry.Revoked || out.Record.HasQueue() || out.Revision != w.rev {
		return
	}
	k := &kept{w: w, entry: out.Entry, lease: r.Op.Lease, keeper: r.Keeper, marked: record.MayBeKept(out.Entry.Meta), open: true, used: true, uses: 1}
	w.kept, w.followed, out.Kept, out.Uses = k, k.marked, k.marked, 1
	s := w.keptSet
	s.mu.Lock()
	if s.all == nil {
		s.all = map[*kept]struct{}{}
	}
	s.all[k] = struct{}{}
	s.mu.Unlock()
	if len(w.backlog) > 0 {
		w.armTimer(k, w.core.cfg.KeepWait)
	}
}
