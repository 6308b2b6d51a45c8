package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

var keptMeta = map[string]string{record.IntentKey: record.KeptIntent}

// confirmedFor is how long after a confirmation the known state is good enough to pass an entry on.
const confirmedFor = time.Second

// Join lets the caller take over a kept entry, if this lease has an unused one that may be
// passed on now. n is the number of its uses.
func (e *Engine) Join(key, lease string) (entry *record.Entry, rev, n uint64, ok bool) {
	w := e.lockKnown(key)
	if w == nil {
		return entry, 0, 0, false
	}
	defer w.mu.Unlock()
	k := w.kept
	if k == nil || k.used || len(w.backlog) > 0 || k.lease != lease {
		return entry, 0, 0, false
	}
	if ok, _ := w.canPass(k); !ok || !k.keeper.Valid() {
		return entry, 0, 0, false
	}
	k.use()
	return k.entry, w.rev, k.uses, true
}

// Leave ends the use of an entry. It reports whether the entry stays: kept for linger, or passed on to another request of
// this process. If not, the caller releases it.
func (e *Engine) Leave(key, id string, hold, linger time.Duration) bool {
	w := e.lockKnown(key)
	if w == nil {
		return false
	}
	defer w.mu.Unlock()
	k := w.kept
	if k == nil || k.entry.ID != id || !k.used || !k.marked || linger <= 0 && len(w.backlog) == 0 {
		return false
	}
	ok, final := w.canPass(k)
	if final {
		return false
	}
	k.used, k.hold, k.linger = false, hold, linger
	k.idle.Store(time.Now().UnixNano())
	w.keptSet.idle.Add(1)
	if !ok || len(w.backlog) > 0 {
		w.updateKept()
	}
	if !ok && w.kept == k {
		w.confirmKept(k)
	}
	if w.kept == k && !k.used {
		w.armTimer(k, linger)
		w.limitUnused()
	}
	return true
}

// Kept reports whether this process uses the entry and may keep it.
func (e *Engine) Kept(key, id string) bool {
	w := e.lockKnown(key)
	if w == nil {
		return false
	}
	defer w.mu.Unlock()
	return w.kept != nil && w.kept.used && w.kept.entry.ID == id
}

// EndKeeping stops keeping all entries under a lease. It releases the unused ones, unless ended says that
// the lease has ended.
func (e *Engine) EndKeeping(lease string, ended bool) {
	for _, k := range e.keptSet.under(lease) {
		k.w.mu.Lock()
		switch {
		case k.w.kept != k:
		case ended:
			k.w.removeKept(k)
			k.w.start()
		default:
			k.w.drain(false)
		}
		k.w.mu.Unlock()
	}
}

// canPass reports whether the entry may be passed on now, if its lease is valid. If not, final says that no
// read can change that.
func (w *writer) canPass(k *kept) (ok, final bool) {
	switch {
	case !k.open || !k.keeper.Keeps():
		return false, true
	case !w.trusted():
		return false, false
	}
	if !w.rec.CanPassOn(k.entry.ID, k.entry.Token) {
		return false, true
	}
	return time.Since(w.confirmed) < confirmedFor, false
}

// keptHolder returns the holder in the record that is the kept entry.
func (w *writer) keptHolder(k *kept) (record.Entry, bool) {
	if w.rec == nil {
		return record.Entry{}, false
	}
	return w.rec.Holder(k.entry.ID)
}

// oneAtATime reports whether requests that would keep the key wait in the process while one of them is in the record.
// It is so if no other process is there.
func (w *writer) oneAtATime() bool { return w.keeping.on && !w.hasOthers() }

// holdsAllBack reports whether all new acquires wait in the process: for the open kept entry, or because a try of
// another process comes first.
func (w *writer) holdsAllBack() bool { return w.kept != nil && w.kept.open || w.delayAcquires }

