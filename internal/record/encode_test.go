package record

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// full is a record that has every field.
func full() *Record {
	return &Record{
		Kind: KindLock, Hold: 1500 * time.Microsecond,
		Holders: []Entry{{ID: "La.7", Mode: S, Owner: "alice", TTL: 30 * time.Second, Since: time.UnixMilli(1790000000000).UTC(),
			Token: 1790000000000000, Revoked: true, Converted: "La.9", Meta: map[string]string{"pid": "12", "host": "a \"b\"\n"}},
			{ID: "Lb.1", Mode: IS, TTL: 300 * time.Millisecond, Convert: Conversion{ID: "Lb.2", Mode: SIX, Queued: 1790000000000001}}},
		Waiters: []Entry{{ID: "Lc.3", Mode: X, Owner: "ünï", TTL: time.Second, Since: time.UnixMilli(0).UTC(),
			Token: math.MaxInt64, Meta: map[string]string{"": ""}}},
	}
}

const fullJSON = `{"v":3,"kind":"lock","hold_us":1500,"holders":[` +
	`{"id":"La.7","mode":"S","owner":"alice","token":"00001790000000000000","ttl":30000,"since":1790000000000,"revoked":true,"converted":"La.9","meta":{"host":"a \"b\"\u000a","pid":"12"}},` +
	`{"id":"Lb.1","mode":"IS","token":"00000000000000000000","ttl":300,"convert":{"id":"Lb.2","mode":"SIX","queued":"00001790000000000001"}}],` +
	`"waiters":[{"id":"Lc.3","mode":"X","owner":"ünï","queued":"09223372036854775807","ttl":1000,"since":0,"meta":{"":""}}]}`

func TestStoredForm(t *testing.T) {
	for _, c := range []struct {
		rec  *Record
		want string
	}{
		{full(), fullJSON},
		{(&Record{Kind: KindLock}), `{"v":3,"kind":"lock"}`},
		{&Record{Kind: KindLock, Holders: []Entry{}, Waiters: []Entry{{ID: "a.1", Mode: U, TTL: 1e6}}},
			`{"v":3,"kind":"lock","waiters":[{"id":"a.1","mode":"U","queued":"00000000000000000000","ttl":1}]}`},
	} {
		got := string(c.rec.Append([]byte("before")))
		if got != "before"+c.want {
			t.Errorf("stored as\n%s\nwant\n%s", got, c.want)
		}
		if !json.Valid([]byte(c.want)) {
			t.Errorf("not JSON: %s", c.want)
		}
		back, err := Decode([]byte(c.want))
		if err != nil {
			t.Errorf("%s: %v", c.want, err)
		} else if c.rec.Holders == nil && !reflect.DeepEqual(back, c.rec) {
			t.Errorf("decoded as %+v, want %+v", back, c.rec)
		}
	}
	if back, err := Decode([]byte(fullJSON)); err != nil || !reflect.DeepEqual(back, full()) {
		t.Errorf("decoded as %+v, %v", back, err)
	}
}

// Rule 14: the write that fills a token in, or revokes, must not fail for size.
func TestTokensHaveOneWidth(t *testing.T) {
	r := full()
	size := len(r.Append(nil))
	for _, token := range []uint64{0, 1, 9, 10, 1 << 53, math.MaxUint64} {
		r.Holders[0].Token, r.Waiters[0].Token, r.Holders[1].Convert.Queued = token, token, token
		if got := len(r.Append(nil)); got != size {
			t.Errorf("token %d makes it %d bytes, not %d", token, got, size)
		}
	}
}

// Order as text is order as numbers, so a person may compare what `nats kv get` shows.
func TestTokensOrderAsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		if ta, tb := string(appendToken(nil, a)), string(appendToken(nil, b)); (a < b) != (ta < tb) || (a == b) != (ta == tb) {
			t.Fatalf("%d is %s, %d is %s", a, ta, b, tb)
		}
	})
}

func TestCloneIsDeep(t *testing.T) {
	r := full()
	c := r.Clone()
	if !reflect.DeepEqual(c, r) {
		t.Fatalf("clone is %+v", c)
	}
	c.Holders[0].Meta["pid"] = "changed"
	c.Holders[1].ID = "changed"
	c.Waiters[0].Meta["new"] = "x"
	if !reflect.DeepEqual(r, full()) {
		t.Errorf("changing the clone changed the original: %+v", r)
	}
}

