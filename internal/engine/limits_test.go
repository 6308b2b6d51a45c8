package engine

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// readers acquires n shared holds at once, each with 1,000 bytes of metadata: the first
// alone, and the others together while its write is under way.
func readers(t *testing.T, e *Engine, b *bucket, n int) (granted []string, refused int) {
	t.Helper()
	b.block = make(chan struct{})
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			op := acquireOp(record.ID("L1", uint64(i+1)))
			op.Mode, op.Meta = record.S, map[string]string{"m": strings.Repeat("x", 1000)}
			_, err := Do(t.Context(), e, "k", op, Options{})
			mu.Lock()
			defer mu.Unlock()
			var full *RefusedError
			switch {
			case err == nil:
				granted = append(granted, op.ID)
			case errors.As(err, &full) && full.Verdict == record.QueueFull && strings.HasSuffix(full.Limit, " bytes"):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	synctest.Wait()
	close(b.block)
	wg.Wait()
	return granted, refused
}

func TestRecordFitsTheLargestValue(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.maxValue = 20 << 10
		granted, refused := readers(t, e, b, 50)
		if len(granted) < 12 || refused != 50-len(granted) {
			t.Errorf("%d granted, %d refused", len(granted), refused)
		}
	})
}

// The limit can change with a reconnect: also between composing and writing a
// record, and to less than the present record.
func TestRecordFollowsAChangeOfTheLargestValue(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.fault = func(n int) fault {
			if n == 2 {
				b.maxValue = 20 << 10
			}
			return pass
		}
		granted, refused := readers(t, e, b, 50)
		if len(granted) < 12 || refused != 50-len(granted) {
			t.Errorf("lowered: %d granted, %d refused", len(granted), refused)
		}
		b.mu.Lock()
		b.maxValue, b.fault = 4<<10, nil
		b.mu.Unlock()
		more := acquireOp("L2.1")
		more.Mode = record.S
		done := make(chan error, 1)
		go func() {
			_, err := Do(t.Context(), e, "k", releaseOp(granted[0]), Options{})
			done <- err
		}()
		synctest.Wait() // it is tried again and again
		var full *RefusedError
		if _, err := Do(t.Context(), e, "k", more, Options{}); !errors.As(err, &full) || full.Verdict != record.QueueFull {
			t.Errorf("far too low: %v", err)
		}
		b.mu.Lock()
		b.maxValue = 1 << 20
		b.mu.Unlock()
		if err := <-done; err != nil {
			t.Errorf("release: %v", err)
		}
		out, err := Do(t.Context(), e, "k", more, Options{})
		must(t, out, err)
		if n := len(b.record("k").Holders); n != len(granted) {
			t.Errorf("%d holders", n)
		}
	})
}

// Callers that are refused and retry at once share reads, which come at intervals. Other requests
// don't wait for these reads, and a lock that becomes free is soon acquired.
func TestRefusedCallersAreSpaced(t *testing.T) {
	in(t, func(t *testing.T, e *Engine, b *bucket, _ *observer) {
		b.apply("k", acquireOp("L9.1"), modeOp("L9.2", record.S))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var refused atomic.Int64
		var seq atomic.Uint64
		got := make(chan string, 64)
		for range 64 {
			go func() {
				for ctx.Err() == nil {
					id := record.ID("L1", seq.Add(1))
					switch _, err := Do(ctx, e, "k", tryOp(id), Options{}); {
					case err == nil:
						got <- id
					case errors.Is(err, ErrRefused):
						refused.Add(1)
					}
				}
			}()
		}
		time.Sleep(5 * time.Second)
		if _, _, reads := b.counts(); reads > 300 || reads < 100 || refused.Load() < 64*100 {
			t.Errorf("%d reads for %d refusals in 5 s", reads, refused.Load())
		}
		began := time.Now()
		wait := doAsync(ctx, e, acquireOp("L2.1"))
		pending(t, wait)
		if took := time.Since(began); took > time.Millisecond {
			t.Errorf("queued after %v", took)
		}
		b.apply("k", releaseOp("L9.1"), releaseOp("L9.2"))
		r := <-wait
		must(t, r.out, r.err)
		out, err := Do(ctx, e, "k", releaseOp("L2.1"), Options{})
		must(t, out, err)
		out, err = Do(ctx, e, "k", releaseOp(<-got), Options{})
		must(t, out, err)
		b.apply("k", acquireOp("L9.3"))
		time.Sleep(3 * time.Second)
		for len(got) > 0 {
			<-got
		}
		began = time.Now()
		if rec := b.record("k"); len(rec.Holders) > 0 {
			b.apply("k", releaseOp(rec.Holders[0].ID), releaseOp("L9.3"))
		}
		<-got
		if took := time.Since(began); took > 2*refusalGap {
			t.Errorf("taken after %v", took)
		}
	})
}
