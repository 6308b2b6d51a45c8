package record

import (
	"strings"
	"testing"
)

// The token is the ticket of the write that queued the entry, whichever write grants it.
func TestH1_TheTokenIsTheTicket(t *testing.T) {
	rec, rev := after(t, Limits{}, acquire("a.1", X), acquire("b.1", X), acquire("c.1", X))
	rec, _, _ = Apply(rec, rev, []Op{release("a.1")}, Limits{})
	rec.Resolve(rev + 1)
	if b, c := rec.Holders[0].Token, rec.Waiters[0].Token; b != Ticket(2, 1) || c != Ticket(3, 1) {
		t.Errorf("%s holds, %s waits", ticketText(b), ticketText(c))
	}
}

// Rule M6 of many locks: below an intent, a part was locked with a token above that of a waiter for the whole.
func TestH1_NewTicketsWhenAnIntentEnds(t *testing.T) {
	intents := acquire("a.1", IX)
	evicted, removed := evict("a"), Op{Verb: OpRemove, ID: "a.1"}
	for why, c := range map[string]struct {
		op    Op
		fresh bool
	}{
		"released":       {release("a.1"), true},
		"evicted":        {evicted, true},
		"removed":        {removed, true},
		"converted down": {convert("a.1", 2, IS), true},
		"converted up":   {convert("a.1", 2, SIX), true},
		"another waits":  {acquire("d.1", X), false},
		"a waiter left":  {release("b.1"), false},
		"revoked":        {Op{Verb: OpRevoke, ID: "a.1"}, false},
	} {
		rec, rev := after(t, Limits{}, intents, acquire("b.1", X), acquire("c.1", X))
		rec.Resolve(rev)
		next, _, _ := Apply(rec, rev, []Op{c.op}, Limits{})
		next.Resolve(100)
		last := uint64(0)
		for _, list := range [][]Entry{next.Holders, next.Waiters} {
			for _, e := range list {
				if (e.ID == "b.1" || e.ID == "c.1") && (RevisionOf(e.Token) == 100) != c.fresh {
					t.Errorf("%s: %s has %s", why, e.ID, ticketText(e.Token))
				}
				if e.ID != "a.1" && e.Token <= last {
					t.Errorf("%s: %s comes with %d after %d", why, e.ID, e.Token, last)
				}
				last = e.Token
			}
		}
	}
}

// One write can give new tickets to all entries that a record can have.
func TestH1_OneWriteNumbersAll(t *testing.T) {
	ops := []Op{acquire("a.1", IX)}
	for i := range MaxWaiters {
		ops = append(ops, acquire(ID("b", uint64(i+1)), X))
	}
	lim := Limits{MaxBytes: 1 << 20}
	rec, results, _ := Apply(nil, 0, ops, lim)
	if len(rec.Waiters) != MaxWaiters || results[MaxWaiters].Verdict != Applied {
		t.Fatalf("%d wait", len(rec.Waiters))
	}
	wantVerdict(t, rec, 1, acquire("z.1", X), QueueFull, 0)
	rec.Resolve(1)
	rec, _, _ = Apply(rec, 1, []Op{convert("a.1", 2, SIX)}, lim)
	rec.Resolve(2)
	for i, w := range rec.Waiters {
		if w.Token != Ticket(2, i+1) {
			t.Fatalf("the waiter at %d has %s", i, ticketText(w.Token))
		}
	}
	checkStored(t, rec)
	if back, err := Decode([]byte(strings.Replace(string(rec.Append(nil)), `"waiters":[`, `"waiters":[{"id":"y.1","mode":"X","queued":"00000000000000000000","ttl":1},`, 1))); err == nil {
		t.Errorf("%d waiters were taken", len(back.Waiters))
	}
}

// A write that changes nothing stores the tickets of before, not its own. Older writers can't read it.
func TestH17_AWriteThatChangesNothingKeepsTickets(t *testing.T) {
	rec, _ := after(t, Limits{}, acquire("a.1", X), acquire("b.1", X))
	next, _, changed := Apply(rec, 2, nil, Limits{})
	if stored := string(next.Append(nil)); changed || next.Waiters[0].Token != Ticket(2, 1) || !strings.HasPrefix(stored, `{"v":3,`) {
		t.Errorf("changed %v, %s", changed, stored)
	}
	if _, err := Decode([]byte(`{"v":2,"kind":"lock"}`)); err == nil {
		t.Error("a record of revisions was read as one of tickets")
	}
}

// numbers returns the places of the waiters without a ticket, by their index.
func (o *oracle) numbers() map[int]uint64 {
	numbers := map[int]uint64{}
	for _, w := range o.list(false) {
		if w.token == 0 {
			for i := range o.entries {
				if o.entries[i].op.ID == w.op.ID {
					numbers[i] = uint64(len(numbers) + 1)
				}
			}
		}
	}
	return numbers
}

// again gives the waiters new tickets: a hold of an intent has ended, or a holder has got a new token.
func (o *oracle) again() {
	for i := range o.entries {
		if !o.entries[i].holds {
			o.entries[i].token = 0
		}
	}
}

func intent(e oracleEntry) bool {
	return e.holds && (e.op.Mode == IS || e.op.Mode == IX || e.op.Mode == SIX)
}
