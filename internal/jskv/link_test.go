package jskv

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
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
			if _, err := retryUnanswered(t.Context(), l, request); err != nil {
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
		if _, err := retryUnanswered(t.Context(), l, func(context.Context) (int, error) { return 0, nil }); err != nil {
			t.Fatal(err)
		}
		if d := l.wait(); d != shortestWait {
			t.Errorf("the next request waits %v", d)
		}
	})
}

// What a server says that is starting, or has no leader yet, is no answer.
func TestRefusalsThatPassAreRepeated(t *testing.T) {
	code := func(n jetstream.ErrorCode) error { return &jetstream.APIError{Code: 503, ErrorCode: n} }
	noPeers := func(why string) error {
		return &jetstream.APIError{Code: 400, ErrorCode: codeNoPeers, Description: "no suitable peers for placement" + why}
	}
	for _, c := range []struct {
		err       error
		clustered bool
		repeated  bool
	}{
		{code(codeClusterNotAvailable), false, true}, // "JetStream system temporarily unavailable"
		{code(codeNotLeader), false, true},
		{code(codeNotActive), false, true},
		{nats.ErrNoResponders, true, true},
		{nats.ErrNoResponders, false, false},
		{noPeers(""), true, true},
		{noPeers(", peer offline"), true, true},
		{noPeers(""), false, false},
		{noPeers(", peer offline, insufficient storage"), true, false},
		{noPeers(", server tag not unique"), true, false},
		{code(10026), true, false},
		{code(codeStreamNotFound), true, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			_, err := retryUnanswered(t.Context(), &link{clustered: c.clustered}, func(context.Context) (int, error) {
				if asked++; asked <= 3 {
					return 0, c.err
				}
				return asked, nil
			})
			if repeated := err == nil; repeated != c.repeated || !repeated && asked != 1 {
				t.Errorf("%v, clustered %v: asked %d times: %v", c.err, c.clustered, asked, err)
			}
		})
	}
	// No responders for long is the answer: there is no JetStream.
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := retryUnanswered(t.Context(), &link{clustered: true}, func(context.Context) (int, error) { return 0, nats.ErrNoResponders })
		if took := time.Since(start); !errors.Is(err, nats.ErrNoResponders) || took > 2*startTime {
			t.Errorf("%v after %v", err, took)
		}
	})
	// A cluster that stays too small says so before the time is over.
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), apiTimeout)
		defer cancel()
		_, err := retryUnanswered(ctx, &link{clustered: true}, func(context.Context) (int, error) { return 0, noPeers("") })
		if took := time.Since(start); limitError(err) == nil || took < apiTimeout/2 || took >= apiTimeout {
			t.Errorf("%v after %v", err, took)
		}
	})
}
