package record

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// lockRules are the rules of locks: entries have modes, and a holder can convert its mode. Conditions are in
// cond.go, elections in election.go.
type lockRules struct{ baseRules }

func (lockRules) idle(r *Record) bool { return r.Body == nil }

func (lockRules) facts(r *Record, f *Facts) {
	f.Queues = slices.Clip(r.conditions())
	if len(r.Holders) > 0 {
		f.Value = r.Holders[0].Value
	}
}

func (lockRules) longest(e *Entry) {
	e.Mode, e.Revoked, e.LetTurn = SIX, true, false
	// A waiting conversion is added by entryBound. A granted one leaves less, also together with the last signal, which
	// only a holder of X has.
	e.Convert, e.Converted, e.LastSignal = Conversion{}, "", 0
	e.SignalAll = e.Signalled != ""
	if e.Value.Set {
		e.Proclaim = math.MaxUint64
	}
}

func (lockRules) verbs() *verbTable { return &lockVerbs }

var lockVerbs = verbTable{
	OpAcquire:     {needEntry | needMode | noN | waits | blind, OpRelease, (*machine).acquire},
	OpTry:         {needEntry | needMode | noN | waits | blind, OpRelease, (*machine).acquire},
	OpConvert:     {needHold | needMode | waits | mustComplete, OpUnconvert, (*machine).convert},
	OpUnconvert:   {needHold | needMode | mustComplete, 0, (*machine).unconvert},
	OpStopWaiting: {needID, 0, (*machine).stopWaiting},
	OpAdvance:     {needID, 0, (*machine).advanceTo},
	OpWait:        {needHold | needToken | needQueue | waits | waitsAfterUndo, OpCancelWait, (*machine).wait},
	OpCancelWait:  {needHold | needToken | mustComplete, 0, (*machine).cancelWait},
	OpSignal:      {needHold | needToken | needQueue, 0, (*machine).signal},
	OpProclaim:    {needHold | needToken | needValue, 0, (*machine).proclaim},
}

func (lockRules) settle(m *machine) {
	m.passSignals()
	m.promote()
}

func (lockRules) states(r *Record) iter.Seq2[string, State] {
	return func(yield func(string, State) bool) {
		for id, st := range r.entryStates() {
			e := st.Entry
			if !yield(id, st) || e.Converted != "" && !yield(e.Converted, st) ||
				e.Convert.ID != "" && !yield(e.Convert.ID, State{Standing: Waiting, Entry: e}) {
				return
			}
		}
		for _, q := range r.conditions() {
			if !yieldStates(q.Waiters, yield) {
				return
			}
		}
	}
}

func (k lockRules) standing(r *Record, op *Op) State {
	if op.Verb != OpWait && op.Verb != OpConvert {
		return r.entryState(op.ID)
	}
	for id, st := range k.states(r) {
		if id == op.ID {
			return st
		}
	}
	return State{}
}

// blockerOf returns a holder, else the waiter before, else a holder that converts. For an entry that waits for a
// signal it returns the one before it.
func (lockRules) blockerOf(r *Record, op *Op) (Entry, bool) {
	if name, i := r.inCondition(op.ID); i >= 0 {
		if i > 0 {
			return r.condition(name)[i-1], true
		}
		return Entry{}, false
	}
	if h, ok := r.excluder(op.Mode, op.Holder); ok {
		return h, true
	}
	if _, before, _ := r.Waiter(op.ID); before > 0 {
		return r.Waiters[before-1], true
	}
	return r.converter(op.ID)
}

// excluder returns a holder whose mode excludes the wanted one, besides the holder with the id.
func (r *Record) excluder(want Mode, besides string) (Entry, bool) {
	return find(r.Holders, func(e *Entry) bool { return e.ID != besides && !Compatible(e.Mode, want) })
}

// converter returns a holder that waits for a conversion, besides the one with the id.
func (r *Record) converter(besides string) (Entry, bool) {
	return find(r.Holders, func(e *Entry) bool { return e.Convert.ID != "" && e.Convert.ID != besides })
}

// ahead: a conversion waits for holders, and a waiter for all holders and all waiters before it. An entry that waits
// for a signal depends on the entries before it in that condition, and on those that a signal of it has woken:
// if they die, the signal is passed on.
func (lockRules) ahead(r *Record, mine func(id string) bool) (leases iter.Seq2[string, time.Duration], next bool) {
	last := lastOf(r.Waiters, mine)
	next = slices.ContainsFunc(r.Holders, func(e Entry) bool { return e.Convert.ID != "" && mine(e.Convert.ID) })
	holders := r.Holders
	if last < 0 && !next {
		holders = nil
	}
	next = next || last >= 0 && mine(r.Waiters[0].ID)
	return leasesOf(r.aheadInConditions(mine), holders, r.Waiters[:max(last, 0)]), next
}

