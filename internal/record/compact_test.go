package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The text of a long list as people see it: each number is relative to the text before.
func TestCompactForm(t *testing.T) {
	entry := func(id string, mode Mode, token uint64, since int64) Entry {
		return Entry{ID: id, Mode: mode, TTL: 30 * time.Second, Token: token, Since: time.UnixMilli(since).UTC()}
	}
	rec := &Record{Kind: KindLock}
	rec.Waiters = []Entry{
		entry("La.15", X, Ticket(900, 1), 1790000000000),
		entry("Lb.x.2", S, Ticket(900, 2), 1790000000000),
		entry("La.16", X, Ticket(903, 1), 1790000000007),
		entry("Lb.x.3", X, Ticket(903, 3), 1790000000005),
		entry("La.17", X, Ticket(904, 1), 1790000000005), // has an owner
		entry("La.18", X, Ticket(905, 2), 1790000000005),
		entry("La.19", X, Ticket(905, 3), 1790000000005), // has another TTL
		entry("La.20", X, Ticket(0, 1), 1790000000009),
		entry("Lb.x.4", X, Ticket(0, 2), 1790000000009),
	}
	rec.Waiters[4].Owner, rec.Waiters[6].TTL = "me", time.Second
	want := `{"v":4,"kind":"lock","waiters":["#La/30000.15X@900+1790000000000","#Lb.x/30000.2S","0.16X@3+7","1.3X:3-2",` +
		`{"id":"La.17","mode":"X","owner":"me","queued":"00000000000001851393","ttl":30000,"since":1790000000005},` +
		`"0.18X@2:2","#La/1000.19X","#La/30000.20X*+4","1.4X"]}`
	stored := rec.Append(nil)
	if string(stored) != want {
		t.Errorf("stored as\n%s\nwant\n%s", stored, want)
	}
	if back, err := Decode(stored); err != nil || !reflect.DeepEqual(back, rec) {
		t.Errorf("came back as %+v, %v", back, err)
	}
	rec.Waiters = rec.Waiters[:compactAbove]
	if stored := rec.Append(nil); bytes.Contains(stored, []byte(`#`)) || !bytes.HasPrefix(stored, []byte(`{"v":3`)) {
		t.Errorf("%d entries are stored as %s", compactAbove, stored)
	}
}

// Decoding returns every entry of a long list, and the list is not larger than as objects.
func TestCompactIsInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &Record{Kind: KindLock}
		seq, rev, since := uint64(0), uint64(0), int64(0)
		for _, list := range []*[]Entry{&r.Holders, &r.Waiters} {
			for range rapid.IntRange(0, 3*compactAbove).Draw(t, "entries") {
				seq++
				lease := rapid.SampledFrom([]string{"La", "Lb.x", "7"}).Draw(t, "lease")
				if rapid.IntRange(0, 5).Draw(t, "uncommon") == 0 {
					*list = append(*list, anyEntry(t, ID(lease, seq), list == &r.Holders))
					continue
				}
				rev = rapid.OneOf(rapid.Just(rev), rapid.Just(rev/2+3), rapid.Uint64Max(math.MaxInt64>>ticketBits)).Draw(t, "revision")
				since = rapid.OneOf(rapid.Just(since), rapid.Int64Range(0, maxSince)).Draw(t, "since")
				*list = append(*list, Entry{
					ID: ID(lease, seq), Mode: X, TTL: rapid.SampledFrom([]time.Duration{time.Second, 30 * time.Second}).Draw(t, "ttl"),
					Token: Ticket(rev, rapid.IntRange(0, MaxWaiters).Draw(t, "place")), Since: time.UnixMilli(since).UTC(),
				})
			}
		}
		stored := r.Append(nil)
		if !json.Valid(stored) {
			t.Fatalf("not JSON: %s", stored)
		}
		back, err := Decode(stored)
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%s\ncame back as %+v, %v", stored, back, err)
		}
		objects := (&Record{Kind: r.Kind, Hold: r.Hold, Life: r.Life}).Append(nil)
		for _, list := range []struct {
			entries []Entry
			holders bool
		}{{r.Holders, true}, {r.Waiters, false}} {
			for i := range list.entries {
				objects = append(appendEntry(objects, r.Kind, &list.entries[i], list.holders), ',')
			}
		}
		if frame := len(`,"holders":[],"waiters":[]`); len(stored) > len(objects)+frame {
			t.Fatalf("%d bytes, as objects %d: %s", len(stored), len(objects)+frame, stored)
		}
	})
}

