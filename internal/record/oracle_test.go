package record

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"
)

// oracle does the same as Apply in the simplest way: one unordered list, everything searched
// for, compatibility looked up in the table of the design, sizes measured by encoding/json. It
// shares no code with the package.
type oracle struct {
	lim     Limits
	entries []oracleEntry
	clock   int // orders arrivals and grants
	hold    time.Duration
}

type oracleEntry struct {
	op      Op
	holds   bool
	order   int    // of its grant if it holds, else of its arrival
	token   uint64 // 0: of the write at hand
	revoked bool
	letTurn bool

	target    Mode   // of a conversion that waits
	convert   string // its id
	since     uint64 // the revision of the write that asked; 0: the write at hand
	converted string
}

func oracleCompatible(a, b Mode) bool {
	for _, row := range modeTable {
		if row.held == a.String() && row.want == b.String() {
			return row.ok
		}
	}
	return false
}

func (o *oracle) clone() *oracle {
	return &oracle{lim: o.lim, clock: o.clock, hold: o.hold, entries: append([]oracleEntry(nil), o.entries...)}
}

// commit says that the state was written at revision rev.
func (o *oracle) commit(rev uint64) {
	for i, n := range o.numbers() {
		o.entries[i].token = n
	}
	for i := range o.entries {
		if o.entries[i].token < 2048 {
			o.entries[i].token += rev * 2048
		}
		if o.entries[i].convert != "" && o.entries[i].since == 0 {
			o.entries[i].since = rev
		}
	}
}

// list returns the holders or the waiters, in order.
func (o *oracle) list(holding bool) []oracleEntry {
	var out []oracleEntry
	for _, e := range o.entries {
		if e.holds == holding {
			out = append(out, e)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].order < out[j].order })
	return out
}

func (o *oracle) find(id string) *oracleEntry {
	for i := range o.entries {
		if o.entries[i].op.ID == id {
			return &o.entries[i]
		}
	}
	return nil
}

func (o *oracle) drop(gone func(oracleEntry) bool) {
	var kept []oracleEntry
	for _, e := range o.entries {
		if !gone(e) {
			kept = append(kept, e)
		} else if intent(e) {
			defer o.again()
		}
	}
	o.entries = kept
}

func (o *oracle) fits(m Mode) bool {
	holders := o.list(true)
	for _, h := range holders {
		if !oracleCompatible(h.op.Mode, m) {
			return false
		}
	}
	return len(holders) < o.lim.MaxHolders && len(o.converting()) == 0
}

// converting returns the holders that wait for a conversion, in the order in which they asked; those
// that asked in one write in the order in which they hold.
func (o *oracle) converting() []oracleEntry {
	var out []oracleEntry
	for _, h := range o.list(true) {
		if h.convert != "" {
			out = append(out, h)
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		return out[i].since != 0 && (out[j].since == 0 || out[i].since < out[j].since)
	})
	return out
}

// oracleCovers: every mode that is compatible with a is compatible with b.
func oracleCovers(a, b Mode) bool {
	for m := IS; m <= X; m++ {
		if oracleCompatible(a, m) && !oracleCompatible(b, m) {
			return false
		}
	}
	return true
}

func (o *oracle) blocks(h oracleEntry, want Mode) (by []string) {
	for _, k := range o.list(true) {
		if k.op.ID != h.op.ID && !oracleCompatible(k.op.Mode, want) {
			by = append(by, k.op.ID)
		}
	}
	return by
}

// waitsFor is the transitive closure of the waits.
func (o *oracle) waitsFor() map[[2]string]bool {
	reach := map[[2]string]bool{}
	for _, h := range o.converting() {
		for _, by := range o.blocks(h, h.target) {
			reach[[2]string{h.op.ID, by}] = true
		}
	}
	holders := o.list(true)
	for _, via := range holders {
		for _, a := range holders {
			for _, b := range holders {
				if reach[[2]string{a.op.ID, via.op.ID}] && reach[[2]string{via.op.ID, b.op.ID}] {
					reach[[2]string{a.op.ID, b.op.ID}] = true
				}
			}
		}
	}
	return reach
}

func (o *oracle) become(h *oracleEntry, id string, mode Mode) {
	if !oracleCovers(h.op.Mode, mode) {
		h.token = 0
		o.again()
	}
	if intent(*h) && h.op.Mode != mode {
		o.again()
	}
	h.op.Mode, h.converted = mode, id
	h.target, h.convert, h.since = None, "", 0
}

