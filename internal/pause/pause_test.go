package pause_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/pause"
)

func TestUntil(t *testing.T) {
	for name, c := range map[string]struct {
		ended, woken bool
		after        time.Duration
	}{
		"time is up":    {after: time.Hour},
		"woken":         {woken: true},
		"context ended": {ended: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			woken := make(chan struct{}, 1)
			if c.ended {
				cancel()
			}
			if c.woken {
				woken <- struct{}{}
			}
			begun := time.Now()
			if goOn := pause.Until(ctx, time.Hour, woken); goOn == c.ended || time.Since(begun) != c.after {
				t.Errorf("%s: %v after %v", name, goOn, time.Since(begun))
			}
		})
	}
}

func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		got, err := pause.Within(t.Context(), time.Hour, func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "late", ctx.Err()
		})
		if got != "late" || !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Hour {
			t.Errorf("%q, %v after %v", got, err, time.Since(begun))
		}
	})
}

func TestTimes(t *testing.T) {
	for range 1000 {
		if d := pause.Around(time.Second); d < time.Second/2 || d > 3*time.Second/2 {
			t.Errorf("around 1s: %v", d)
		}
		if d := pause.Near(time.Second); d < 3*time.Second/4 || d > 5*time.Second/4 {
			t.Errorf("near 1s: %v", d)
		}
	}
	if pause.Around(0) != 0 || pause.Near(0) != 0 {
		t.Error("no time is not none")
	}
	for n, want := range map[int]time.Duration{-1: 1, 0: 1, 3: 8, 4: 10, 1 << 20: 10} {
		if d := pause.Doubled(1, n, 10); d != want {
			t.Errorf("1 doubled %d times, 10 at most: %d", n, d)
		}
	}
}
