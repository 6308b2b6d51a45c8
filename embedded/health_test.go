package embedded

import (
	"errors"
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	s, err := Start(internalContext(t), WithTempStore())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	if err := s.Health(); err != nil {
		t.Errorf("a fresh server: %v", err)
	}
	// What the server does when it has no room.
	if err := s.srv.ShutdownJetStream(); err != nil {
		t.Fatal(err)
	}
	if err := s.Health(); !errors.Is(err, ErrStoreFailed) {
		t.Errorf("without JetStream: %v", err)
	}
	s.Kill()
	if err := s.Health(); !errors.Is(err, ErrStopped) {
		t.Errorf("stopped: %v", err)
	}
}

// A disk that is full when the server starts can't be had in a test.
func TestRoom(t *testing.T) {
	for _, tt := range []struct {
		limit int64
		used  uint64
		ok    bool
	}{{1 << 20, 0, true}, {1 << 20, 1 << 19, true}, {0, 0, false}, {1 << 19, 1 << 20, false}, {1 << 20, 1 << 20, false}} {
		err := roomFor("/store", tt.limit, tt.used)
		if (err == nil) != tt.ok || err != nil && (!errors.Is(err, ErrStartFailed) || !strings.Contains(err.Error(), "/store")) {
			t.Errorf("%d of %d: %v", tt.used, tt.limit, err)
		}
	}
	s, err := Start(internalContext(t), WithTempStore(), WithMaxStore(1))
	if err != nil {
		t.Fatalf("a limit that was given is not the disk's: %v", err)
	}
	s.Kill()
}