// waitForKept updates the keeping for a new request, and reports whether the request waits in the process for a kept
// entry.
func (w *writer) waitForKept(r *Request) (waits bool) {
	k := w.kept
	if r.Keeper == nil {
		if r.Op.Verb == record.OpAcquire || r.Op.Verb == record.OpTry {
			w.drain(false)
		}
		if r.queues() {
			w.keeping.on = false
		}
		return false
	}
	r.submitted = time.Now()
	if len(w.backlog) > 0 && w.keeping.lease != r.Op.Lease {
		w.keeping.on = false
	} else if len(w.backlog) == 0 {
		w.keeping.on, w.keeping.lease = true, r.Op.Lease
	}
	switch {
	case k == nil || !k.open:
		return false
	case k.lease != r.Op.Lease:
		w.drain(false)
		return false
	case r.Op.Verb == record.OpTry && (k.used || len(w.backlog) > 0), len(w.backlog) >= maxBacklog:
		return false // the record refuses it
	}
	w.backlog = append(w.backlog, r)
	if w.updateKept(); !r.finished && k.open {
		w.armTimer(k, w.core.cfg.KeepWait)
	}
	return true
}

// noteKeptOp ends the keeping if r is an operation on the kept entry itself.
func (w *writer) noteKeptOp(r *Request) {
	switch k := w.kept; {
	case k == nil:
	case r.Op.ID == k.entry.ID && r.Op.Verb == record.OpRelease:
		w.removeKept(k)
	case r.Op.ID == k.entry.ID, r.Op.Holder == k.entry.ID:
		w.drain(false) // the sender of r releases it
	}
}

func (k *kept) use() {
	k.used = true
	k.uses++
	k.idle.Store(0)
	k.w.keptSet.idle.Add(-1)
}

// updateKept decides what to do with the kept entry: pass it on to the first request that waits in the process, drain it
// if others want it, or forget it if it was lost.
func (w *writer) updateKept() {
	k := w.kept
	if k == nil {
		return
	}
	if err := w.lostReason(k); err != nil {
		w.removeKept(k)
		w.reportEnded(k, err)
		w.start()
		return
	}
	ok, final := w.canPass(k)
	switch {
	case final:
		w.drain(false)
	case k.used || len(w.backlog) == 0:
	case !ok:
		w.confirmKept(k)
	case !k.keeper.Valid():
		w.drain(false)
	default:
		r := w.backlog[0]
		w.backlog[0] = nil
		w.backlog = w.backlog[1:]
		k.use()
		w.end(r, Outcome{Entry: k.entry, Revision: w.rev, Record: w.rec, Existed: true, Kept: true, Uses: k.uses}, nil)
		if len(w.backlog) > 0 {
			w.armTimer(k, w.core.cfg.KeepWait)
		}
	}
}

// lostReason returns why the entry is lost, by the known record; nil if it is not.
func (w *writer) lostReason(k *kept) error {
	if !w.trusted() {
		return nil
	}
	switch e, ok := w.keptHolder(k); {
	case !ok || k.open && e.Token != k.entry.Token:
		return ErrRemoved
	case e.Revoked:
		return ErrRevoked
	}
	return nil
}

// confirmKept reads the record, and then updates the kept entry.
func (w *writer) confirmKept(k *kept) {
	if k.confirming {
		return
	}
	k.confirming = w.core.goIfOpen(func() {
		sent := time.Now()
		entry, err := w.core.read(w.core.ctx, w.key, &w.timeouts, true)
		w.mu.Lock()
		defer w.mu.Unlock()
		k.confirming = false
		if w.kept != k {
			return
		}
		if err == nil {
			err = w.absorb(entry)
		}
		switch {
		case w.kept != k:
		case err != nil || !w.trusted():
			w.drain(false)
		default:
			w.confirmed = sent
			w.updateKept()
		}
	})
}

// markKept sets the metadata "may be kept" in the requests of a batch whose entries will be kept.
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

// noteWritten updates the keeping after an acknowledged write.
func (w *writer) noteWritten(base, rev uint64) {
	w.confirmed = time.Now()
	if w.keeping.lease != "" {
		w.keeping.basedOnOurs = w.keeping.ours.at(base)
		w.keeping.ours = mark{!w.hasOthers(), rev}
	}
}

// onGranted updates the keeping after a grant, and keeps the entry if it may be kept.
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
