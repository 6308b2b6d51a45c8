package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/record"
)

// errStale says that a read returned an older revision than this process has seen.
var errStale = fmt.Errorf("%w: read is older than what was seen", ErrUnavailable)

// linger is how long a watch stays open after its last use.
const linger = 2 * time.Second

// watchedHold is a granted entry; lost is called when it disappears.
type watchedHold struct {
	turn uint64 // its ticket, if it holds by a turn, else 0
	lost func(error)
}

// user is the part on top of a view: the writer. It is called with the view's mutex held.
type user interface {
	watched
	enqueue(r *Request) // adds an operation of the view's own: an eviction, or an undo
	run()               // the runner
	stateChanged()      // the known state has changed; the user adapts what it watches
	onGranted(r *Request, out *Outcome)
}

// proofs are the checks of one key's revision. One runs at a time, because on replicas checks exclude
// each other and the key's writers. Callers that come meanwhile share the next one.
type proofs struct {
	next     *check // the one to send next, nil if nobody asks for one
	running  bool
	proven   uint64        // revision that the last check has confirmed
	refuted  uint64        // revision that a check has found outdated
	failures int           // checks in a row without an answer
	busy     int           // how often other processes were in the way lately, weighted
	busyAt   time.Time     // the last time
	took     time.Duration // how long the last answered check took
}

// check is one request for calls of Prove.
type check struct {
	rev      uint64 // the highest revision that they name, or that is known
	failFast bool
	done     chan struct{} // closed when the following are set
	ok       bool          // the record is at rev
	err      error         // nothing is known
}

// view is the newest committed state of one key that this process knows, with the operations of this process
// that wait in the record and its watched holds.
type view struct {
	core *core
	key  string
	user user

	mu monitor // guards everything below, and the fields of the view's user
	// The booleans are together to save memory: there are many views.
	closed     bool
	rechecking bool // a second read of an absent key is under way
	poking     bool // a timer for the next poke is set
	followed   bool // this process keeps an entry of the key
	listed     bool // the view is in the core's watched
	stalled    bool // two looks found the same holder
	looked     bool // there was a look
	looking    bool // a look is under way
	lookAgain  bool // another look has to follow

	committed
	// expected is the value of a write that is under way. The watch ignores it, since the acknowledgement, or
	// the read after a lost acknowledgement, tells more.
	expected []byte

	timeouts timeouts

	size        int                     // about the stored size of rec
	queue       int                     // number of operations of all processes that wait in rec, at the last settle
	waiting     map[string]*Request     // operations that wait in the committed record, by id
	queuers     int                     // how many of these the window counts
	holds       map[string]*watchedHold // watched holds, by id
	leasesAhead leasesAhead             // of the operations in waiting
	stopWatch   func()                  // of Watcher.Follow, which calls notify
	stopUrgent  func()                  // of Watcher.Watch, open while operations wait
	lastUse     time.Time
	proofs      *proofs // nil until one is asked for

	poked     string    // id of the kept entry ahead whose process was poked
	pokes     int       // number of pokes to it
	confirmed time.Time // when the known state was the newest for certain

	lastHolder string        // the holder at the last look, or at the beginning of the wait
	ttl        time.Duration // of the operation that began to wait last
	firstPlace int           // place of the first of waiting in the queue, at the last settle
	hintRev    uint64        // newest revision that a hint named
	lookTimer  *time.Timer   // starts the next look
}

// learn stores a committed state unless a newer one is known.
func (v *view) learn(rec *record.Record, rev uint64) bool {
	if !v.committed.learn(rec, rev) {
		return false
	}
	v.core.noteRevision(rev)
	return true
}

// learnAbsent stores that the key has no entry.
func (v *view) learnAbsent() {
	if v.committed.learnAbsent() {
		v.core.cfg.Suspect()
	}
}