func long(first string) string {
	return `{"v":4,"kind":"lock","waiters":["` + first + `","#Lz/1.1X@1+1"]}`
}

func TestCompactRefused(t *testing.T) {
	for _, good := range []string{"#La/1.1X@1+1", "#La/1.1X*:7+1", "#La.b/1.18446744073709551615X@2:2047+9007199254740990"} {
		if _, err := Decode([]byte(long(good))); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "#", "#La", "#La/1", "#La/1.", "#La/1.1", "#/1.1X@1+1", "#*/1.1X@1+1", "#La/0.1X@1+1", "#La/-1.1X@1+1", "#La/9223372036855.1X@1+1", "#La/1.01X@1+1", "#La/1.18446744073709551616X@1+1",
		"#La/1.1@1+1", "#La/1.1Z@1+1", "#La/1.1x@1+1", "#La/1.1XX@1+1", "#La/1.1Xx1@1+1", "#La/1.1X@+1", "#La/1.1X@-1+1", "#La/1.1X@4503599627370496+1", "#La/1.1X*@1+1", "#La/1.1X@1:2048+1", "#La/1.1X@1:+1",
		"#La/1.1X@1", "#La/1.1X@1+0", "#La/1.1X@1-1", "#La/1.1X@1+9007199254740991", "#La/1.1X@1+9007199254740992", "#La/1.1X@1+", "#La/1.1X@1+1 ", " #La/1.1X@1+1", "#La/1.1X@1+1+1", "#La/1. 1X@1+1", `#La\t/1.1X@1+1`,
		`#La/1.1X@1:2047+1","0.2X`, "0.1X@1+1", "-1.1X@1+1", "#Lz/1.1X@1+1", // the last one's id occurs twice
	} {
		if rec, err := Decode([]byte(long(bad))); err == nil {
			t.Errorf("took %q: %+v", bad, rec)
		}
	}
	if _, err := Decode([]byte(strings.Replace(long("#La/1.1X@1+1"), `"v":4`, `"v":3`, 1))); err == nil {
		t.Error("took a text in a record of schema 3")
	}
	if _, err := Decode([]byte(`{"v":4,"kind":"gate","life":10,"waiters":["#La/1.1X@1+1"],"parties":1,"gen":3}`)); err == nil {
		t.Error("took a mode in a gate")
	}
}

// The size of a record depends on the number of its processes: 1,600 waiters of 100 processes were 190,000 bytes.
func TestSizeFollowsProcesses(t *testing.T) {
	rec := &Record{Kind: KindLock}
	for i := range 160 {
		var ops []Op
		for k := range 10 {
			op := acquire(ID(fmt.Sprintf("Vd8Tb1SnVHxAjnLm9r%04d-1", (10*i+k)*37%100), uint64(1000+i)), X)
			op.Since = time.UnixMilli(1790000000000 + int64(10*i+k))
			ops = append(ops, op)
		}
		rev := 1790000000000000 + uint64(i)
		rec, _, _ = Apply(rec, rev, ops, Limits{})
		rec.Resolve(rev + 1)
	}
	if size := len(rec.Append(nil)); size > 32<<10 {
		t.Errorf("%d bytes", size)
	} else {
		t.Logf("%d bytes", size)
	}
}
