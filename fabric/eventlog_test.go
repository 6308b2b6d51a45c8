package fabric_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// logLines is a slog.Handler that keeps level and message of each record about
// one lock.
type logLines struct {
	mu    sync.Mutex
	key   string
	lines []string
}

func (h *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (h *logLines) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *logLines) WithGroup(string) slog.Handler            { return h }

func (h *logLines) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "key" && a.Value.String() == h.key {
			h.lines = append(h.lines, r.Level.String()+" "+r.Message)
		}
		return true
	})
	return nil
}

// Events are logged with or without a hook.
func TestEventsAreLogged(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		key := s.key(t)
		h := &logLines{key: key}
		first := acquire(t, s.manager(t), key)
		m := s.manager(t, fabric.WithLogger(slog.New(h)))
		wait := queue(t, waitContext(t), m, key)
		release(t, first)
		l := granted(t, wait)
		if err := l.Convert(waitContext(t), fabric.Shared); err != nil {
			t.Fatal(err)
		}
		release(t, l)
		acquire(t, m, key)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		want := []string{"DEBUG queued", "DEBUG granted", "DEBUG converted", "DEBUG released", "DEBUG granted", "WARN lock lost"}
		if !slices.Equal(h.lines, want) {
			t.Errorf("logged %q, want %q", h.lines, want)
		}
	})
}
