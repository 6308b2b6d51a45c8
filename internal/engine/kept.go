package engine

import (
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

var keptMeta = map[string]string{record.IntentKey: record.KeptIntent}

// confirmedFor is how long what is known of a record is good enough to pass an entry on.
const confirmedFor = time.Second

// Join has the caller take a kept entry over, if there is one under this lease that nobody uses and that may be
// passed on now. n counts its uses.
func (e *Engine) Join(key, lease string) (entry *record.Entry, rev, n uint64, ok bool) {
	w := e.find(key)
	if w == nil {
		return entry, 0, 0, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.kept
	if k == nil || k.used || len(w.backlog) > 0 || k.lease != lease {
		return entry, 0, 0, false
	}
	if may, _ := w.mayPass(k); !may || !k.keeper.Valid() {
		return entry, 0, 0, false
	}
	k.use()
	return k.entry, w.rev, k.uses, true
}

// Leave ends the use of an entry, and reports whether it stays: kept for linger, or with another one of this
// process. If not the caller releases it.
func (e *Engine) Leave(key, id string, hold, linger time.Duration) bool {
	w := e.find(key)
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.kept
	if k == nil || k.entry.ID != id || !k.used || !k.marked || linger <= 0 && len(w.backlog) == 0 {
		return false
	}
	may, sure := w.mayPass(k)
	if sure {
		return false
	}
	k.used, k.hold, k.linger = false, hold, linger
	k.idle.Store(time.Now().UnixNano())
	w.keeps.idle.Add(1)
	if !may || len(w.backlog) > 0 {
		w.keepUp()
	}
	if !may && w.kept == k {
		w.check(k)
	}
	if w.kept == k && !k.used {
		w.arm(k, linger)
		w.bound()
	}
	return true
}

// Kept reports whether an entry is one that this process uses and may keep.
func (e *Engine) Kept(key, id string) bool {
	w := e.find(key)
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kept != nil && w.kept.used && w.kept.entry.ID == id
}

// LetGo ends the keeping of all entries under a lease. Those that nobody uses are released, unless they are
// void: then their lease has ended.
func (e *Engine) LetGo(lease string, void bool) {
	for _, k := range e.keeps.under(lease) {
		k.w.mu.Lock()
		switch {
		case k.w.kept != k:
		case void:
			k.w.forget(k)
			k.w.start()
		default:
			k.w.letGo(false)
		}
		k.w.mu.Unlock()
	}
}

// mayPass reports whether the entry may be passed on at this instant, if its lease is valid. If not, sure says that no
// read would change that. Called with mu held.
func (w *writer) mayPass(k *kept) (may, sure bool) {
	switch {
	case !k.open || !k.keeper.Keeps():
		return false, true
	case !w.trusted():
		return false, false
	}
	if !w.rec.Passable(k.entry.ID, k.entry.Token) {
		return false, true
	}
	return time.Since(w.confirmed) < confirmedFor, false
}

// holdsKept is what the record has of the entry, among those who hold. Called with mu held.
func (w *writer) holdsKept(k *kept) (record.Entry, bool) {
	if w.rec == nil {
		return record.Entry{}, false
	}
	return w.rec.Holder(k.entry.ID)
}

// inOne reports whether those who would keep the key wait here while one of them stands in the record, since
// nobody else does. Called with mu held.
func (w *writer) inOne() bool { return w.keeping.on && !w.foreign() }

// keepsBack reports whether all who come wait here, behind who uses a kept entry or whom it was given up for. Called with mu held.
func (w *writer) keepsBack() bool { return w.kept != nil && w.kept.open || w.parting.yielding }

// meets takes a request in as far as keeping is concerned, and reports whether it waits here for a kept entry.
// Called with mu held.
func (w *writer) meets(r *Request) (waits bool) {
	k := w.kept
	if r.Keeper == nil {
		if r.Op.Verb == record.OpAcquire || r.Op.Verb == record.OpTry {
			w.letGo(false)
		}
		if r.queues() {
			w.keeping.on = false
		}
		return false
	}
	r.asked = time.Now()
	if len(w.backlog) > 0 && w.keeping.lease != r.Op.Lease {
		w.keeping.on = false
	} else if len(w.backlog) == 0 {
		w.keeping.on, w.keeping.lease = true, r.Op.Lease
	}
	switch {
	case k == nil || !k.open:
		return false
	case k.lease != r.Op.Lease:
		w.letGo(false)
		return false
	case r.Op.Verb == record.OpTry && (k.used || len(w.backlog) > 0), len(w.backlog) >= maxBacklog:
		return false // the record refuses it
	}
	w.delay(r)
	if w.keepUp(); !r.over && k.open {
		w.arm(k, w.core.cfg.KeepWait)
	}
	return true
}

// concerns takes note of an operation on the kept entry itself. Called with mu held.
func (w *writer) concerns(r *Request) {
	switch k := w.kept; {
	case k == nil:
	case r.Op.ID == k.entry.ID && r.Op.Verb == record.OpRelease:
		w.forget(k)
	case r.Op.ID == k.entry.ID, r.Op.Holder == k.entry.ID:
		w.letGo(false) // it is released by who asked for that
	}
}

func (k *kept) use() {
	k.used = true
	k.uses++
	k.idle.Store(0)
	k.w.keeps.idle.Add(-1)
}

// keepUp looks what is to become of a kept entry: it goes to the first who waits for it here, if it may be
// passed on, and drains if others want it. Called with mu held.
func (w *writer) keepUp() {
	k := w.kept
	if k == nil {
		return
	}
	if err := w.taken(k); err != nil {
		w.forget(k)
		w.tellEnd(k, err)
		w.start()
		return
	}
	may, sure := w.mayPass(k)
	switch {
	case sure:
		w.letGo(false)
	case k.used || len(w.backlog) == 0:
	case !may:
		w.check(k)
	case !k.keeper.Valid():
		w.letGo(false)
	default:
		r := w.backlog[0]
		w.backlog[0] = nil
		w.backlog = w.backlog[1:]
		k.use()
		w.end(r, Outcome{Entry: k.entry, Revision: w.rev, Record: w.rec, Existed: true, Kept: true, Uses: k.uses}, nil)
		if len(w.backlog) > 0 {
			w.arm(k, w.core.cfg.KeepWait)
		}
	}
}

// taken returns why the entry does not count any more, as far as the record says. Called with mu held.
func (w *writer) taken(k *kept) error {
	if !w.trusted() {
		return nil
	}
	switch e, ok := w.holdsKept(k); {
	case !ok || k.open && e.Token != k.entry.Token:
		return ErrRemoved
	case e.Revoked:
		return ErrRevoked
	}
	return nil
}

// check reads the record for all who ask whether the entry may be passed on. Called with mu held.
func (w *writer) check(k *kept) {
	if k.checking {
		return
	}
	k.checking = w.core.goIfOpen(func() {
		sent := time.Now()
		entry, err := w.core.read(w.core.ctx, w.key, &w.silent, true)
		w.mu.Lock()
		defer w.mu.Unlock()
		k.checking = false
		if w.kept != k {
			return
		}
		if err == nil {
			err = w.absorb(entry)
		}
		switch {
		case w.kept != k:
		case err != nil || !w.trusted():
			w.letGo(false)
		default:
			w.confirmed = sent
			w.keepUp()
		}
	})
}
