package record

import (
	"cmp"
	"fmt"
	"slices"
)

// Mode is a lock mode: it says which other modes an entry excludes.
type Mode uint8

// The modes of multi-granularity locking. An intention mode on a resource announces locks on what
// lies below it. The zero Mode is no mode: nothing holds it and nothing is compatible with it.
const (
	None Mode = iota
	IS        // intends to read something below
	IX        // intends to write something below
	S         // reads
	SIX       // reads, and intends to write something below
	U         // reads, and may want X later: readers are let in beside it, a second U is not
	X         // writes: excludes everybody
)

// modeSet is a set of modes, one bit each.
type modeSet uint8

func (s modeSet) with(m Mode) modeSet { return s | 1<<m }

// admits reports whether m is compatible with every mode in s.
func (s modeSet) admits(m Mode) bool { return m.Valid() && s&^compatible[m] == 0 }

// compatible maps a mode to the modes that other holders may have beside it. The relation is symmetric.
var compatible = [...]modeSet{
	None: 0,
	IS:   1<<IS | 1<<IX | 1<<S | 1<<SIX | 1<<U,
	IX:   1<<IS | 1<<IX,
	S:    1<<IS | 1<<S | 1<<U,
	SIX:  1 << IS,
	U:    1<<IS | 1<<S,
	X:    0,
}

var modeNames = [...]string{None: "None", IS: "IS", IX: "IX", S: "S", SIX: "SIX", U: "U", X: "X"}

// Compatible reports whether want may be granted while another entry holds held. It is
// symmetric, and false if either is not valid.
func Compatible(held, want Mode) bool { return held.Valid() && modeSet(0).with(held).admits(want) }

// ParseMode is the inverse of String for the valid modes; anything else is ErrInvalidMode.
// Upper case only, as in the stored record.
func ParseMode(s string) (Mode, error) {
	if m := modeOf([]byte(s)); m.Valid() {
		return m, nil
	}
	return None, fmt.Errorf("%w (got %q)", ErrInvalidMode, s)
}

// modeOf returns None for an unknown name.
func modeOf(name []byte) Mode {
	for m := IS; m <= X; m++ {
		if string(name) == modeNames[m] {
			return m
		}
	}
	return None
}

// Valid reports whether m is one of IS, IX, S, SIX, U and X.
func (m Mode) Valid() bool { return m >= IS && m <= X }

func (m Mode) String() string {
	if m > X {
		return fmt.Sprintf("Mode(%d)", uint8(m))
	}
	return modeNames[m]
}

// MarshalText returns the name of the mode. A mode that is not valid is ErrInvalidMode.
func (m Mode) MarshalText() ([]byte, error) {
	if !m.Valid() {
		return nil, fmt.Errorf("%w (got %s)", ErrInvalidMode, m)
	}
	return []byte(modeNames[m]), nil
}

// UnmarshalText is the inverse of MarshalText; on failure m is left unchanged.
func (m *Mode) UnmarshalText(text []byte) error {
	parsed, err := ParseMode(string(text))
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}

// Conversion is a change of mode that a holder waits for. The zero Conversion is none.
type Conversion struct {
	ID     string // "<lease id>.<sequence>", under the holder's lease
	Mode   Mode   // the mode that the holder wants
	Queued uint64 // the revision of the write that requested it; 0 = this record's. The oldest that fits is granted first
}

// Covers reports whether m excludes every mode that o excludes; each mode covers itself. A holder of
// m may have o instead at any time: that only lets more others in.
func (m Mode) Covers(o Mode) bool { return m.Valid() && o.Valid() && compatible[m]&^compatible[o] == 0 }

// Meet returns the strongest mode that both a and b cover: the mode that is certainly held if one of
// them is, and it is not known which. It is None if either is not valid.
func Meet(a, b Mode) Mode {
	return best(func(m Mode) bool { return a.Covers(m) && b.Covers(m) }, Mode.Covers)
}

// Join returns the weakest mode that covers both a and b. It is None if either is not valid.
func Join(a, b Mode) Mode {
	return best(func(m Mode) bool { return m.Covers(a) && m.Covers(b) }, func(m, o Mode) bool { return o.Covers(m) })
}

func best(fits func(Mode) bool, better func(m, o Mode) bool) (found Mode) {
	for m := IS; m <= X; m++ {
		if fits(m) && (found == None || better(m, found)) {
			found = m
		}
	}
	return found
}