func TestResolveFillsOnlyZeros(t *testing.T) {
	r := full()
	r.Waiters = append(r.Waiters, Entry{ID: "d.1", Token: Ticket(0, 3)})
	r.Holders[1].Convert.Queued = 0
	r.Resolve(5)
	if r.Holders[1].Convert.Queued != 5 || r.Holders[0].Convert != (Conversion{}) {
		t.Errorf("%+v", r)
	}
	r.Resolve(6)
	if r.Holders[1].Convert.Queued != 5 {
		t.Errorf("%+v", r)
	}
	if r.Holders[0].Token != 1790000000000000 || r.Holders[1].Token != Ticket(5, 0) || r.Waiters[0].Token != math.MaxInt64 || r.Waiters[1].Token != Ticket(5, 3) {
		t.Errorf("%+v", r)
	}
}

func TestLookup(t *testing.T) {
	r := full()
	r.Waiters = append(r.Waiters, Entry{ID: "d.1"})
	if e, ok := r.Holder("Lb.1"); !ok || e.Mode != IS {
		t.Error(e, ok)
	}
	if _, ok := r.Holder("d.1"); ok {
		t.Error("a waiter is no holder")
	}
	if e, pos, ok := r.Waiter("d.1"); !ok || pos != 1 || e.ID != "d.1" {
		t.Error(e, pos, ok)
	}
	if _, _, ok := r.Waiter("La.7"); ok {
		t.Error("a holder is no waiter")
	}
	if r.Idle() || !(&Record{Kind: KindLock}).Idle() {
		t.Error("Idle")
	}
}

// anyEntry draws an entry that Apply could have made, with text of every kind.
func anyEntry(t *rapid.T, id string, holder bool) Entry {
	e := Entry{
		ID:    id,
		Mode:  Mode(rapid.IntRange(int(IS), int(X)).Draw(t, "mode")),
		Owner: rapid.String().Draw(t, "owner"),
		TTL:   time.Duration(rapid.Int64Range(1, int64(maxTTL/time.Millisecond)).Draw(t, "ttl")) * time.Millisecond,
		Token: rapid.Uint64Max(math.MaxInt64).Draw(t, "token"),
		Meta:  rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, "meta"),
	}
	if len(e.Meta) == 0 {
		e.Meta = nil
	}
	if rapid.Bool().Draw(t, "dated") {
		e.Since = time.UnixMilli(rapid.Int64Range(0, maxSince).Draw(t, "since")).UTC()
	}
	e.Revoked = holder && rapid.Bool().Draw(t, "revoked")
	switch seq := rapid.Uint64().Draw(t, "conversion"); {
	case !holder:
	case seq%3 == 0:
		e.Converted = ID(e.Lease(), seq)
	case seq%3 == 1:
		e.Convert = Conversion{ID: ID(e.Lease(), seq), Mode: e.Mode, Queued: rapid.Uint64Max(math.MaxInt64).Draw(t, "queued")}
	}
	if rapid.Bool().Draw(t, "candidate") {
		e.Value = Value{Set: true, Data: string(rapid.SliceOf(rapid.Byte()).Draw(t, "value"))}
		if holder {
			e.Proclaim = rapid.Uint64().Draw(t, "proclaimed")
		}
	}
	if rapid.Bool().Draw(t, "signalled") {
		e.Signalled, e.SignalAll = anyCondition(t), rapid.Bool().Draw(t, "all")
	}
	if holder && e.Mode == X {
		e.LastSignal = rapid.Uint64().Draw(t, "signal")
		e.Convert = Conversion{} // X is all there is
	}
	return e
}

func anyCondition(t *rapid.T) string { return rapid.StringN(1, 20, maxQueueName).Draw(t, "condition") }

func anyRecord(t *rapid.T) *Record {
	r := &Record{Kind: KindLock}
	r.Hold = truncHold(time.Duration(rapid.Int64().Draw(t, "hold")))
	seq := uint64(0)
	for _, list := range []*[]Entry{&r.Holders, &r.Waiters} {
		for range rapid.IntRange(0, 3).Draw(t, "entries") {
			seq++
			*list = append(*list, anyEntry(t, ID("L", seq), list == &r.Holders))
		}
	}
	m := machine{Record: r}
	for range rapid.IntRange(0, 3).Draw(t, "wait for a signal") {
		seq++
		e := anyEntry(t, ID("L", seq), false)
		e = Entry{ID: e.ID, Mode: X, Owner: e.Owner, TTL: e.TTL, Token: e.Token, Meta: e.Meta, Since: e.Since}
		name := anyCondition(t)
		m.setCondition(name, append(r.condition(name), e))
	}
	return r
}

