package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// foreseeKept has the entries of a batch say that they may be kept, if they are going to be. Called with mu held.
func (w *writer) foreseeKept(batch []*Request) {
	for _, r := range batch {
		if r.Keeper == nil {
			continue
		}
		r.Op.Meta = nil
		if w.keeping.on && w.keeping.ours.at(w.rev) && w.keeping.row+1 >= w.keeping.need {
			r.Op.Meta = keptMeta
		}
	}
}

// wrote takes note of a write that was acknowledged. Called with mu held.
func (w *writer) wrote(base, rev uint64) {
	w.confirmed = time.Now()
	if w.keeping.lease != "" {
		w.keeping.again = w.keeping.ours.at(base)
		w.keeping.ours = mark{!w.foreign(), rev}
	}
}

// granted takes note of the grant of a request. Called with mu held.
func (w *writer) granted(r *Request, out *Outcome) {
	if r.Keeper == nil || out.Entry == nil || out.Entry.Mode != record.X {
		return
	}
	w.keepUp() // one from before may be gone
	if out.Record.Awaited() || !w.keeping.again {
		w.keeping.row = 0
	} else {
		w.keeping.row++
	}
	if w.kept != nil || !w.keeping.on || out.Entry.Revoked || out.Record.Awaited() || out.Revision != w.rev {
		return
	}
	k := &kept{w: w, entry: out.Entry, lease: r.Op.Lease, keeper: r.Keeper, marked: record.MayBeKept(out.Entry.Meta), open: true, used: true, uses: 1}
	w.kept, w.followed, out.Kept, out.Uses = k, k.marked, k.marked, 1
	s := w.keeps
	s.mu.Lock()
	if s.all == nil {
		s.all = map[*kept]struct{}{}
	}
	s.all[k] = struct{}{}
	s.mu.Unlock()
	if len(w.backlog) > 0 {
		w.arm(k, w.core.cfg.KeepWait)
	}
}
