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

// errStale says that a read showed less than this process has seen already.
var errStale = fmt.Errorf("%w: read is older than what was seen", ErrUnavailable)

// linger is how long a watch is kept after its last user left.
const linger = 2 * time.Second

// watchedHold is a granted entry whose disappearance somebody wants to know.
type watchedHold struct {
	turn uint64 // its ticket, if it holds by a turn
	lost func(error)
}

// user is who stands on top of a view. It is called with the view's mutex held.
type user interface {
	watched
	enqueue(r *Request) // an operation of the view's own: an eviction, or what takes a request back
	run()               // takes over what is to be done
	settled()           // the state has changed; whoever has to watch it does from now on
	granted(r *Request, out *Outcome)
}

// proofs are the checks of one key's revision. One is under way at a time, since on replicas they exclude
// each other and the key's writers; who asks meanwhile shares the next one.
type proofs struct {
	waiting []*proof
	running bool
	proven  uint64 // revision that the last check confirmed
	refuted uint64 // revision that a check found not to be the newest
	met     int    // how much others were met lately
	metAt   time.Time
	took    time.Duration // by the last check that was answered
}

// proof is what somebody asks for with Prove.
type proof struct {
	rev      uint64
	patience int // how often the server may put it off; 0 = no limit
	failFast bool

	over bool
	ok   bool
	err  error
	done chan struct{} // closed when it is over
}

// view is the newest committed state of one key that this process knows of, and who wants to
// hear of it: operations that stand in the record, and holds.
type view struct {
	core *core
	key  string
	user user

	mu monitor // of everything below, and of whatever is built on top of the view
	flags

	committed
	// expected is the value of a write that is under way: its acknowledgement, or the read
	// after that was lost, tells more than the watch.
	expected []byte

	silent silence

	size      int                     // of rec as it is stored, about
	queue     int                     // operations of all processes that wait in rec, as of the last settle
	waiting   map[string]*Request     // operations that wait in the committed record, by id
	queuers   int                     // of these, those that came through the window
	holds     map[string]*watchedHold // watched holds, by id
	obstacles obstacles               // leases ahead of waiting
	stopWatch func()
	stopHurry func() // of the watch for those who wait
	lastUse   time.Time
	proofs    *proofs // nil until one is asked for

	poked     string    // the kept entry ahead, whose process was told
	pokes     int       // so often it was
	confirmed time.Time // when what is known was the newest for sure

	turn      string        // who held at the last look, or when this process began to wait
	ttl       time.Duration // of the last that came to wait
	first     int           // place of its first in the queue, as of the last settle
	hint      uint64        // newest revision that a hint named
	lookTimer *time.Timer   // of the next one
}

// flags of a view stand together since there are many views.
type flags struct {
	closed    bool
	absence   bool // a second look at an absent key is under way
	poking    bool // the process of the kept entry ahead is told again later
	followed  bool // an entry of this process is kept
	listed    bool // among the core's watched
	stalled   bool // two looks showed the same
	looked    bool // there was a look
	looking   bool // a look is under way
	lookAgain bool // another one is to follow
}

// learn takes over a committed state if it is not older than what is known. Called with mu held.
func (v *view) learn(rec *record.Record, rev uint64) bool {
	if !v.committed.learn(rec, rev) {
		return false
	}
	v.core.saw(rev)
	return true
}

// learnAbsent takes over that there is no entry at all. Called with mu held.
func (v *view) learnAbsent() {
	if v.committed.learnAbsent() {
		v.core.cfg.Suspect()
	}
}

