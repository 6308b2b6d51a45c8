package jskv_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// A write of the note that ends without an answer says what the last answer was.
func TestNoteKeepsTheLastAnswer(t *testing.T) {
	nc := dial(t, startServer(t))
	var full, answered atomic.Bool
	b := open(t, nc, jskv.Config{Request: func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
		switch {
		case answered.Load():
			<-ctx.Done()
			return nil, ctx.Err()
		case full.Load() && strings.HasPrefix(msg.Subject, "$KV."):
			answered.Store(true)
			return &nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10047,"description":"insufficient storage resources available"}}`)}, nil
		}
		return nc.RequestMsgWithContext(ctx, msg)
	}})
	full.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := b.NoteTTL(ctx, 20*time.Hour, []uint64{1})
	if !errors.Is(err, kv.ErrFull) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want ErrFull and the end of the context", err)
	}
}

// A stream that has no leader yet is not subscribed to its subjects; opening waits for it.
func TestNoteOfAStreamThatIsNotHeardYet(t *testing.T) {
	nc := dial(t, startServer(t))
	begun := time.Now()
	open(t, nc, jskv.Config{Request: func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
		if strings.HasPrefix(msg.Subject, "$KV.") && time.Since(begun) < time.Second {
			return nil, nats.ErrNoResponders
		}
		return nc.RequestMsgWithContext(ctx, msg)
	}})
}