func TestDecodeIsInverseOfAppend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord(t)
		stored := r.Append(nil)
		if !json.Valid(stored) || !utf8.Valid(stored) {
			t.Fatalf("not JSON: %s", stored)
		}
		back, err := Decode(stored)
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%s\ncame back as %+v, %v", stored, back, err)
		}
	})
}

// sizeBound must cover every form the record can take, and must not waste the value's size either.
func TestSizeBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord(t)
		bound, frame := sizeBound(r), sizeBound((&Record{Kind: KindLock}))
		const slack = len(`,"revoked":true` + `,"convert":{"id":"L.18446744073709551615","mode":"SIX","queued":"18446744073709551615"}` + `SIX`)
		const more = len(`,"proclaimed":18446744073709551615,"signalled":"","all":true,"conds":{"":[]},8446744073709551615`) + 6*maxQueueName
		n := (&machine{Record: r}).queued() + len(r.Holders)
		if got := len(r.Append(nil)); got > bound || got < bound-n*(slack+more)-n-frame {
			t.Fatalf("%d bytes, bound %d: %s", got, bound, r.Append(nil))
		}
		all := &Record{Kind: KindLock, Hold: maxHold, Holders: append(append([]Entry(nil), r.Holders...), r.Waiters...)}
		for _, q := range r.conditions() {
			for _, e := range q.Waiters {
				e.Signalled = q.Name
				all.Holders = append(all.Holders, e)
			}
		}
		if again := sizeBound(all); again > bound {
			t.Fatalf("signals made the bound %d, from %d", again, bound)
		}
		bound = sizeBound(all)
		for i := range all.Holders {
			h := &all.Holders[i]
			h.ID = ID(h.Lease(), math.MaxUint64)
			h.Mode, h.Convert, h.Converted, h.LastSignal = X, Conversion{}, h.ID, math.MaxUint64
			if h.Value.Set {
				h.Proclaim = math.MaxUint64
			}
		}
		if got := len(all.Append(nil)); got > bound {
			t.Fatalf("all granted, renamed and signalling: %d bytes, bound %d: %s", got, bound, all.Append(nil))
		}
		for i := range all.Holders {
			h := &all.Holders[i]
			h.Revoked, h.Token, h.Mode, h.Convert, h.Converted, h.LastSignal = true, math.MaxUint64, SIX, Conversion{}, ID(h.Lease(), math.MaxUint64), 0
		}
		if got := len(all.Append(nil)); got > bound {
			t.Fatalf("all granted, converted and revoked: %d bytes, bound %d: %s", got, bound, all.Append(nil))
		}
		for i := range all.Holders {
			h := &all.Holders[i]
			h.Convert, h.Converted = Conversion{ID: h.Converted, Mode: SIX, Queued: math.MaxUint64}, ""
		}
		if got := len(all.Append(nil)); got > bound {
			t.Fatalf("all granted, converting and revoked: %d bytes, bound %d: %s", got, bound, all.Append(nil))
		}
		if again := sizeBound(all); again != bound {
			t.Fatalf("what became of the entries changed the bound from %d to %d", bound, again)
		}
	})
}

func sizeBound(r *Record) int { return (&machine{Record: r}).sizeBound() }

func FuzzText(f *testing.F) {
	for _, s := range []string{"", "plain", "a\"b\\c/d", "\x00\x1f\x7f", "<&>", "\u2028\u2029\ufffd", "äöü 🔒", strings.Repeat("x", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return // never gets into a record
		}
		stored := appendString(nil, s)
		var theirs string
		if err := json.Unmarshal(stored, &theirs); err != nil || theirs != s {
			t.Fatalf("encoding/json reads %s as %q, %v", stored, theirs, err)
		}
		sc := scanner{b: stored}
		if ours, err := sc.string(); err != nil || ours != s || sc.end() != nil {
			t.Fatalf("%s read as %q, %v", stored, ours, err)
		}
		escaped, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		sc = scanner{b: escaped}
		if ours, err := sc.string(); err != nil || ours != s || sc.end() != nil {
			t.Fatalf("%s by encoding/json read as %q, %v", escaped, ours, err)
		}
	})
}