func (o *oracle) conversion(op Op) (Verdict, string) {
	if !strings.HasPrefix(op.ID, op.Lease+".") || !strings.HasPrefix(op.Holder, op.Lease+".") {
		return LeaseMismatch, ""
	}
	h := o.find(op.Holder)
	switch {
	case h == nil || !h.holds:
	case op.Verb == OpUnconvert:
		var newest, back int
		_, _ = fmt.Sscan(strings.TrimPrefix(h.convert+h.converted, op.Lease+"."), &newest)
		_, _ = fmt.Sscan(strings.TrimPrefix(op.ID, op.Lease+"."), &back)
		if newest <= back {
			h.target, h.convert, h.since = None, "", 0
			if oracleCovers(h.op.Mode, op.Mode) {
				if intent(*h) && h.op.Mode != op.Mode {
					o.again()
				}
				h.op.Mode = op.Mode
			}
		}
	case h.convert == op.ID || h.converted == op.ID:
	case h.revoked:
		return ConvertRevoked, ""
	case h.convert != "":
		return ConvertPending, ""
	case oracleCovers(h.op.Mode, op.Mode) || len(o.blocks(*h, op.Mode)) == 0:
		o.become(h, op.ID, op.Mode)
	default:
		was := h.converted
		h.target, h.convert, h.converted = op.Mode, op.ID, ""
		reach := o.waitsFor()
		for _, by := range o.blocks(*h, op.Mode) {
			other := o.find(by)
			if reach[[2]string{h.op.ID, h.op.ID}] && other.convert != "" && !oracleCompatible(h.op.Mode, other.target) {
				h.target, h.convert, h.converted = None, "", was
				return ConvertDeadlock, by
			}
		}
		if reach[[2]string{h.op.ID, h.op.ID}] {
			panic("a circle without a pair that waits for each other")
		}
	}
	o.promote()
	return Applied, ""
}

// promote grants the oldest conversion that fits, and when none waits any more the head as long as
// it fits, one at a time.
func (o *oracle) promote() {
	for {
		granted := false
		for _, h := range o.converting() {
			if !granted && len(o.blocks(h, h.target)) == 0 {
				o.become(o.find(h.op.ID), h.convert, h.target)
				granted = true
			}
		}
		if granted {
			continue
		}
		waiters := o.list(false)
		if len(waiters) == 0 || !o.fits(waiters[0].op.Mode) {
			return
		}
		head := o.find(waiters[0].op.ID)
		o.clock++
		head.holds, head.order = true, o.clock
	}
}

// jsonEntry has the form of a stored waiter, with what a revoked and converting holder has: the
// largest form.
type jsonEntry struct {
	ID      string            `json:"id"`
	Mode    string            `json:"mode"`
	Owner   string            `json:"owner,omitempty"`
	Queued  string            `json:"queued"`
	TTL     int64             `json:"ttl"`
	Since   *int64            `json:"since,omitempty"`
	Revoked bool              `json:"revoked"`
	Convert jsonConversion    `json:"convert"`
	Meta    map[string]string `json:"meta,omitempty"`
}

type jsonConversion struct {
	ID     string `json:"id"`
	Mode   string `json:"mode"`
	Queued string `json:"queued"`
}