// convert gives a holder another mode, at once or later.
//
// A conversion waits for holders only, never for the queue: a holder that wants a stronger mode can't go
// behind waiters that wait for it to release.
func (m *machine) convert(op *Op) Result {
	i := indexOf(m.Holders, op.Holder)
	if i < 0 {
		return m.settled()
	}
	switch h := &m.Holders[i]; {
	case h.Converted == op.ID || h.Convert.ID == op.ID:
		// An earlier attempt was written.
	case h.Revoked:
		return Result{Verdict: ConvertRevoked}
	case h.Convert.ID != "":
		return Result{Verdict: ConvertPending}
	case h.Mode.Covers(op.Mode) || m.modesBut(i).admits(op.Mode):
		m.grantConversion(h, op.ID, op.Mode)
	default:
		if blocker := m.deadlock(i, op.Mode); blocker >= 0 {
			return Result{Verdict: ConvertDeadlock, Blocker: m.Holders[blocker]}
		}
		// An entry has only one of the two, since its reserved room is for one.
		h.Convert, h.Converted = Conversion{ID: op.ID, Mode: op.Mode}, ""
	}
	return m.settled()
}

// unconvert undoes a conversion, whether it waits, was granted or was never written, and makes
// sure that the holder has at most op.Mode then: its handle relies on no more since it gave up.
// A later conversion of the hold stays.
func (m *machine) unconvert(op *Op) Result {
	if i := indexOf(m.Holders, op.Holder); i >= 0 {
		h := &m.Holders[i]
		if newest := sequenceOf(h.Convert.ID + h.Converted); newest <= sequenceOf(op.ID) { // at most one is set
			h.Convert = Conversion{}
			if h.Mode.Covers(op.Mode) {
				m.setMode(h, op.Mode)
			}
		}
	}
	return m.settled()
}

// grantConversion grants a conversion. A mode that excludes more is a new grant, with a new token: other holders may
// have come and gone meanwhile with larger tokens. A weaker mode is still the old grant.
func (m *machine) grantConversion(e *Entry, id string, mode Mode) {
	if !e.Mode.Covers(mode) {
		e.Token, m.staleTickets = 0, true
	}
	e.Convert, e.Converted = Conversion{}, id
	m.setMode(e, mode)
}

// setMode sets a mode. A holder that leaves X forgets its last signal: only a holder of X signals, and when it has X
// again it has another token.
func (m *machine) setMode(e *Entry, mode Mode) {
	if mode != e.Mode {
		m.noteModeEnded(e.Mode)
	}
	if e.Mode = mode; mode != X {
		e.LastSignal = 0
	}
}

func (r *Record) converting() bool {
	return slices.ContainsFunc(r.Holders, func(e Entry) bool { return e.Convert.ID != "" })
}

func (r *Record) modes() modeSet { return r.modesBut(-1) }

// modesBut leaves out the i-th holder.
func (r *Record) modesBut(i int) modeSet {
	var s modeSet
	for k := range r.Holders {
		if k != i {
			s = s.with(r.Holders[k].Mode)
		}
	}
	return s
}

// promoteConversions grants the waiting conversions that fit, the oldest first, and reports whether
// any still waits. One that doesn't fit does not delay later ones: all of them are holders already.
func (m *machine) promoteConversions() (waits bool) {
	var queue []int
	for i := range m.Holders {
		if m.Holders[i].Convert.ID != "" {
			queue = append(queue, i)
		}
	}
	slices.SortStableFunc(queue, func(a, b int) int {
		// Minus 1, so that 0, which means this write, comes last.
		return cmp.Compare(m.Holders[a].Convert.Queued-1, m.Holders[b].Convert.Queued-1)
	})
	for n := 0; n < len(queue); {
		h := &m.Holders[queue[n]]
		if !m.modesBut(queue[n]).admits(h.Convert.Mode) {
			n++
			continue
		}
		m.grantConversion(h, h.Convert.ID, h.Convert.Mode)
		queue = slices.Delete(queue, n, n+1)
		n = 0 // a change like S to IX may allow an older one
	}
	return len(queue) > 0
}

// deadlock returns a holder that makes the i-th wait for ever for want: a holder that itself waits
// for the i-th. It returns -1 if there is none.
//
// It is enough to look at pairs, although a circle may be longer. Among modes that can be held together ({IS, IX},
// {IS, SIX} or {IS, S, U}), a stronger wanted mode waits for a superset of the holders: from none up to X, which waits for
// all. So in a circle, the conversion to the strongest mode waits for all others in it, also for the one that waits for it, and
// that pair is a circle of two. Only a new waiting conversion can close a circle: a granted one waits no
// longer, and no new holder comes while a conversion waits.
func (m *machine) deadlock(i int, want Mode) int {
	for k := range m.Holders {
		other := &m.Holders[k]
		if k != i && other.Convert.ID != "" && !Compatible(other.Mode, want) && !Compatible(m.Holders[i].Mode, other.Convert.Mode) {
			return k
		}
	}
	return -1
}
