package record

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestLeaseOf(t *testing.T) {
	long := strings.Repeat("l", maxLeaseLen)
	for id, want := range map[string]string{
		"a.1": "a", "Yx0.0": "Yx0", "a.b.2": "a.b", "a-b_c=.18446744073709551615": "a-b_c=", long + ".7": long,
		"": "", ".": "", "a": "", "a.": "", ".1": "", "a.x": "", "a.01": "", "a.-1": "", "a.+1": "", "a.1 ": "",
		"a.18446744073709551616": "", "a.99999999999999999999": "", "a.100000000000000000000": "",
		"a..1": "", ".a.1": "", "a .1": "", "a*.1": "", "a>.1": "", "ä.1": "", "a/b.1": "", "a\"b.1": "", "a\x00.1": "",
		"l" + long + ".7": "",
	} {
		if got := LeaseOf(id); got != want {
			t.Errorf("LeaseOf(%q) = %q, want %q", id, got, want)
		}
	}
	for _, seq := range []uint64{0, 1, 42, math.MaxUint64} {
		if got := LeaseOf(ID("lease", seq)); got != "lease" {
			t.Errorf("LeaseOf(ID(lease, %d)) = %q", seq, got)
		}
	}
	if got := ID("lease", 17); got != "lease.17" {
		t.Error(got)
	}
}

func TestOwnerID(t *testing.T) {
	if got := (Entry{ID: "a.1"}).OwnerID(); got != "a.1" {
		t.Error(got)
	}
	if got := (Entry{ID: "a.1", Owner: "alice"}).OwnerID(); got != "alice" {
		t.Error(got)
	}
	if got := (Entry{ID: "a.1"}).Lease(); got != "a" {
		t.Error(got)
	}
}

func TestWholeTTL(t *testing.T) {
	for in, want := range map[time.Duration]time.Duration{
		0: 0, -1: 0, 1: time.Millisecond, time.Millisecond: time.Millisecond, time.Millisecond + 1: 2 * time.Millisecond,
		30 * time.Second: 30 * time.Second, maxTTL: maxTTL, maxTTL - 1: maxTTL, maxTTL + 1: 0, math.MaxInt64: 0, math.MinInt64: 0,
	} {
		if got := roundTTL(in); got != want {
			t.Errorf("wholeTTL(%d) = %d, want %d", in, got, want)
		}
	}
}

func TestWholeSince(t *testing.T) {
	at := time.Date(2026, 9, 21, 13, 33, 20, 123456789, time.FixedZone("east", 7200))
	if got := truncSince(at); got != time.Date(2026, 9, 21, 11, 33, 20, 123000000, time.UTC) {
		t.Error(got)
	}
	for _, odd := range []time.Time{{}, time.UnixMilli(-1), time.UnixMilli(maxSince + 1), time.Unix(math.MaxInt64, 0), time.Unix(math.MinInt64, 0)} {
		got := truncSince(odd)
		if ms := got.UnixMilli(); !got.IsZero() && (ms < 0 || ms > maxSince) {
			t.Errorf("%v became %v", odd, got)
		}
	}
	if got := truncSince(time.UnixMilli(0)); got.IsZero() || got.UnixMilli() != 0 {
		t.Error(got)
	}
}
