package kv

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A slow link costs an opening one round of repetitions, not one for each request.
func TestOpeningLearnsTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(link)
		asked := 0
		request := func(ctx context.Context) (int, error) {
			asked++
			select {
			case <-time.After(900 * time.Millisecond):
				return asked, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		for i := range 5 {
			if _, err := insist(t.Context(), l, request); err != nil {
				t.Fatal(err)
			}
			if i == 0 && asked != 3 {
				t.Errorf("the first answer took %d requests", asked)
			}
		}
		if asked != 3+4 {
			t.Errorf("%d requests for five answers", asked)
		}
		// And it does not stay slow.
		if _, err := insist(t.Context(), l, func(context.Context) (int, error) { return 0, nil }); err != nil {
			t.Fatal(err)
		}
		if d := l.wait(); d != shortestWait {
			t.Errorf("the next request waits %v", d)
		}
	})
}
