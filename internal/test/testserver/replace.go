package testserver

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	replaceTime = time.Minute     // for each of the two requests
	answerTime  = 5 * time.Second // after which a request is repeated
)

// Replace deletes the stream of this name and creates one with cfg. It repeats a request that fails or has no answer: servers
// that still delete a stream refuse a new one for a moment, and sometimes do not answer at all.
func Replace(t testing.TB, js jetstream.JetStream, cfg jetstream.StreamConfig) {
	t.Helper()
	repeat(t, func(ctx context.Context) error {
		err := js.DeleteStream(ctx, cfg.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil // deleted by a request whose answer was lost
		}
		return err
	})
	repeat(t, func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, cfg)
		return err
	})
}

func repeat(t testing.TB, request func(ctx context.Context) error) {
	t.Helper()
	for end := time.Now().Add(replaceTime); ; time.Sleep(10 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), answerTime)
		err := request(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
