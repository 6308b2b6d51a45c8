package embedded

import (
	"fmt"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// Health fails with ErrStoreFailed when the server can't write its store any more,
// because the disk is full for example, with ErrStoreGone when its files were removed
// or replaced, and with ErrStopped after Shutdown. A
// server alone finds out about every stream; one in a cluster, whose streams others
// lead then, only when it has given up its whole store. For a moment it can fail
// while a stream is made or deleted: take it seriously when it lasts for seconds.
func (s *Server) Health() error {
	select {
	case <-s.stopping:
		return ErrStopped
	default:
	}
	if err := s.checkFiles(); err != nil {
		return err
	}
	h := s.srv.Healthz(&natsserver.HealthzOptions{Details: true, JSEnabledOnly: s.srv.JetStreamIsClustered()})
	for _, e := range h.Errors {
		if e.Type == natsserver.HealthzErrorJetStream || e.Type == natsserver.HealthzErrorStream {
			return fmt.Errorf("%w: %s", ErrStoreFailed, e.Error)
		}
	}
	return nil
}

// checkRoom fails when the server would refuse every write: unless it was told, it
// uses a part of what is free on the disk when it starts, and no more later.
func (s *Server) checkRoom() error {
	state, err := s.srv.Jsz(nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStartFailed, err)
	}
	return roomFor(s.dir, state.Config.MaxStore, state.Store)
}

func roomFor(dir string, limit int64, used uint64) error {
	if limit > 0 && used < uint64(limit) {
		return nil
	}
	return fmt.Errorf("%w: the disk of %s is full: the store has %d bytes and may have %d, three quarters of what is free and its own; make room",
		ErrStartFailed, dir, used, limit)
}
