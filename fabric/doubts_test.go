package fabric

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// watched runs doubts whose looks take a second and are counted.
func watched(t *testing.T, answer func(look int) error, fn func(t *testing.T, d *doubts, looks *atomic.Int64)) error {
	t.Helper()
	var result error
	synctest.Test(t, func(t *testing.T) {
		d := newDoubts()
		var looks atomic.Int64
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- d.run(ctx, func(context.Context) error {
				n := looks.Add(1)
				time.Sleep(time.Second)
				return answer(int(n))
			})
		}()
		fn(t, d, &looks)
		stop()
		result = <-done
	})
	return result
}

func fine(int) error { return nil }

// A report that comes while a look is under way, or right after one, may be about
// what that look could not see yet.
func TestDoubts_EachReportIsFollowedByALook(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 999 * time.Millisecond, time.Second + 1, time.Second + lookPause/2, time.Minute} {
		t.Run(after.String(), func(t *testing.T) {
			_ = watched(t, fine, func(t *testing.T, d *doubts, looks *atomic.Int64) {
				d.raise()
				synctest.Wait() // the look has begun
				time.Sleep(after)
				began := looks.Load()
				n := d.raise()
				if err := d.wait(t.Context(), n); err != nil {
					t.Fatal(err)
				}
				if looks.Load() != began+1 || d.pending() {
					t.Errorf("settled after %d looks of which %d had begun before; pending: %t", looks.Load(), began, d.pending())
				}
			})
		})
	}
}

func TestDoubts_ManyReportsShareALook(t *testing.T) {
	_ = watched(t, fine, func(t *testing.T, d *doubts, looks *atomic.Int64) {
		for range 1000 {
			d.raise()
			time.Sleep(10 * time.Millisecond)
		}
		least := 10 * time.Second / (time.Second + lookPause)
		if n := looks.Load(); n < int64(least) || n > int64(least)+2 {
			t.Errorf("%d looks in 10 s", looks.Load())
		}
	})
}

func TestDoubts_ALookWithoutAnAnswerIsRepeated(t *testing.T) {
	answer := func(look int) error {
		if look < 5 {
			return fmt.Errorf("%w: injected", kv.ErrUnavailable)
		}
		return nil
	}
	_ = watched(t, answer, func(t *testing.T, d *doubts, looks *atomic.Int64) {
		if err := d.wait(t.Context(), d.raise()); err != nil || looks.Load() != 5 {
			t.Errorf("%v after %d looks", err, looks.Load())
		}
		time.Sleep(time.Minute)
		if looks.Load() != 5 {
			t.Errorf("%d looks, nobody asked for another", looks.Load())
		}
	})
}

func TestDoubts_EndWithTheBucket(t *testing.T) {
	gone := func(look int) error {
		if look == 2 {
			return fmt.Errorf("%w: injected", jskv.ErrBucketGone)
		}
		return nil
	}
	err := watched(t, gone, func(t *testing.T, d *doubts, _ *atomic.Int64) {
		if err := d.wait(t.Context(), d.raise()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := d.wait(ctx, d.raise()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a doubt that turned out right: %v", err)
		}
	})
	if !errors.Is(err, jskv.ErrBucketGone) {
		t.Errorf("ended with %v", err)
	}
}
