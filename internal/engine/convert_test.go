package engine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

func modeOp(id string, m record.Mode) record.Op {
	op := acquireOp(id)
	op.Mode = m
	return op
}

func convertOp(holder, id string, from, to record.Mode) record.Op {
	return record.Op{Kind: record.KindLock, Verb: record.OpConvert, ID: id, Lease: record.LeaseOf(id), Holder: holder, From: from, Mode: to}
}

// result is the result of a Do in the background.
type result struct {
	out Outcome
	err error
}

func doAsync(ctx context.Context, e *Engine, op record.Op) <-chan result {
	done := make(chan result, 1)
	go func() {
		out, err := Do(ctx, e, "k", op, Options{})
		done <- result{out, err}
	}()
	return done
}

func pending(t *testing.T, done <-chan result) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-done:
		t.Fatalf("did not wait: %+v", r)
	default:
	}
}

func expectHold(t *testing.T, b *bucket, id string, mode record.Mode) record.Entry {
	t.Helper()
	h, ok := b.record("k").Holder(id)
	if !ok || h.Mode != mode || h.Convert.ID != "" {
		t.Fatalf("%s should hold %s: %+v", id, mode, b.record("k"))
	}
	return h
}

func TestConversionWaitsLikeAnAcquire(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.U), Options{})
		first := must(t, out, err).Entry.Token
		b.apply("k", modeOp("L9.1", record.S)) // another process reads
		up := doAsync(t.Context(), e, convertOp("L1.1", "L1.2", record.U, record.X))
		pending(t, up)
		queued := doAsync(t.Context(), e, modeOp("L1.3", record.S))
		pending(t, queued) // not before the conversion, although S fits
		b.apply("k", releaseOp("L9.1"))
		got := <-up
		must(t, got.out, got.err)
		if en := got.out.Entry; en.Mode != record.X || en.Token != record.Ticket(b.peek("k").Revision, 0) || en.Token <= first || got.out.Revision != record.RevisionOf(en.Token) {
			t.Errorf("%+v", got.out)
		}
		pending(t, queued)
		out, err = Do(t.Context(), e, "k", convertOp("L1.1", "L1.4", record.X, record.S), Options{})
		if en := must(t, out, err).Entry; en.Mode != record.S || en.Token != got.out.Entry.Token {
			t.Errorf("%+v", out)
		}
		g := <-queued
		must(t, g.out, g.err)
	})
}

func TestConversionUnknownOutcomeIsOneConversion(t *testing.T) {
	for name, f := range map[string]fault{"committed": loseReply, "lost": lose, "late": late} {
		for _, to := range []record.Mode{record.X, record.IS} {
			t.Run(name+" "+to.String(), func(t *testing.T) {
				in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
					out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
					must(t, out, err)
					b.faultOnce(f)
					got, err := Do(t.Context(), e, "k", convertOp("L1.1", "L1.2", record.S, to), Options{})
					must(t, got, err)
					b.deliverLate()
					if h := expectHold(t, b, "L1.1", to); h.Token != got.Entry.Token || h.Converted != "L1.2" || (h.Token == out.Entry.Token) != (to == record.IS) {
						t.Errorf("%+v, the outcome was %+v", h, got)
					}
				})
			})
		}
	}
}

// faultOnce is for the next write.
func (b *bucket) faultOnce(f fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.writes + 1
	b.fault = func(n int) fault {
		if n == next {
			return f
		}
		return pass
	}
}

// Rule 13.2, for conversions: after giving up, the holder has its old mode, however late
// the request arrives.
func TestRule2_LateConversionLeavesTheOldMode(t *testing.T) {
	for name, f := range map[string]fault{"late": late, "lost": lose, "reply lost": loseReply} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
				must(t, out, err)
				b.faultOnce(f)
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				if _, err := Do(ctx, e, "k", convertOp("L1.1", "L1.2", record.S, record.X), Options{}); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				synctest.Wait()
				if d := e.Unresolved("L1"); d != 0 {
					t.Fatalf("unresolved for %v", d)
				}
				b.deliverLate()
				expectHold(t, b, "L1.1", record.S)
			})
		})
	}
}

func TestConversionGivenUpWhileItWaits(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
		must(t, out, err)
		b.apply("k", modeOp("L9.1", record.S))
		ctx, cancel := context.WithCancel(t.Context())
		up := doAsync(ctx, e, convertOp("L1.1", "L1.2", record.S, record.X))
		pending(t, up)
		cancel()
		if got := <-up; !errors.Is(got.err, context.Canceled) {
			t.Fatal(got.err)
		}
		expectHold(t, b, "L1.1", record.S) // at once, not some time
		b.apply("k", releaseOp("L9.1"))
		synctest.Wait()
		expectHold(t, b, "L1.1", record.S)
	})
}

// The grant comes while the caller gives up: the undo finds
// the conversion granted.
func TestConversionGrantedWhileItIsGivenUp(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
		must(t, out, err)
		b.apply("k", modeOp("L9.1", record.S))
		ctx, cancel := context.WithCancel(t.Context())
		up := doAsync(ctx, e, convertOp("L1.1", "L1.2", record.S, record.X))
		pending(t, up)
		b.mu.Lock()
		b.block, b.arrived = make(chan struct{}), make(chan struct{}, 9)
		b.mu.Unlock()
		cancel()
		<-b.arrived // the cancelling write is on its way
		b.apply("k", releaseOp("L9.1"))
		close(b.block)
		got := <-up
		synctest.Wait()
		if got.err == nil {
			expectHold(t, b, "L1.1", record.X)
		} else {
			expectHold(t, b, "L1.1", record.S)
		}
	})
}

