package record

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"
)

// oracle does what Apply does, as dumbly as it can be done: one unordered list, everything searched
// for, compatibility looked up in the table of the design, sizes measured by encoding/json. It
// shares no code with the package.
type oracle struct {
	lim     Limits
	entries []oracleEntry
	clock   int // orders arrivals and grants
}

type oracleEntry struct {
	op      Op
	holds   bool
	order   int    // of its grant if it holds, else of its arrival
	token   uint64 // 0: of the write at hand
	revoked bool
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
	return &oracle{lim: o.lim, clock: o.clock, entries: append([]oracleEntry(nil), o.entries...)}
}

// commit says that the state was written at revision rev.
func (o *oracle) commit(rev uint64) {
	for i := range o.entries {
		if o.entries[i].token == 0 {
			o.entries[i].token = rev
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
	return len(holders) < o.lim.MaxHolders
}

// promote grants the head as long as it fits, one at a time.
func (o *oracle) promote() {
	for {
		waiters := o.list(false)
		if len(waiters) == 0 || !o.fits(waiters[0].op.Mode) {
			return
		}
		head := o.find(waiters[0].op.ID)
		o.clock++
		head.holds, head.order, head.token = true, o.clock, 0
	}
}

// jsonEntry has the form of a stored waiter, with the mark of a revoked holder: the largest form.
type jsonEntry struct {
	ID      string            `json:"id"`
	Mode    string            `json:"mode"`
	Owner   string            `json:"owner,omitempty"`
	Queued  string            `json:"queued"`
	TTL     int64             `json:"ttl"`
	Since   *int64            `json:"since,omitempty"`
	Revoked bool              `json:"revoked"`
	Meta    map[string]string `json:"meta,omitempty"`
}

func oracleSize(op Op) int {
	e := jsonEntry{ID: op.ID, Mode: op.Mode.String(), Owner: op.Owner, Queued: strings.Repeat("0", 20),
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
	n := len(`{"v":1,"kind":"lock","holders":[],"waiters":[]}`)
	for _, e := range o.entries {
		n += oracleSize(e.op)
	}
	return n
}

// apply returns the verdict and the id of the blocker.
func (o *oracle) apply(op Op) (Verdict, string) {
	switch op.Kind {
	case OpAcquire, OpTry:
		return o.request(op)
	case OpRelease:
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
		for i := range o.entries {
			if e := &o.entries[i]; e.holds && o.means(op, *e) {
				e.revoked = true
			}
		}
		return Applied, ""
	case OpRemove:
		o.drop(func(e oracleEntry) bool { return e.holds && o.means(op, e) })
	default:
		panic(fmt.Sprint("the oracle knows no ", op.Kind))
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
	if op.Kind == OpAcquire && o.find(op.ID) != nil {
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
	if op.Kind == OpTry && !now {
		for _, h := range o.list(true) {
			if !oracleCompatible(h.op.Mode, op.Mode) {
				return Held, h.op.ID
			}
		}
		for _, e := range append(o.list(false), o.list(true)...) {
			return Held, e.op.ID
		}
	}
	if o.size()+oracleSize(op) > o.lim.MaxBytes {
		return QueueFull, ""
	}
	if !now && len(o.list(false)) == o.lim.MaxWaiters {
		return QueueFull, ""
	}
	o.clock++
	o.entries = append(o.entries, oracleEntry{op: op, order: o.clock})
	o.promote()
	return Applied, ""
}

// record is the state as a record. Times and TTLs are expected to be whole milliseconds.
func (o *oracle) record() *Record {
	r := &Record{Kind: "lock"}
	for _, holding := range []bool{true, false} {
		for _, e := range o.list(holding) {
			entry := Entry{ID: e.op.ID, Mode: e.op.Mode, Owner: e.op.Owner, TTL: e.op.TTL, Since: e.op.Since, Token: e.token, Revoked: e.revoked, Meta: e.op.Meta}
			if holding {
				r.Holders = append(r.Holders, entry)
			} else {
				r.Waiters = append(r.Waiters, entry)
			}
		}
	}
	return r
}