// read asks the leader, learns the answer and returns the state that is known then.
func (v *view) read(ctx context.Context) (*record.Record, uint64, error) {
	entry, err := v.core.read(ctx, v.key, &v.timeouts, false)
	if err != nil {
		return nil, 0, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	err = v.absorb(entry)
	return v.rec, v.rev, err
}

// absorb decodes and learns a committed entry, and settles the requests.
func (v *view) absorb(entry jskv.Entry) error {
	if entry.Revision == 0 {
		v.learnAbsent()
		return nil
	}
	if entry.Revision == v.rev && v.known {
		v.confirmed = time.Now()
		return nil
	}
	if entry.Revision < v.newestRev {
		v.core.cfg.Suspect()
		return errStale
	}
	var rec *record.Record
	if !entry.Deleted {
		var err error
		if rec, err = record.Decode(entry.Value); err != nil {
			v.known = false
			return err
		}
		rec.Resolve(entry.Revision)
	}
	v.size, v.confirmed = len(entry.Value), time.Now()
	before := v.rev
	if v.learn(rec, entry.Revision) {
		if entry.Revision != before {
			v.since = entry.Revision
		}
		v.settle()
	}
	return nil
}

// notify is the callback of the watch.
func (v *view) notify(entry jskv.Entry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || v.stopWatch == nil {
		return
	}
	if entry.Revision == 0 {
		v.recheckAbsent()
		return
	}
	if len(v.expected) > 0 && bytes.Equal(entry.Value, v.expected) {
		return
	}
	v.absorbIfNewer(entry)
}

// absorbIfNewer absorbs an entry that came unasked.
func (v *view) absorbIfNewer(entry jskv.Entry) {
	if entry.Revision < v.newestRev {
		return // it is older than our own reads and writes
	}
	if err := v.absorb(entry); err != nil && !errors.Is(err, errStale) {
		for _, r := range v.waiting {
			v.undo(r, err) // somebody may restore a readable record that contains the entry
			v.mu.answer(r, Outcome{}, err)
		}
	}
}

// recheckAbsent reads a key a second time that looked absent while an operation waits or holds there: one read may
// have come from a deposed leader.
func (v *view) recheckAbsent() {
	if v.rechecking || !v.wanted() {
		return
	}
	v.rechecking = v.core.goIfOpen(func() {
		v.core.sleep(v.core.ctx, 150*time.Millisecond) // a new leader has caught up by then, on any link
		// If it fails, the watch's next poll begins again.
		actx, cancel := context.WithTimeout(v.core.ctx, v.core.cfg.RTT.Patience())
		defer cancel()
		entry, err := v.core.cfg.Store.Get(actx, v.key)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.rechecking = false
		if err != nil || v.closed {
			return
		}
		if entry.Revision != 0 {
			_ = v.absorb(entry)
			return
		}
		v.learnAbsent()
		v.settle()
	})
}

// settle applies the newest committed record to the waiting operations and the watched holds.
func (v *view) settle() {
	v.settleWaiting()
	for id, h := range v.holds {
		var err error
		switch revoked, ok := v.rec.Held(id, h.turn); {
		case !ok:
			err = ErrRemoved
		case revoked:
			err = ErrRevoked
		default:
			continue
		}
		delete(v.holds, id)
		v.core.goIfOpen(func() { h.lost(err) }) // it may call back into the engine
	}
	v.user.stateChanged()
}

// settleWaiting ends the operations that wait no more. It visits each entry of the record and
// each operation once, since there can be many of both.
func (v *view) settleWaiting() {
	waiting := 0
	v.queue, v.firstPlace = 0, 0
	for id, st := range v.rec.States() {
		if st.Standing == record.Waiting {
			v.queue++
		}
		switch r := v.waiting[id]; {
		case r == nil:
			if v.core.cfg.Orphan != nil && strings.HasPrefix(id, v.core.cfg.Mine) && v.holds[id] == nil && st.Entry != nil && st.Entry.ID == id {
				v.core.cfg.Orphan(v.key, st.Entry)
			}
		case st.Standing == record.Waiting:
			if waiting++; waiting == 1 {
				v.firstPlace = v.queue
			}
		default:
			v.applyState(r, st, v.rec, v.rev)
		}
	}
	if waiting == len(v.waiting) {
		return
	}
	for _, r := range v.waiting {
		if st := v.rec.Standing(&r.Op); st.Standing != record.Waiting {
			v.applyState(r, st, v.rec, v.rev)
		}
	}
}

// applyState makes r wait or ends it, as the record at rev says.
func (v *view) applyState(r *Request, st record.State, rec *record.Record, rev uint64) {
	if st.Standing == record.Waiting {
		if v.waiting == nil {
			v.waiting = map[string]*Request{}
		}
		if v.waiting[r.Op.ID] != r {
			v.core.cfg.Contended(v.key)
			if r.queues() {
				v.queuers++
			}
		}
		v.waiting[r.Op.ID] = r
		if r.inLedger {
			v.core.ledger.remove(r) // its place in the record is known
		}
		if len(v.waiting) == 1 {
			v.lastHolder, v.stalled, v.looked = rec.OldestHolder(), false, false
		}
		if r.Op.TTL > 0 { // a conversion has none
			v.ttl = r.Op.TTL
		}
		if r.Queued != nil && !r.queuedDue {
			v.mu.tell(r, rec.Place(&r.Op))
		}
		return
	}
	v.lastHolder, v.stalled, v.looked = rec.OldestHolder(), false, false
	out, err := outcome(st, rec, rev)
	if err == nil {
		v.user.onGranted(r, &out)
	}
	v.end(r, out, err)
	// The entry of a refused operation may still be in the record. It blocks nobody; remove it.
	if undo, ok := r.Op.Undo(); ok && st.Standing == record.Refused && rec.Has(r.Op.ID) {
		v.submitOwed(&Request{Key: r.Key, Op: undo, Guest: r.Guest})
	}
}

// end gives r its outcome.
func (v *view) end(r *Request, out Outcome, err error) {
	if r.finished {
		return
	}
	v.retire(r)
	if err != nil {
		v.leasesAhead.observeAgain(r.Op.Leases)
	}
	if r.inLedger {
		v.core.ledger.remove(r)
	}
	if r.undoes != nil {
		out, err := r.undoes.withdrawn(r.cause, out, err)
		v.mu.answer(r.undoes, out, err)
	}
	v.mu.answer(r, out, err)
}

// retire marks r as finished, so that nothing more is done for it.
func (v *view) retire(r *Request) {
	r.finished = true
	r.unblockNext()
	if v.waiting[r.Op.ID] == r {
		delete(v.waiting, r.Op.ID)
		if r.queues() {
			v.queuers--
		}
	}
}

// undo replaces r, which may have been written, by an operation that takes it back. That operation stays in the ledger
// until a committed write proves that it is done. A guest is only retired.
func (v *view) undo(r *Request, cause error) *Request {
	v.retire(r)
	if r.Guest != nil {
		return nil
	}
	op, ok := r.Op.Undo()
	if !ok {
		op = r.Op
	}
	u := &Request{Key: r.Key, Op: op, progress: progress{outcomeUnknown: r.outcomeUnknown}}
	v.submitOwed(u)
	return u
}

// submitOwed submits a request that no caller waits for, through the ledger.
func (v *view) submitOwed(r *Request) {
	if v.closed {
		r.finished = true
		return
	}
	v.core.ledger.add(r)
	v.user.enqueue(r)
}

// wanted reports whether the process has to learn of changes.
func (v *view) wanted() bool { return len(v.waiting)+len(v.holds) > 0 || v.followed }

// idle reports whether nothing uses the view.
func (v *view) idle() bool {
	return !v.wanted() && v.stopWatch == nil && !v.rechecking && !v.looking && (v.proofs == nil || !v.proofs.running)
}

// close ends every waiting operation with ErrClosed.
func (v *view) close() {
	v.closed = true
	for _, r := range v.waiting {
		v.end(r, Outcome{}, ErrClosed)
	}
	clear(v.holds)
}
