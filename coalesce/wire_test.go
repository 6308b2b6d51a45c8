package coalesce

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

const testLease = "Vd8Tb1SnVHxAjnLm9rPfQa-1"

func sampleFrame() frame {
	acquire := record.Op{
		Kind: record.KindLock, Verb: record.OpAcquire, ID: record.ID(testLease, 7), Lease: testLease, Mode: record.X, TTL: 30 * time.Second,
		Owner: "me", Since: time.UnixMilli(1_700_000_000_123).UTC(), Meta: map[string]string{"host": "a"}, Hold: time.Millisecond, Patience: time.Second,
	}
	permits := record.Op{Kind: record.KindSemaphore, Verb: record.OpTry, ID: record.ID(testLease, 8), Lease: testLease, N: 2, Limit: 5, Life: 9, TTL: time.Second}
	release := record.Op{Verb: record.OpRelease, ID: record.ID(testLease, 7), Lease: testLease, Token: 1 << 50}
	return frame{stamp: NewStamp("x", 1, 2), ack: true, seq: 3, items: []item{
		{key: "a.b", op: acquire, failFast: true, wantsPlace: true}, {key: "c", op: permits}, {key: "a.b", op: release},
	}}
}

func sampleReply() reply {
	return reply{term: 5, upto: 6, missed: span{2, 4}, outcomes: []outcome{
		{kind: granted, lease: testLease, seq: 7, frame: 3, rev: 100, token: 99, mode: record.X, alone: true},
		{kind: refused, lease: testLease, seq: 8, frame: 3, verdict: record.Held, blocker: record.ID(testLease, 1), record: []byte("{}"), have: 3, limit: "x", wait: 5, position: 2, uncertain: true},
		{kind: done, release: true, lease: testLease, seq: 7, frame: 4, existed: true, revoked: true, permits: 3, code: codeBusy},
	}}
}

func TestMessagesComeBackAsTheyWentIn(t *testing.T) {
	f := sampleFrame()
	if got, err := decodeFrame(f.append(nil)); err != nil || !reflect.DeepEqual(got, f) {
		t.Errorf("frame: %v\n got %+v\nwant %+v", err, got, f)
	}
	p := sampleReply()
	if got, err := decodeReply(p.append(nil)); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("reply: %v\n got %+v\nwant %+v", err, got, p)
	}
	b := beat{term: 7, stamp: NewStamp("x", 1, 2), lease: testLease, bye: true, rank: 3, min: 1, max: 2, next: 250}
	if got, err := decodeBeat(b.append(nil)); err != nil || got != b {
		t.Errorf("beat: %v\n got %+v\nwant %+v", err, got, b)
	}
	for n := range 200 { // so many leases and keys that the table uses a map
		f.items = append(f.items, item{key: "k" + strings.Repeat("x", n), op: f.items[0].op})
	}
	if got, err := decodeFrame(f.append(nil)); err != nil || !reflect.DeepEqual(got, f) {
		t.Errorf("a large frame: %v", err)
	}
}

// C17: a message that is cut, too long or nonsense is dropped as a whole.
func TestC17MalformedMessagesAreDropped(t *testing.T) {
	f, p, b := sampleFrame(), sampleReply(), beat{term: 1, lease: testLease}
	frames, replies, beats := f.append(nil), p.append(nil), b.append(nil)
	for n := range frames {
		if _, err := decodeFrame(frames[:n]); !errors.Is(err, errMalformed) {
			t.Fatalf("a frame cut at %d of %d passed: %v", n, len(frames), err)
		}
	}
	for n := range replies {
		if _, err := decodeReply(replies[:n]); !errors.Is(err, errMalformed) {
			t.Fatalf("a reply cut at %d passed: %v", n, err)
		}
	}
	for n := range beats {
		if _, err := decodeBeat(beats[:n]); !errors.Is(err, errMalformed) {
			t.Fatalf("a beat cut at %d passed: %v", n, err)
		}
	}
	if _, err := decodeFrame(append(frames, 0)); err == nil {
		t.Error("a frame with a byte too many passed")
	}
	for _, key := range []string{"*", ">", "a.*", "a.>", "a..b", "", ".", "=coalescer.0", "a b", strings.Repeat("k", maxKey+1)} {
		f := sampleFrame()
		f.items = []item{{key: key, op: f.items[0].op}}
		if _, err := decodeFrame(f.append(nil)); err == nil {
			t.Errorf("a frame with the key %q passed", key)
		}
	}
	for _, lease := range []string{"*", "a.>", "", "a b", strings.Repeat("l", maxLease+1)} {
		f := sampleFrame()
		f.items = f.items[:1]
		f.items[0].op.Lease = lease
		if _, err := decodeFrame(f.append(nil)); err == nil {
			t.Errorf("a frame with the lease %q passed", lease)
		}
	}
}

// A field that only a newer version knows affects only its own operation.
func TestUnknownOperationsAreMarked(t *testing.T) {
	f := sampleFrame()
	b := f.append(nil)
	verb := bytes.Index(b, []byte("c")) + 2 // after the last key and the number of operations
	b[verb] = 200
	got, err := decodeFrame(b)
	if err != nil || !got.items[0].unsupported || got.items[1].unsupported || got.items[2].unsupported {
		t.Errorf("%v, %+v", err, got)
	}
}

func FuzzFrame(f *testing.F) {
	s := sampleFrame()
	f.Add(s.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeFrame(b)
		if err != nil {
			return
		}
		for i := range got.items {
			if it := &got.items[i]; it.unsupported || it.op.Verb == 0 {
				return // not to be encoded again
			}
		}
		again, err := decodeFrame(got.append(nil))
		if len(got.append(nil)) <= maxFrame && (err != nil || !reflect.DeepEqual(got, again)) {
			t.Errorf("%v\n got %+v\nthen %+v", err, got, again)
		}
	})
}

func FuzzReply(f *testing.F) {
	s := sampleReply()
	f.Add(s.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeReply(b)
		if err != nil {
			return
		}
		again, err := decodeReply(got.append(nil))
		if err != nil || len(again.outcomes) != len(got.outcomes) {
			t.Errorf("%v\n got %+v\nthen %+v", err, got, again)
		}
		for i := range got.outcomes {
			_, _ = got.outcomes[i].blockerEntry()
		}
	})
}

func FuzzBeat(f *testing.F) {
	s := beat{term: 1, lease: testLease}
	f.Add(s.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeBeat(b)
		if err != nil {
			return
		}
		if again, err := decodeBeat(got.append(nil)); err != nil || again != got {
			t.Errorf("%v\n got %+v\nthen %+v", err, got, again)
		}
	})
}