func oracleSize(op Op) int {
	longest := jsonConversion{ID: op.ID[:strings.LastIndex(op.ID, ".")] + ".18446744073709551615", Mode: "SIX", Queued: strings.Repeat("0", 20)}
	e := jsonEntry{Convert: longest, ID: longest.ID, Mode: "SIX", Owner: op.Owner, Queued: strings.Repeat("0", 20),
		TTL: int64((op.TTL + time.Millisecond - 1) / time.Millisecond), Revoked: true, Meta: op.Meta}
	if !op.Since.IsZero() {
		ms := op.Since.UnixMilli()
		e.Since = &ms
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return len(b) + 1
}

func (o *oracle) size() int {
	n := len(`{"v":3,"kind":"lock","hold_us":9007199254740991,"holders":[],"waiters":[]}`)
	for _, e := range o.entries {
		n += oracleSize(e.op)
	}
	return n
}

// apply returns the verdict and the id of the blocker.
func (o *oracle) apply(op Op) (Verdict, string) {
	switch op.Verb {
	case OpAcquire, OpTry:
		return o.request(op)
	case OpRelease:
		if e := o.find(op.ID); e != nil && e.holds && op.Hold > 0 {
			was := o.hold
			if o.hold = op.Hold; was > op.Hold {
				o.hold = was - (was-op.Hold)/8
			} else if was > 0 {
				o.hold = was + (op.Hold-was)/8
			}
			o.hold = o.hold / 1000 * 1000
		}
		o.drop(func(e oracleEntry) bool { return e.op.ID == op.ID })
	case OpEvict:
		o.drop(func(e oracleEntry) bool {
			for _, l := range op.Leases {
				if strings.HasPrefix(e.op.ID, l+".") {
					return true
				}
			}
			return false
		})
	case OpRevoke:
		if h := o.list(true); len(h) == 1 && h[0].op.Mode == X && h[0].convert == "" && h[0].converted == "" {
			for _, e := range o.list(false) {
				if e.op.Mode != X {
					break
				}
				if e.op.ID == op.ID || op.ID == "" && o.means(op, h[0]) {
					o.find(e.op.ID).letTurn = true
				}
			}
		}
		for i := range o.entries {
			if e := &o.entries[i]; e.holds && o.means(op, *e) {
				e.revoked, e.letTurn = true, false
				e.target, e.convert, e.since = None, "", 0
			}
		}
	case OpStopWaiting:
		if !strings.HasPrefix(op.ID, op.Lease+".") {
			return LeaseMismatch, ""
		}
		o.drop(func(e oracleEntry) bool { return e.op.ID == op.ID && !e.holds })
		for i := range o.entries {
			if e := &o.entries[i]; e.convert == op.ID {
				e.target, e.convert, e.since = None, "", 0
			}
		}
	case OpConvert, OpUnconvert:
		return o.conversion(op)
	case OpRemove:
		o.drop(func(e oracleEntry) bool { return e.holds && o.means(op, e) })
	default:
		panic(fmt.Sprint("the oracle knows no ", op.Verb))
	}
	o.promote()
	return Applied, ""
}

func (o *oracle) means(op Op, e oracleEntry) bool {
	switch {
	case op.ID != "":
		return op.ID == e.op.ID
	case op.UpTo != 0:
		return e.token != 0 && e.token <= op.UpTo
	}
	return true
}

func (o *oracle) request(op Op) (Verdict, string) {
	if !strings.HasPrefix(op.ID, op.Lease+".") {
		return LeaseMismatch, ""
	}
	if op.Verb == OpAcquire && o.find(op.ID) != nil {
		o.promote()
		return Applied, ""
	}
	if e := o.find(op.ID); e != nil && e.holds {
		return Applied, ""
	}
	for _, e := range append(o.list(true), o.list(false)...) {
		if op.Owner != "" && e.op.Owner == op.Owner && e.op.ID != op.ID {
			return AlreadyHeld, e.op.ID
		}
	}
	now := len(o.list(false)) == 0 && o.fits(op.Mode)
	if op.Verb == OpTry && !now {
		return Held, o.inTheWay(op.Mode)
	}
	hold := o.hold
	if hold == 0 {
		hold = op.Hold / 1000 * 1000
	}
	if wait := time.Duration(o.turns(op.Mode)) * hold; op.Verb == OpAcquire && !now && op.Patience > 0 && wait > op.Patience {
		return WaitTooLong, o.inTheWay(op.Mode)
	}
	if o.size()+oracleSize(op) > o.lim.MaxBytes {
		return QueueFull, ""
	}
	if !now && len(o.list(false)) == o.lim.MaxWaiters {
		return QueueFull, ""
	}
	o.hold = hold
	o.clock++
	o.entries = append(o.entries, oracleEntry{op: op, order: o.clock})
	o.promote()
	return Applied, ""
}

// record is the state as a record. Times and TTLs are expected to be whole milliseconds.
func (o *oracle) record() *Record {
	o = o.clone()
	for i, n := range o.numbers() {
		o.entries[i].token = n
	}
	r := &Record{Kind: "lock", Hold: o.hold}
	for _, holding := range []bool{true, false} {
		for _, e := range o.list(holding) {
			entry := Entry{ID: e.op.ID, Mode: e.op.Mode, Owner: e.op.Owner, TTL: e.op.TTL, Since: e.op.Since, Token: e.token, Revoked: e.revoked, LetTurn: e.letTurn, Meta: e.op.Meta,
				Convert: Conversion{ID: e.convert, Mode: e.target, Queued: e.since}, Converted: e.converted}
			if holding {
				r.Holders = append(r.Holders, entry)
			} else {
				r.Waiters = append(r.Waiters, entry)
			}
		}
	}
	if r.Idle() {
		return new(Record)
	}
	return r
}
