package engine

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/lockfabric/lockfabric/internal/record"
)

// readers acquires n shared holds at once, each with 1,000 bytes of metadata: the first
// alone, and the others together while its write is out.
func readers(t *testing.T, e *Engine, b *bucket, n int) (granted []string, refused int) {
	t.Helper()
	b.block = make(chan struct{})
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			op := acquireOp(record.ID("L1", uint64(i+1)))
			op.Mode, op.Meta = record.S, map[string]string{"m": strings.Repeat("x", 1000)}
			_, err := e.Do(t.Context(), "k", op, Options{})
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

// The limit can change with a reconnect, also between the making of a record and its
// writing, and below what stands in the record already.
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
			_, err := e.Do(t.Context(), "k", releaseOp(granted[0]), Options{})
			done <- err
		}()
		synctest.Wait() // it is tried again and again
		var full *RefusedError
		if _, err := e.Do(t.Context(), "k", more, Options{}); !errors.As(err, &full) || full.Verdict != record.QueueFull {
			t.Errorf("far too low: %v", err)
		}
		b.mu.Lock()
		b.maxValue = 1 << 20
		b.mu.Unlock()
		if err := <-done; err != nil {
			t.Errorf("release: %v", err)
		}
		out, err := e.Do(t.Context(), "k", more, Options{})
		must(t, out, err)
		if n := len(b.record("k").Holders); n != len(granted) {
			t.Errorf("%d holders", n)
		}
	})
}