// checkEntry refuses a request that can't become an entry of any kind.
func (op *Op) checkEntry() Verdict {
	if v := op.checkID(true); v != Applied {
		return v
	}
	// JSON would change text that is not UTF-8.
	if roundTTL(op.TTL) == 0 || !utf8.ValidString(op.Owner) {
		return BadOp
	}
	for k, v := range op.Meta {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return BadOp
		}
	}
	return Applied
}

// checkOfHold refuses an operation that names no hold of its own lease.
func (op *Op) checkOfHold() Verdict {
	if v := op.checkID(true); v != Applied {
		return v
	}
	switch lease := LeaseOf(op.Holder); {
	case lease == "":
		return BadOp
	case lease != op.Lease:
		return LeaseMismatch
	}
	return Applied
}

// acquire carries out OpAcquire and OpTry.
func (m *machine) acquire(op *Op) Result {
	try, other := op.Verb == OpTry, m.sameOwner(op.Owner)
	_, inCondition := m.inCondition(op.ID)
	switch {
	case !try && m.Has(op.ID):
		return m.settled()
	case try && indexOf(m.Holders, op.ID) >= 0:
		return Result{Verdict: Applied}
	case try && inCondition >= 0: // granted, the id would occur twice
		return Result{Verdict: BadOp}
	case try && op.Base != 0 && op.Base != m.rev:
		return Result{Verdict: Stale}
	case other != nil && other.ID != op.ID:
		return Result{Verdict: AlreadyHeld, Blocker: *other}
	case len(op.Value.Data) > maxCampaign:
		return Result{Verdict: TooLarge, Have: maxCampaign}
	}
	granted := m.grantable(op.Mode)
	e := op.entry()
	switch {
	case granted:
	case try:
		return Result{Verdict: Held, Blocker: m.blocker(op.Mode)}
	case op.Patience > 0:
		if wait := m.expectedWaitOf(&e, op.Hold); wait > op.Patience {
			return Result{Verdict: WaitTooLong, Blocker: m.blocker(op.Mode), Wait: wait, Position: len(m.Waiters)}
		}
	}
	return m.admit(op, e, granted, m.queued())
}

// admit adds a request to the holders, or to the queue if there is room.
func (m *machine) admit(op *Op, e Entry, granted bool, queued int) Result {
	switch {
	case !granted && queued >= m.lim.MaxWaiters:
		return m.queueFull()
	case !m.reserve(&e):
		return m.tooLarge()
	}
	m.Hold = cmp.Or(m.Hold, truncHold(op.Hold)) // the requester's estimate, if the record has none
	if granted {
		m.Holders = append(m.Holders, e)
		return Result{Verdict: Applied}
	}
	m.Waiters = append(m.Waiters, e)
	return m.settled()
}

// expectedWaitOf returns the expected wait of a request at the end of the queue; hold is the
// requester's estimate of the hold time.
func (m *machine) expectedWaitOf(e *Entry, hold time.Duration) time.Duration {
	queued := Record{Kind: m.Kind, Hold: m.Hold, Holders: m.Holders, Waiters: append(slices.Clip(m.Waiters), *e)}
	queued.Hold = cmp.Or(queued.Hold, truncHold(hold))
	return queued.ExpectedWait(len(m.Waiters))
}

// grantable reports whether a new request can be granted at once without overtaking a waiter or a conversion.
func (m *machine) grantable(want Mode) bool {
	return len(m.Waiters) == 0 && len(m.Holders) < m.lim.MaxHolders && m.modes().admits(want) && !m.converting()
}

// blocker returns the entry that a request that is not grantable would wait for: a holder that excludes it, else
// a holder that waits for a conversion, else the head of the queue, else (too many holders) the oldest holder.
func (m *machine) blocker(want Mode) Entry {
	if h, ok := m.excluder(want, ""); ok {
		return h
	}
	if h, ok := m.converter(""); ok {
		return h
	}
	if len(m.Waiters) > 0 {
		return m.Waiters[0]
	}
	return m.Holders[0]
}

// sameOwner returns an entry of the same explicit owner, or nil.
func (m *machine) sameOwner(owner string) *Entry {
	if owner == "" {
		return nil
	}
	for e := range m.entries() {
		if e.Owner == owner {
			return e
		}
	}
	return nil
}

// promote grants from the head of the queue and stops at the first waiter that doesn't fit, even
// if a later one would fit: otherwise readers could keep a writer waiting for ever.
// Conversions come first, and while one of them waits no waiter is granted, for the same reason.
func (m *machine) promote() {
	waits := m.promoteConversions()
	m.renewTickets()
	if waits {
		return
	}
	held, n := m.modes(), 0
	for n < len(m.Waiters) && len(m.Holders)+n < m.lim.MaxHolders && held.admits(m.Waiters[n].Mode) {
		held = held.with(m.Waiters[n].Mode)
		n++
	}
	m.grantHead(n)
}
