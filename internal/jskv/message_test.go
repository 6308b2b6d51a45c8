package jskv

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
)

// A write that was given up may still be sent. So its message is not reused.
func TestAMessageWithoutAnAnswerIsNotUsedAgain(t *testing.T) {
	var given *nats.Msg
	b := &Bucket{prefix: "$KV.b."}
	b.request = func(_ context.Context, msg *nats.Msg) (*nats.Msg, error) {
		if given == nil {
			given = msg
			return nil, context.DeadlineExceeded
		}
		if msg == given {
			t.Error("it is used for another write")
		}
		if want := msg.Header.Get(headerExpectedRevision) + "0"; len(msg.Data) > 0 && string(msg.Data) != want {
			t.Errorf("revision %s with the value %s", msg.Header.Get(headerExpectedRevision), msg.Data)
		}
		if purge := len(msg.Data) == 0; purge != (msg.Header.Get(headerOperation) == "PURGE") || len(msg.Header) != 1 && !purge {
			t.Errorf("headers %v with %d bytes", msg.Header, len(msg.Data))
		}
		return &nats.Msg{Data: []byte(`{"seq":99}`)}, nil
	}
	if _, err := b.Update(t.Context(), "k", []byte("first"), 7, 0); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
	for rev := range uint64(50) {
		if _, err := b.Update(t.Context(), "other", fmt.Appendf(nil, "%d0", rev), rev, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Purge(t.Context(), "other", rev, MarkerTTL); err != nil {
			t.Fatal(err)
		}
	}
	if string(given.Data) != "first" || given.Subject != "$KV.b.k" || given.Header.Get(headerExpectedRevision) != "7" {
		t.Errorf("it became %s %v %s", given.Subject, given.Header, given.Data)
	}
}