// read asks the leader, learns the answer and returns what is known then.
func (v *view) read(ctx context.Context) (*record.Record, uint64, error) {
	entry, err := v.core.read(ctx, v.key, &v.silent, false)
	if err != nil {
		return nil, 0, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	err = v.absorb(entry)
	return v.rec, v.rev, err
}

// absorb learns a committed entry and tells whom it concerns. Called with mu held.
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

// notify is the watch's callback.
func (v *view) notify(entry jskv.Entry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || v.stopWatch == nil {
		return
	}
	if entry.Revision == 0 {
		v.noticeAbsence()
		return
	}
	if len(v.expected) > 0 && bytes.Equal(entry.Value, v.expected) {
		return
	}
	v.see(entry)
}

// see takes an entry in that nobody asked for. Called with mu held.
func (v *view) see(entry jskv.Entry) {
	if entry.Revision < v.newestRev {
		return // it is behind our own reads and writes
	}
	if err := v.absorb(entry); err != nil && !errors.Is(err, errStale) {
		for _, r := range v.waiting {
			v.undo(r, err) // somebody may restore the record with the entry in it
			v.mu.answer(r, Outcome{}, err)
		}
	}
}

// noticeAbsence looks a second time at a key that was seen absent while somebody holds or waits on it: one read may
// be that of a deposed leader. Called with mu held.
func (v *view) noticeAbsence() {
	if v.absence || !v.wanted() {
		return
	}
	v.absence = v.core.goIfOpen(func() {
		v.core.sleep(v.core.ctx, 150*time.Millisecond) // what a new leader is behind, whatever the link
		// Not repeated before the watch's next poll.
		actx, cancel := context.WithTimeout(v.core.ctx, v.core.cfg.RTT.Patience())
		defer cancel()
		entry, err := v.core.cfg.Store.Get(actx, v.key)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.absence = false
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

// settle reads the outcomes of waiting operations and watched holds off the newest
// committed record. Called with mu held.
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
	v.user.settled()
}

// settleWaiting ends the operations that don't wait any more. It looks at
// each entry once, since there can be many of both. Called with mu held.
func (v *view) settleWaiting() {
	waiting := 0
	v.queue, v.first = 0, 0
	for id, st := range v.rec.States() {
		if st.Standing == record.Waiting {
			v.queue++
		}
		switch r := v.waiting[id]; {
		case r == nil:
			if v.core.cfg.Stray != nil && strings.HasPrefix(id, v.core.cfg.Mine) && v.holds[id] == nil && st.Entry != nil && st.Entry.ID == id {
				v.core.cfg.Stray(v.key, st.Entry)
			}
		case st.Standing == record.Waiting:
			if waiting++; waiting == 1 {
				v.first = v.queue
			}
		default:
			v.stands(r, st, v.rec, v.rev)
		}
	}
	if waiting == len(v.waiting) {
		return
	}
	for _, r := range v.waiting {
		if st := v.rec.Standing(&r.Op); st.Standing != record.Waiting {
			v.stands(r, st, v.rec, v.rev)
		}
	}
}

// stands has r wait, or ends it, as the record at rev says. Called with mu held.
func (v *view) stands(r *Request, st record.State, rec *record.Record, rev uint64) {
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
		if r.owed {
			v.core.ledger.remove(r) // it is known where it stands
		}
		if len(v.waiting) == 1 {
			v.turn, v.stalled, v.looked = rec.Turn(), false, false
		}
		if r.Op.TTL > 0 { // a conversion has none
			v.ttl = r.Op.TTL
		}
		if r.Queued != nil && !r.told {
			v.mu.tell(r, rec.Place(&r.Op))
		}
		return
	}
	v.turn, v.stalled, v.looked = rec.Turn(), false, false
	out, err := outcome(st, rec, rev)
	if err == nil {
		v.user.granted(r, &out)
	}
	v.end(r, out, err)
	// The entry of one who was refused may still stand, and blocks nobody; it is taken away.
	if undo, ok := r.Op.Undo(); ok && st.Standing == record.Refused && rec.Has(r.Op.ID) {
		v.carryOut(&Request{Key: r.Key, Op: undo, Guest: r.Guest})
	}
}

// end gives r its outcome. Called with mu held.
func (v *view) end(r *Request, out Outcome, err error) {
	if r.over {
		return
	}
	v.drop(r)
	if err != nil {
		v.obstacles.again(r.Op.Leases)
	}
	if r.owed {
		v.core.ledger.remove(r)
	}
	if r.undoes != nil {
		out, err := r.undoes.withdrawn(r.cause, out, err)
		v.mu.answer(r.undoes, out, err)
	}
	v.mu.answer(r, out, err)
}

// drop sees to it that nothing more is done for r. Called with mu held.
func (v *view) drop(r *Request) {
	r.over = true
	r.passOn()
	if v.waiting[r.Op.ID] == r {
		delete(v.waiting, r.Op.ID)
		if r.queues() {
			v.queuers--
		}
	}
}

// undo replaces r, which may have been written, by what takes it back: that stays in the ledger until a committed
// write proves that it is done. For a guest there is nothing like that. Called with mu held.
func (v *view) undo(r *Request, cause error) *Request {
	v.drop(r)
	if r.Guest != nil {
		return nil
	}
	op, ok := r.Op.Undo()
	if !ok {
		op = r.Op
	}
	u := &Request{Key: r.Key, Op: op, progress: progress{outcomeUnknown: r.outcomeUnknown}}
	v.carryOut(u)
	return u
}

// carryOut submits a request that nobody waits for. Called with mu held.
func (v *view) carryOut(r *Request) {
	if v.closed {
		r.over = true
		return
	}
	v.core.ledger.add(r)
	v.user.enqueue(r)
}

// wanted reports whether the process has to learn of changes. Called with mu held.
func (v *view) wanted() bool { return len(v.waiting)+len(v.holds) > 0 || v.followed }

// idle reports whether nobody wants anything of the view. Called with mu held.
func (v *view) idle() bool {
	return !v.wanted() && v.stopWatch == nil && !v.absence && !v.looking && (v.proofs == nil || !v.proofs.running)
}

// close ends everything that waits with ErrClosed. Called with mu held.
func (v *view) close() {
	v.closed = true
	for _, r := range v.waiting {
		v.end(r, Outcome{}, ErrClosed)
	}
	clear(v.holds)
}