// Its holder relies on the weaker mode from the request on, so it must be completed.
func TestWeakerConversionIsCarriedThrough(t *testing.T) {
	for name, f := range map[string]fault{"lost": lose, "late": late, "not sent": notSent, "no room": rejected} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				out, err := Do(t.Context(), e, "k", acquireOp("L1.1"), Options{})
				must(t, out, err)
				b.mu.Lock()
				b.fault = func(int) fault { return f }
				b.mu.Unlock()
				op := convertOp("L1.1", "L1.2", record.X, record.S)
				if _, err := Do(t.Context(), e, "k", op, Options{Bound: 5 * time.Second}); !errors.Is(err, ErrUnconfirmed) {
					t.Fatal(err)
				}
				if e.Unresolved("L1") == 0 {
					t.Error("it was forgotten")
				}
				b.mu.Lock()
				b.fault = nil
				b.mu.Unlock()
				time.Sleep(time.Minute)
				b.deliverLate()
				expectHold(t, b, "L1.1", record.S)
				if d := e.Unresolved("L1"); d != 0 {
					t.Errorf("unresolved for %v", d)
				}
			})
		})
	}
}

func TestConversionIsRefusedWithItsReason(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
		must(t, out, err)
		b.apply("k", modeOp("L9.1", record.S), convertOp("L9.1", "L9.2", record.S, record.X))
		var refused *RefusedError
		_, err = Do(t.Context(), e, "k", convertOp("L1.1", "L1.2", record.S, record.X), Options{})
		if !errors.As(err, &refused) || refused.Verdict != record.ConvertDeadlock || refused.Blocker.ID != "L9.1" {
			t.Fatal(err)
		}
		expectHold(t, b, "L1.1", record.S)
		out, err = Do(t.Context(), e, "k", releaseOp("L1.1"), Options{})
		must(t, out, err)
		expectHold(t, b, "L9.1", record.X)
		if _, err := Do(t.Context(), e, "k", convertOp("L1.1", "L1.3", record.S, record.IS), Options{}); !errors.Is(err, ErrGone) {
			t.Fatalf("conversion of what is released: %v", err)
		}
	})
}

// A conversion ends with its hold, whatever ends the hold.
func TestConversionEndsWithItsHold(t *testing.T) {
	for name, op := range map[string]record.Op{
		"revoked": {Verb: record.OpRevoke, ID: "L1.1"}, "removed": {Verb: record.OpRemove, ID: "L1.1"},
		"evicted": {Verb: record.OpEvict, Leases: []string{"L1"}}, "released": releaseOp("L1.1"),
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
				out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
				must(t, out, err)
				b.apply("k", modeOp("L9.1", record.S))
				up := doAsync(t.Context(), e, convertOp("L1.1", "L1.2", record.S, record.X))
				pending(t, up)
				b.apply("k", op)
				if got := <-up; !errors.Is(got.err, ErrGone) {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// Rule 13.9: blocked converters observe too.
func TestRule9_BlockedConverterEvictsTheDead(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, o *observer) {
		out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.U), Options{})
		must(t, out, err)
		b.apply("k", modeOp("D1.1", record.S), modeOp("D2.1", record.S))
		up := doAsync(t.Context(), e, convertOp("L1.1", "L1.2", record.U, record.X))
		pending(t, up)
		b.apply("k", modeOp("D3.1", record.S)) // waits behind: not in the way
		synctest.Wait()
		o.mu.Lock()
		_, one := o.dead["D1"]
		_, two := o.dead["D2"]
		_, three := o.dead["D3"]
		o.mu.Unlock()
		if !one || !two || three {
			t.Errorf("observed: %v, %v, and one behind: %v", one, two, three)
		}
		o.kill("D1")
		o.kill("D2")
		got := <-up
		must(t, got.out, got.err)
		synctest.Wait()
		if n := o.observed(); n != 0 {
			t.Errorf("%d leases are observed still", n)
		}
	})
}

func TestWatchedHoldOutlivesItsConversions(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		out, err := Do(t.Context(), e, "k", modeOp("L1.1", record.S), Options{})
		lost := make(chan error, 1)
		stop := e.WatchHold("k", "L1.1", 0, must(t, out, err).Revision, func(err error) { lost <- err })
		defer stop()
		for i, m := range []record.Mode{record.X, record.IX, record.S, record.IS, record.SIX} {
			out, err := Do(t.Context(), e, "k", convertOp("L1.1", record.ID("L1", uint64(i+2)), record.IS, m), Options{})
			must(t, out, err)
		}
		synctest.Wait()
		select {
		case err := <-lost:
			t.Fatal(err)
		default:
		}
		b.apply("k", record.Op{Verb: record.OpRemove})
		if err := <-lost; !errors.Is(err, ErrRemoved) {
			t.Fatal(err)
		}
	})
}

// Like a release: the handle has the weaker mode already, and the entry must get it.
func TestWeakerConversionThatWasNotWrittenYetGoesOn(t *testing.T) {
	inGated(t, func(t *testing.T, e *Engine, g *gated) {
		g.apply("k", acquireOp("L1.1"))
		op := convertOp("L1.1", "L1.2", record.X, record.S)
		if _, err := Do(t.Context(), e, "k", op, Options{Bound: time.Second}); !errors.Is(err, ErrUnconfirmed) {
			t.Fatalf("without a leader: %v", err)
		}
		close(g.reading) // a leader is back
		time.Sleep(time.Minute)
		expectHold(t, g.bucket, "L1.1", record.S)
	})
}
